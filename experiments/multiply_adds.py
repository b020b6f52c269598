"""Count the multiply-adds of DeepLabv3+ (arXiv 1802.02611), Tables 3 and 5, on the networks of this package.

    python -m experiments.multiply_adds --out experiments/results

Each network is traced once for every size; none is run. There are three counts. The first includes the padding of
TensorFlow's space-to-batch, as the paper's numbers do. The second is exact. The third has only the taps that touch no
padding.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from deeplab_jax.analysis.cost import Call, Counting, count, record
from deeplab_jax.files import save_json
from deeplab_jax.labels import VOC
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.train.from_config import build_model
from experiments.output import markdown_table
from experiments.program import exits, parser_of
from experiments.regimes import REGIMES
from experiments.run.resolve import Resolved, Settings, resolve
from experiments.tables import TABLES, Row, Table
from experiments.tables.networks import MULTI_SCALE

SIDE = 513
# A number of Table 3 that contradicts other numbers of the paper. Two rows have it; see `odd_one_out`.
ODD = 101.28


@dataclass(frozen=True, eq=False)
class Entry:
    """A row whose multiply-adds the paper states."""

    table: Table
    row: Row

    @property
    def label(self) -> str:
        """The row in words."""
        return f"{self.table.name}: {', '.join(self.table.words(self.row))}"

    @property
    def paper(self) -> float:
        """The paper's multiply-adds, in billions."""
        return self.row.paper["multiply_adds"]

    @property
    def cells(self) -> dict[str, Any]:
        """The row's cells by column."""
        return dict(zip(self.table.columns, self.row.cells, strict=True))

    @cached_property
    def resolved(self) -> Resolved:
        """The row as the runner has it in the regime `paper`; its data are not needed."""
        found = resolve(replace(self.row, needs=""), self.table, REGIMES["paper"], Settings())
        assert isinstance(found, Resolved), found
        return found

    @cached_property
    def model(self) -> Segmenter:
        """Its network at the output stride of its evaluation, with the lowering that is traced fastest: all have the
        same counts.
        """
        self.resolved.config.model.options.lowering = "direct"
        model = build_model(self.resolved.config, num_classes=VOC.num_classes)
        # 0 is that of the training.
        return model.clone(output_stride=self.resolved.evaluation["output_stride"] or model.output_stride)


ENTRIES = tuple(Entry(TABLES[name], row) for name in ("v3plus_table3", "v3plus_table5") for row in TABLES[name].rows)


@cache
def calls(model: Segmenter, side: int) -> tuple[Call, ...]:
    """Return a network's convolutions for one image of `side x side`."""
    return record(model, side, side).calls


def counted(entry: Entry, counting: Counting) -> int:
    """Return the multiply-adds of a row, over all its scales and the mirrored image."""
    evaluation = entry.resolved.evaluation
    sides = [scaled_side(SIDE, scale) for scale in evaluation["scales"]]
    views = 2 if evaluation["flip"] else 1
    return views * sum(count(calls(entry.model, side), counting=counting).total for side in sides)


def difference(entry: Entry) -> float:
    """Return the difference of the count, in the paper's way, from the paper's number, in percent."""
    return 100 * (counted(entry, "space_to_batch") / (entry.paper * 1e9) - 1)


def result(entry: Entry) -> dict[str, Any]:
    """Return a row with its counts, for JSON."""
    counts = {counting: counted(entry, counting) for counting in get_args(Counting)}
    about = {"label": entry.label, "table": entry.table.name, **entry.cells, "paper": entry.paper}
    return {**about, "counted": counts, "difference_percent": round(difference(entry), 3)}


def decoder_differences() -> list[tuple[Entry, float]]:
    """Return each single-scale row with a decoder, and the multiply-adds that its decoder adds in the paper."""
    single = [entry for entry in ENTRIES if not (entry.cells["ms"] or entry.cells.get("sc"))]
    plain = {(one.table.name, one.cells["eval_os"]): one.paper for one in single if not one.cells["decoder"]}
    with_decoder = [entry for entry in single if entry.cells["decoder"]]
    return [(entry, entry.paper - plain[entry.table.name, entry.cells["eval_os"]]) for entry in with_decoder]


def odd_one_out() -> str:
    """Return a paragraph on why 101.28 is an error in the paper."""
    added = ", ".join(f"{extra:.2f} ({entry.label})" for entry, extra in decoder_differences())
    # ResNet-101 with the decoder at output stride 16, at one scale and at six.
    alone, scales = (entry for entry in ENTRIES if entry.row.cells[:3] == (16, 16, True) and not entry.cells["flip"])
    ratio = counted(scales, "space_to_batch") / counted(alone, "space_to_batch")
    return (
        f"{ODD} contradicts other numbers of the paper. The decoder works at output stride 4, whatever the output "
        "stride of the backbone. So it adds the same number to every row without separable convolutions. In the paper "
        f"it adds {added}. Also, this network costs {ratio:.3f} times as much at the six scales as at one. So the "
        f"paper's {scales.paper} for six scales means {scales.paper / ratio:.2f} for one. The count here is "
        f"{counted(alone, 'space_to_batch') / 1e9:.2f}, which fits this and not {ODD}."
    )


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return the table and the paragraph below it."""
    head = ("row", "paper", "counted the paper's way", "difference %", "counted exactly", "valid taps only")
    lines = [
        "# Multiply-adds of DeepLabv3+, Tables 3 and 5",
        f"All numbers are in 10⁹, for an image of {SIDE}x{SIDE}. Table 3 has ResNet-101, Table 5 Xception. `os` is the "
        "output stride, in training and in evaluation. `sc`: separable convolutions in ASPP and decoder. `ms`: the sum "
        f"over the scales s of {', '.join(map(str, MULTI_SCALE))}; at scale s a side of n pixels becomes "
        "(n - 1) s + 1. A flip doubles the number. The command `python -m experiments.multiply_adds` writes this page.",
        markdown_table(head, map(cells, results)),
        odd_one_out(),
    ]
    return "\n\n".join(lines) + "\n"


def cells(entry: dict[str, Any]) -> list[str]:
    """Return a row's columns."""
    counts = [f"{entry['counted'][counting] / 1e9:.2f}" for counting in ("space_to_batch", "exact", "valid")]
    return [entry["label"], f"{entry['paper']:.2f}", counts[0], f"{entry['difference_percent']:+.2f}", *counts[1:]]


@exits
def main(argv: Sequence[str] | None) -> None:
    """Count, print the table, and write `multiply_adds.md` and `multiply_adds.json`."""
    parser = parser_of("multiply_adds", __doc__)
    parser.add_argument("--out", type=Path, default="experiments/results", help="folder for the two files")
    args = parser.parse_args(argv)
    results = []
    with Console(stderr=True).status("counting") as status:
        for entry in ENTRIES:
            status.update(entry.label)
            results.append(result(entry))
    text = markdown(results)
    print(text)
    content = {"command": "python -m experiments.multiply_adds", "size": [SIDE, SIDE], "scales": MULTI_SCALE}
    save_json(args.out / "multiply_adds.json", {**content, "rows": results})
    (args.out / "multiply_adds.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
