"""Write the commands for all rows of the papers' main tables at full size, with estimated hours.

    python -m experiments.paper_protocols --write experiments/paper_protocols.md

The hours come from `experiments.benchmarks.tpu` (`results/tpu_estimated.json`): XLA compiled the training step for
TPUs, and nothing was run on one.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks.tpu import RESULTS, in_dtype, read_results, trainings
from experiments.output import Section, add_write, escape, markdown_table
from experiments.program import exits, parser_of
from experiments.regimes import REGIMES
from experiments.run.resolve import NotRun, resolve
from experiments.tables import TABLES

SECTION = Section("<!-- commands:begin -->", "<!-- commands:end -->")
SHOWN = ("v3_table5", "v3_table6", "v3plus_table3", "v3plus_table5", "v3plus_table7")
FOLDERS = {"voc": "VOCdevkit/VOC2012", "cityscapes": "cityscapes"}
CHIPS = "v5e"
DTYPE = "bfloat16"  # of the estimates


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print the section, and write it."""
    parser = parser_of("paper_protocols", __doc__)
    add_write(parser, "experiments/paper_protocols.md")
    args = parser.parse_args(argv)
    text = commands(read_results(RESULTS))
    print(text)
    SECTION.write(args.write, text)


def commands(estimated: Mapping[str, Any]) -> str:
    """Return the section in Markdown: for each table its rows with their hours, then a command for each row.

    Rows with the same number share a training. The estimates hold a training under the first row that asks for it.
    """
    names = {found.training_key: name for name, found in trainings("paper", DTYPE)}
    rows, numbers = estimated["rows"], dict[str, int]()
    targets = sorted({row["target"] for row in rows.values() if row["target"].startswith(CHIPS)})
    head = ["row", "mIoU: paper", "training", *(f"hours on {one}, estimated" for one in targets)]
    parts = []
    for table in map(TABLES.__getitem__, SHOWN):
        cells, lines = [], []
        for name, row in table.named_rows().items():
            found = resolve(row, table, REGIMES["paper"], in_dtype(DTYPE))
            about = [f"`{name}`", f"{row.paper['miou']:.2f}"]
            if isinstance(found, NotRun):
                cells.append([*about, f"needs {row.needs}", *[""] * len(targets)])
                continue
            number = numbers.setdefault(found.training_key, len(numbers) + 1)
            hours = (_hours(rows.get(f"{names[found.training_key]} on {one}")) for one in targets)
            cells.append([*about, str(number), *hours])
            lines.append(f'python -m experiments.run {table.name} --row {name} "${{PAPER[@]}}"')
        settings = f"PAPER=(--regime paper --data_dir {FOLDERS[table.data]} --init models)"
        parts += [
            f"### `{table.name}`: {escape(table.title)}\n\n{escape(table.source)}.",
            markdown_table(head, cells),
            "\n".join(["```sh files", settings, *lines, "```"]),
        ]
    return "\n\n".join(parts)


def _hours(row: Mapping[str, Any] | None) -> str:
    if row is None or not row.get("estimated"):
        return "not compiled yet" if row is None else str(row.get("why") or "does not fit")
    return f"{row['estimated']['hours']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
