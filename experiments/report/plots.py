"""The plots, as PNG: the paper's and our numbers for each table, and learning curves."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, takewhile
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from experiments.outcomes.files import Records, is_number
from experiments.outcomes.gather import RowResult, TableResult
from experiments.tables import Row
from experiments.tables.table import MEASURES

WIDTH = 8.0  # inches, at DPI
DPI = 110
# The colours of Okabe and Ito, which colour-blind readers can tell apart, without black and yellow, which are hard to
# see on one of the themes.
COLOURS = ("#2f86c8", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#77c3ef", "#888888")
# All colours solid, then all of them dashed, and so on.
LINES = cycler(linestyle=("-", "--", ":", "-.")) * cycler(color=COLOURS)
PAPER, OURS = "#888888", "#2f86c8"


@dataclass(frozen=True)
class Theme:
    """Colours of a plot."""

    ink: str
    ground: str
    grid: str

    def settings(self) -> Any:
        """Return matplotlib's settings. They are Any, since its stubs spell out all possible keys."""
        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(inked, self.ink),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), self.ground),
            **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": self.grid},
            **{"legend.frameon": False, "font.size": 10, "axes.axisbelow": True},
            "axes.prop_cycle": LINES,
        }


LIGHT = Theme(ink="#22262b", ground="#ffffff", grid="#e4e6ea")
DARK = Theme(ink="#e2e5ea", ground="#1d2127", grid="#363c45")


def values_plot(result: TableResult, theme: Theme) -> bytes:
    """Return a plot of a table's numbers: curves where the paper has curves and no numbers, else a point for each row.

    The paper's and our numbers have separate axes, since their data differ.
    """
    with matplotlib.rc_context(theme.settings()):
        if result.table.along:
            figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
            _along(figure.subplots(), result)
        elif not has_bars(result):
            figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
            _lines(figure.subplots(), result)
        else:
            figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(result.rows)), layout="constrained")
            _points(figure, result, result.table.measures[0])
        return _png(figure)


def has_bars(result: TableResult) -> bool:
    """Return whether the plot of a table's numbers has a bar for each row, from the smallest to the largest seed."""
    return not result.table.along and (len(result.table.measures) == 1 or bool(result.printed))


def curves_plot(result: TableResult, theme: Theme) -> bytes | None:
    """Return a plot of the losses and validation mIoUs of a table's trainings over the steps, None without any log.

    Seeds of the same training have the same colour and style.
    """
    series = {name: result.logged.get(name, []) for name in result.trainings()}
    if not any(series.values()):
        return None
    panels = [("train/loss", "training loss", 1.0)]
    if any(sum("val/miou" in record for record in records) > 1 for records in series.values()):
        panels.append(("val/miou", "validation mIoU", 100.0))
    with matplotlib.rc_context(theme.settings()):
        figure = Figure(figsize=(WIDTH, 3.6 + 0.22 * len(_names(result))), layout="constrained")
        for panel, (key, title, factor) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _curves(panel, result, series, key, factor)
            panel.set(xlabel="step", title=title)
        handles, texts = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower left", fontsize="small")
        return _png(figure)


def _points(figure: Figure, result: TableResult, name: str) -> None:
    rows = [row for row in result.rows if row.values.get(name) or name in row.row.paper]
    places = [-index for index in range(len(rows))]
    sides = (["paper"] if name in result.printed else []) + ["ours"]
    panels = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for panel, side in zip(panels, sides, strict=True):
        panel.set(title=side, xlabel=MEASURES[name])
        panel.margins(x=0.12)
        panel.grid(axis="y", visible=False)
        if side == "paper":
            drawn = [(one.row.paper[name], at) for one, at in zip(rows, places, strict=True) if name in one.row.paper]
            panel.plot(*zip(*drawn, strict=True), "D", color=PAPER, markersize=6)
            continue
        for one, at in zip(rows, places, strict=True):
            if values := one.values.get(name):
                panel.plot([min(values), max(values)], [at, at], "-", color=OURS, linewidth=2, solid_capstyle="round")
                panel.plot(mean(values), at, "o", color=OURS, markersize=7)
    _same_span(panels)
    panels[0].set_yticks(places, [row.label for row in rows])
    panels[0].set_ylim(places[-1] - 0.6, 0.6)


def _same_span(panels: Sequence[Axes]) -> None:
    """Give all panels as many points as the widest has, so that equal differences have equal lengths."""
    limits = [panel.get_xlim() for panel in panels]
    half = max(high - low for low, high in limits) / 2
    for panel, (low, high) in zip(panels, limits, strict=True):
        panel.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)


def _lines(panel: Axes, result: TableResult) -> None:
    """Draw a curve for each row over the measures. What the names of all measures begin with names the axis."""
    names = [MEASURES[name].split() for name in result.table.measures]
    alike = takewhile(lambda words: len(set(words)) == 1, zip(*names, strict=False))
    shared = " ".join(words[0] for words in alike)
    for row in result.rows:
        if drawn := [(MEASURES[name], mean(values)) for name, values in row.values.items() if values]:
            labels, values = zip(*drawn, strict=True)
            panel.plot([label.removeprefix(shared).strip() for label in labels], values, marker="o", label=row.label)
    panel.set_ylabel(shared)
    panel.legend(fontsize="small")


def curves_along(result: TableResult) -> dict[str, list[tuple[float, float]]]:
    """Return curves over the column `Table.along`, by their labels. Where the table has no other column, each measure
    has a curve. Else each combination of the other cells has one, of the last measure.
    """
    table = result.table
    place = table.columns.index(table.along)
    alone = len(table.columns) == 1
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in result.rows:
        cells = one.row.cells
        others = ", ".join(table.words(Row((*cells[:place], False, *cells[place + 1 :]))))
        for name in table.measures if alone else table.measures[-1:]:
            if values := one.values.get(name):
                curves.setdefault(MEASURES[name] if alone else others, []).append((float(cells[place]), mean(values)))
    return curves


def _along(panel: Axes, result: TableResult) -> None:
    for label, drawn in curves_along(result).items():
        panel.plot(*zip(*drawn, strict=True), marker="o", markersize=3, label=label)
    panel.set_xlabel(result.table.along)
    if len(result.table.columns) > 1:
        panel.set_ylabel(MEASURES[result.table.measures[-1]])
    panel.legend(fontsize="small")


def _curves(panel: Axes, result: TableResult, series: Mapping[str, Records], key: str, factor: float) -> None:
    for (text, names), look in zip(_names(result).items(), cycle(LINES), strict=False):
        for number, name in enumerate(names):
            records = [r for r in series[name] if is_number(r.get("step")) and is_number(r.get(key))]
            drawn = [(record["step"], factor * record[key]) for record in records]
            if drawn:
                label = None if number else text  # Once for all seeds.
                panel.plot(*zip(*drawn, strict=True), **look, linewidth=1.3, alpha=0.9, label=label)


def _names(result: TableResult) -> dict[str, list[str]]:
    """Return the names of the trainings by their labels in the plot. Rows that share a training share a curve."""
    shared: dict[tuple[str, ...], list[RowResult]] = {}
    for row in result.rows:
        if row.trainings:
            shared.setdefault(tuple(training.name for training in row.trainings), []).append(row)
    texts = {}
    for names, rows in shared.items():
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        texts[rows[0].label + more] = list(names)
    return texts


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
