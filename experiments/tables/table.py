"""A table of a paper as data: what each row changes, and what the paper found.

A row speaks the paper's terms (its backbones, channels, crops and batches); `experiments.regimes` says what stands for
them where it is run.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | bool
Changes = Mapping[str, Any]

# What a row may be measured by, with the heading of its column. Values are in percent, multiply-adds in 10^9.
MEASURES: dict[str, str] = {
    "miou": "mIoU",
    "rare_iou": "IoU of rare classes",
    "paddock_iou": "IoU of paddocks",
    "multiply_adds": "multiply-adds, 10⁹",
    **{f"trimap_{width}": f"mIoU within {width} px" for width in (1, 2, 4, 8, 16, 32)},
    **{f"valid_{taps}": f"{taps} valid" for taps in (9, 6, 4, 3, 2, 1)},
}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      cells: what the paper's columns say of it, in the order of `Table.columns`.
      paper: the paper's values by measure; empty where it gives none.
      train: changes to the training configuration, by dotted key.
      evaluate: changes to the configuration's section `evaluate`.
      needs: what cannot be had here, such as "COCO"; the row is then printed and not run.
      compute: gives the measures of a row that takes no network, in place of `train` and `evaluate`.
    """

    cells: tuple[Cell, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    train: Changes = field(default_factory=dict)
    evaluate: Changes = field(default_factory=dict)
    needs: str = ""
    compute: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Claim:
    """What a paper says of two rows of a table: one is better than the other.

    Attributes:
      says: the claim, for a reader.
      better, worse: cells of the two rows.
      measure: key of `MEASURES` by which it is better.
      paper: the difference in the paper, in points, where its rows have no numbers; 0: that of their numbers.
    """

    says: str
    better: tuple[Cell, ...]
    worse: tuple[Cell, ...]
    measure: str = "miou"
    paper: float = 0.0


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper, or one that the papers lack.

    Attributes:
      name: by which `experiments.run` knows it.
      title: the paper's, in short.
      source: where it is from.
      columns: headings of the rows' cells.
      rows: in the paper's order.
      measures: keys of `MEASURES`.
      data: in the papers' own regime, "voc" or "cityscapes".
      claims: what the paper's text says of its rows.
    """

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    measures: tuple[str, ...] = ("miou",)
    data: str = "voc"
    claims: tuple[Claim, ...] = ()

    def words(self, row: Row) -> list[str]:
        """Return what a reader calls a row's cells: texts as they are, numbers behind their column's name, and the
        column's name alone where the cell is ticked.
        """
        words = []
        for column, cell in zip(self.columns, row.cells, strict=True):
            name = column.replace("_", " ")
            if cell is True:
                words.append(name)
            elif cell is not False:
                words.append(cell if isinstance(cell, str) else f"{name} {cell}")
        return words or ["plain"]

    def row_name(self, row: Row) -> str:
        """Return a row's name, which is made of its words and is a file's name, too."""
        return "-".join(map(_slug, self.words(row)))

    def named_rows(self) -> dict[str, Row]:
        """Return the rows by name."""
        return {self.row_name(row): row for row in self.rows}

    def difference(self, claim: Claim) -> float:
        """Return by how many points the paper's better row is better."""
        rows = {row.cells: row.paper for row in self.rows}
        return claim.paper or rows[claim.better][claim.measure] - rows[claim.worse][claim.measure]

    def at_stake(self, row: Row) -> float | None:
        """Return the smallest difference in the paper of a claim that is about this row; None where there is none."""
        own = (self.difference(claim) for claim in self.claims if row.cells in (claim.better, claim.worse))
        return min(own, default=None)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace("+", " plus")).strip("_")
