"""Count the multiply-adds of DeepLabv3+ (arXiv 1802.02611), Tables 3 and 5, on the networks of this package.

    python -m experiments.multiply_adds --out experiments/results

Each network is traced once for every size; none is run. There are three counts. The first includes the padding of
TensorFlow's space-to-batch, as the paper's numbers do. The second is exact. The third has only the taps that touch no
padding.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rich.console import Console

from deeplab_jax.analysis.cost import Call, Counting, count, record
from deeplab_jax.labels import VOC
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.train.from_config import build_model
from experiments import tables
from experiments.output import markdown_table, write_json
from experiments.program import exits, parser_of
from experiments.regimes import REGIMES
from experiments.run.resolve import Resolved, Settings, resolve
from experiments.tables import TABLES
from experiments.tables.networks import MULTI_SCALE

SIDE = 513
# A number of Table 3 that contradicts other numbers of the paper. Two rows have it; see `odd_one_out`.
ODD = 101.28
BOUND = 0.5  # percent


class Row(NamedTuple):
    """A row of the paper: the settings of training and evaluation, and its multiply-adds in billions."""

    table: int
    train_stride: int
    eval_stride: int
    decoder: bool
    multi_scale: bool
    flip: bool
    separable: bool
    pretraining: str
    paper: float

    @property
    def backbone(self) -> str:
        """The paper's name of the backbone."""
        return "ResNet-101" if self.table == 3 else "Xception"

    @property
    def label(self) -> str:
        """The row in the paper's words."""
        words = [self.backbone, f"OS {self.eval_stride}"]
        flags = ((self.decoder, "decoder"), (self.separable, "SC"), (self.multi_scale, "MS"), (self.flip, "flip"))
        words += [word for given, word in flags if given]
        if self.pretraining:
            words.append(self.pretraining)
        if self.train_stride != self.eval_stride:
            words.append(f"trained at {self.train_stride}")
        return f"Table {self.table}: {', '.join(words)}"


def rows_of(number: int) -> dict[Row, tables.Row]:
    """Return the rows of a table, with the settings that the runner has of them."""
    found = {}
    table = TABLES[f"v3plus_table{number}"]
    for row in table.rows:
        cells = dict(zip(table.columns, row.cells, strict=True))
        train_stride, eval_stride = int(cells.get("train_os", 16)), int(cells["eval_os"])
        decoder, multi_scale, flip, separable = (bool(cells.get(name)) for name in ("decoder", "ms", "flip", "sc"))
        pretraining = ", ".join(name for name in ("COCO", "JFT") if cells.get(name.lower()))
        about = (train_stride, eval_stride, decoder, multi_scale, flip, separable, pretraining)
        found[Row(number, *about, row.paper["multiply_adds"])] = row
    return found


SETTINGS = {**rows_of(3), **rows_of(5)}
ROWS = tuple(SETTINGS)


@cache
def network(table: int, decoder: bool, separable: bool) -> Segmenter:
    """Return the network that these rows train in the regime `paper`.

    It has the lowering that is traced fastest. The counts are the same with all.
    """
    kind = (table, decoder, separable)
    row = next(row for of, row in SETTINGS.items() if (of.table, of.decoder, of.separable) == kind)
    found = resolve(replace(row, needs=""), TABLES[f"v3plus_table{table}"], REGIMES["paper"], Settings())
    assert isinstance(found, Resolved), found
    found.config.model.options.lowering = "direct"
    return build_model(found.config, num_classes=VOC.num_classes)


@cache
def calls(table: int, decoder: bool, separable: bool, output_stride: int, side: int) -> tuple[Call, ...]:
    """Return a network's convolutions for one image of `side x side`."""
    return record(network(table, decoder, separable).clone(output_stride=output_stride), side, side).calls


def counted(row: Row, counting: Counting) -> int:
    """Return the multiply-adds of a row, over all its scales and the mirrored image."""
    scales = MULTI_SCALE if row.multi_scale else (1.0,)
    sides = [scaled_side(SIDE, scale) for scale in scales]
    kind = row.table, row.decoder, row.separable
    totals = [count(calls(*kind, row.eval_stride, side), counting=counting).total for side in sides]
    return (2 if row.flip else 1) * sum(totals)


def difference(row: Row) -> float:
    """Return the difference of the count, in the paper's way, from the paper's number, in percent."""
    return 100 * (counted(row, "space_to_batch") / (row.paper * 1e9) - 1)


def result(row: Row) -> dict[str, Any]:
    """Return a row with its counts, for JSON."""
    counts = {counting: counted(row, counting) for counting in get_args(Counting)}
    return {"label": row.label, **row._asdict(), "counted": counts, "difference_percent": round(difference(row), 3)}


def decoder_differences() -> list[tuple[Row, float]]:
    """Return each single-scale row with a decoder, and the multiply-adds that its decoder adds in the paper."""
    plain = {(row.table, row.eval_stride): row.paper for row in ROWS if not (row.decoder or row.multi_scale)}
    rows = [row for row in ROWS if row.decoder and not (row.multi_scale or row.separable)]
    return [(row, row.paper - plain[row.table, row.eval_stride]) for row in rows]


def odd_one_out() -> str:
    """Return a paragraph on why 101.28 is an error in the paper."""
    added = ", ".join(f"{extra:.2f} ({row.backbone} at {row.eval_stride})" for row, extra in decoder_differences())
    # ResNet-101 with the decoder at output stride 16, at one scale and at six.
    alone, scales = (row for row in ROWS if row[:4] == (3, 16, 16, True) and not row.flip)
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
        f"All numbers are in 10⁹, for an image of {SIDE}x{SIDE}. MS is the sum over the scales s of "
        f"{', '.join(map(str, MULTI_SCALE))}; at scale s a side of n pixels becomes (n - 1) s + 1. A flip doubles the "
        "number. The command `python -m experiments.multiply_adds` writes this page.",
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
        for row in ROWS:
            status.update(row.label)
            results.append(result(row))
    text = markdown(results)
    print(text)
    content = {"command": "python -m experiments.multiply_adds", "size": [SIDE, SIDE], "scales": MULTI_SCALE}
    write_json(args.out / "multiply_adds.json", {**content, "rows": results})
    (args.out / "multiply_adds.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
