"""Write the commands for all rows of the papers' main tables at full size, with estimated hours.

    python -m experiments.paper_protocols --write experiments/paper_protocols.md

The hours come from `experiments.benchmarks.tpu` (`results/tpu_estimated.json`): XLA compiled the training step for
TPUs, and nothing was run on one.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.cli import Parser
from deeplab_jax.commands import fail
from deeplab_jax.errors import UserError
from experiments.benchmarks.tpu import RESULTS, in_dtype, read_results, trainings
from experiments.output import Section, escape, markdown_table
from experiments.regimes import REGIMES
from experiments.run.resolve import NotRun, resolve
from experiments.tables import TABLES, Table

SECTION = Section("<!-- commands:begin -->", "<!-- commands:end -->")
SHOWN = ("v3_table5", "v3_table6", "v3plus_table3", "v3plus_table5", "v3plus_table7")
FOLDERS = {"voc": "VOCdevkit/VOC2012", "cityscapes": "cityscapes"}
CHIPS = "v5e"
DTYPE = "bfloat16"  # of the estimates
NOT_COMPILED = "not compiled yet"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the section, or write it, and return the exit code: 0, or 2 for an error that the user can fix."""
    args = parser().parse_args(argv)
    try:
        text = commands(read_results(RESULTS))
        if args.write:
            SECTION.write(Path(args.write), text)
        else:
            print(text)
    except UserError as error:
        return fail(str(error))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    found = Parser(
        prog="python -m experiments.paper_protocols",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    found.add_argument("--write", metavar="FILE", help="write the section into this file; by default it is printed")
    return found


def commands(estimated: Mapping[str, Any]) -> str:
    """Return the section in Markdown: for each table its rows with their hours, then a command for each row."""
    names = {found.training_key: name for name, found in trainings("paper", DTYPE)}
    rows, numbers = estimated["rows"], dict[str, int]()
    targets = sorted({row["target"] for row in rows.values() if row["target"].startswith(CHIPS)})
    return "\n\n".join(part for table in SHOWN for part in _table(TABLES[table], names, numbers, rows, targets))


def _table(
    table: Table,
    names: Mapping[str, str],
    numbers: dict[str, int],
    estimated: Mapping[str, Any],
    targets: Sequence[str],
) -> Iterator[str]:
    """Yield the heading, the rows and the commands of a table.

    Args:
      table: the table.
      names: the row under which the estimates hold a training, by the training's key.
      numbers: the number of each training, by its key; the function adds those of this table.
      estimated: the estimates, by `ROW on TARGET`.
      targets: the targets that get a column.
    """
    rows, lines = [], []
    for name, row in table.named_rows().items():
        found = resolve(row, table, REGIMES["paper"], in_dtype(DTYPE))
        paper = f"{row.paper['miou']:.2f}"
        if isinstance(found, NotRun):
            rows.append([f"`{name}`", paper, f"needs {row.needs}", *[""] * len(targets)])
            continue
        number = numbers.setdefault(found.training_key, len(numbers) + 1)
        asked = names[found.training_key]
        hours = (_hours(estimated.get(f"{asked} on {one}")) for one in targets)
        rows.append([f"`{name}`", paper, str(number), *hours])
        lines.append(f'python -m experiments.run {table.name} --row {name} "${{PAPER[@]}}"')
    yield f"### `{table.name}`: {escape(table.title)}\n\n{escape(table.source)}."
    head = ["row", "mIoU: paper", "training", *(f"hours on {one}, estimated" for one in targets)]
    yield markdown_table(head, rows)
    settings = f"PAPER=(--regime paper --data_dir {FOLDERS[table.data]} --init models)"
    yield "\n".join(["```sh files", settings, *lines, "```"])


def _hours(row: Mapping[str, Any] | None) -> str:
    if row is None or not row.get("estimated"):
        return NOT_COMPILED if row is None else str(row.get("why") or "does not fit")
    return f"{row['estimated']['hours']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
