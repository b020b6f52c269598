"""A table of a paper as data: the changes of each row, and the paper's numbers.

A row has the backbones, channels, crops and batches of the paper. `experiments.regimes` replaces them by those of the
regime in which the row is run.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | bool
Changes = Mapping[str, Any]

# The measures of rows, with the headings of their columns. Values are in percent, multiply-adds in 10^9.
MEASURES: dict[str, str] = {
    "miou": "mIoU",
    "rare_iou": "IoU of rare classes",
    "lamp_iou": "IoU of water, road, boat and car",
    "multiply_adds": "multiply-adds, 10⁹",
    **{f"trimap_{width}": f"mIoU within {width} px" for width in (1, 2, 4, 8, 16, 32)},
    **{f"valid_{taps}": f"{taps} valid" for taps in (9, 6, 4, 3, 2, 1)},
}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      cells: the row's cells in the paper, in the order of `Table.columns`.
      paper: the paper's values by measure; empty where it gives none.
      train: changes to the training configuration, by dotted key.
      evaluate: changes to the configuration's section `evaluate`.
      needs: data that are not available here, such as "COCO"; a row that needs some is printed and not run.
      repeats: the table with the same network on the papers' other data set; a row with one is run in the regime
        `paper` alone.
      compute: returns the measures of a row that needs no network; such a row has no `train` and `evaluate`.
    """

    cells: tuple[Cell, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    train: Changes = field(default_factory=dict)
    evaluate: Changes = field(default_factory=dict)
    needs: str = ""
    repeats: str = ""
    compute: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of a paper: one row of a table is better than another.

    Attributes:
      says: the claim in words: what is better, since this is tested. "X does not help" would be another claim.
      better, worse: cells of the two rows.
      measure: key of `MEASURES` by which the row is better.
      paper: the difference in the paper, in points, where the rows have no numbers; 0: the difference of their numbers.
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
      name: the name for `experiments.run`.
      title: the paper's title of the table, shortened.
      source: the paper and the number of the table.
      columns: headings of the rows' cells.
      rows: the rows, in the paper's order.
      measures: keys of `MEASURES`.
      data: the data set in the regime `paper`, "voc" or "cityscapes".
      claims: claims of the paper about these rows.
      along: the column along which its plot draws curves, one for each combination of the other cells; empty: the plot
        has a point for each row, or curves over the measures.
    """

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    measures: tuple[str, ...] = ("miou",)
    data: str = "voc"
    claims: tuple[Claim, ...] = ()
    along: str = ""

    def words(self, row: Row) -> list[str]:
        """Return a row's cells in words: a text as it is, a number behind its column's name, and the name of the column
        alone for a cell that is True.
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
        """Return a row's name, which is made of its words and can be the name of a file."""
        return "-".join(map(_slug, self.words(row)))

    def named_rows(self) -> dict[str, Row]:
        """Return the rows by name."""
        return {self.row_name(row): row for row in self.rows}

    def difference(self, claim: Claim) -> float | None:
        """Return the difference of a claim's two rows in the paper, in points, None where the paper gives none."""
        rows = {row.cells: row.paper for row in self.rows}
        better, worse = (rows[cells].get(claim.measure) for cells in (claim.better, claim.worse))
        return claim.paper or (None if better is None or worse is None else better - worse)

    def at_stake(self, row: Row) -> float | None:
        """Return the smallest difference in the paper among the claims about this row, infinity where the paper gives
        none, None where there is no claim.
        """
        differences = [self.difference(claim) for claim in self.claims if row.cells in (claim.better, claim.worse)]
        return min((math.inf if one is None else one for one in differences), default=None)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace("+", " plus")).strip("_")
