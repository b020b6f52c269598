"""Report on the papers' tables: Markdown, plots, and one HTML page that needs no network.

    python -m experiments.report
    python -m experiments.report --write experiments/results/README.md
    python -m experiments.report --regime scenes camvid
    python -m experiments.report my_table.py --results runs/mine

It reads the results of `experiments.run` in RESULTS. For the pictures it also reads the run directories in RUNS, where
they exist. It writes `tables.md`, `REGIME-TABLE.png`, `REGIME-TABLE-curves.png` and `report.html` into OUT.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from deeplab_jax.cli import enable_compilation_cache
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from experiments.outcomes.files import RESULTS
from experiments.outcomes.gather import TableResult, read_tables
from experiments.outcomes.verdicts import all_verdicts
from experiments.output import PAGE, add_write
from experiments.program import exits, parser_of
from experiments.report import markdown, page
from experiments.report.pictures import table_pictures
from experiments.report.plots import DARK, LIGHT, curves_plot, values_plot
from experiments.tables import TABLES, find_table


@exits
def main(argv: Sequence[str] | None) -> None:
    """Write the report."""
    parser = parser_of("report", __doc__)
    parser.add_argument("tables", nargs="*", metavar="FILE.py", help="tables of your own, besides the project's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--runs", type=Path, default="runs/tables", help="folder of the run directories")
    parser.add_argument(
        "--regime", "--scale", nargs="+", default=[], metavar="NAME", help="by default all regimes with results"
    )
    parser.add_argument("--out", type=Path, default="runs/report", help="folder of the report")
    add_write(parser, PAGE)
    parser.add_argument(
        "--images", type=int, default=3, help="validation images to show with the predictions of each row; 0: none"
    )
    args = parser.parse_args(argv)
    if args.images < 0:
        raise UserError(f"--images {args.images}: give 0 or more")
    if args.write and args.regime:
        raise UserError("--write replaces the tables of all regimes; leave out --regime")
    own = [find_table(file) for file in args.tables if file not in TABLES]
    results, remarks = read_tables(args.results, tuple(dict.fromkeys(args.regime)), own)
    for line in remarks:
        print(line, file=sys.stderr)
    verdicts = all_verdicts(results)
    text = markdown.tables(results, verdicts)
    write(args.out / "tables.md", (text + "\n").encode())
    markdown.SECTION.write(args.write, text)
    enable_compilation_cache()
    sections = [section(result, args.runs, args.out, images=args.images) for result in results]
    file = write(args.out / "report.html", page.page(sections, verdicts, images=args.images).encode())
    count = sum(not row.missing for result in results for row in result.rows)
    print(f"{len(results)} tables with {count} results: {file}")


def section(result: TableResult, runs: Path, out: Path, *, images: int) -> page.TablePart:
    """Write a table's plots, and return its section of the page."""
    found, remarks = table_pictures(result, runs, count=images)
    for line in remarks:
        print(line, file=sys.stderr)
    values = values_plot(result, LIGHT), values_plot(result, DARK)
    curves = curves_plot(result, LIGHT), curves_plot(result, DARK)
    for name, plot in ((f"{result.name}.png", values[0]), (f"{result.name}-curves.png", curves[0])):
        if plot is not None:
            write(out / name, plot)
    return page.TablePart(result, found, values, curves)


def write(file: Path, data: bytes) -> Path:
    """Write a file whole or not at all, and return it."""
    return write_whole(file, lambda path: path.write_bytes(data))


if __name__ == "__main__":
    sys.exit(main())
