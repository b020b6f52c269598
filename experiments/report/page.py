"""The HTML page. It is a single file, so a reader can send it to others and open it without a network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.evaluate.page import templates
from experiments.outcomes.cells import VERDICT_HEADINGS, cells, headings, networks, provenance, verdict_cells
from experiments.outcomes.gather import RowResult, TableResult
from experiments.outcomes.verdicts import RULE, Verdict, comparisons
from experiments.regimes import REGIMES
from experiments.report.pictures import Pictures
from experiments.report.plots import has_bars

HERE = Path(__file__).parent
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}

Plots = tuple[bytes | None, bytes | None]
Pictured = Sequence[tuple[RowResult, Pictures]]


@dataclass(frozen=True)
class TablePart:
    """A table's part of the page.

    Attributes:
      result: the table.
      pictured: rows with their pictures.
      values, curves: plots for the light and for the dark theme; None where there is nothing to draw.
    """

    result: TableResult
    pictured: Pictured
    values: Plots
    curves: Plots


def page(sections: Sequence[TablePart], verdicts: Sequence[Verdict], *, images: int) -> str:
    """Return the page, with style, script and pictures in it. `verdicts` are those of `all_verdicts`; `images` is the
    number of images that were asked for.
    """
    environment = templates(HERE)
    functions = {
        "cells": cells,
        "headings": headings,
        "provenance": provenance,
        "same_images": same_images,
        "networks": networks,
    }
    functions |= {"verdict_cells": verdict_cells, "comparisons": comparisons, "has_bars": has_bars}
    environment.globals |= {**functions, "png": lambda data: data_uri(data, ".png"), "embedded": embedded}
    return environment.get_template("page.html").render(
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
        sections=sections,
        verdicts=verdicts,
        rule=RULE,
        images=images,
        verdict_headings=VERDICT_HEADINGS,
        differs={name: regime.differs for name, regime in REGIMES.items()},
    )


def same_images(pictured: Pictured) -> list[list[tuple[RowResult, Pictures]]]:
    """Return the rows in groups. The rows of a group show the same images."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[RowResult, Pictures]]] = {}
    for row, pictures in pictured:
        groups.setdefault((pictures.data, pictures.names), []).append((row, pictures))
    return list(groups.values())


def data_uri(data: bytes, suffix: str) -> str:
    """Return a picture as a data URI."""
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"


def embedded(file: Path) -> str:
    """Return a picture's file as a data URI."""
    return data_uri(file.read_bytes(), file.suffix)
