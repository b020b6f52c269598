"""What people see on a terminal: tables and progress bars."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from deeplab_jax.analysis.summary import Stage, Summary


def class_table(results: Sequence[dict[str, Any]], titles: Sequence[str]) -> Table:
    """Return IoU in percent per class and its mean, with one column for each of several results on the same classes."""
    table = Table(title="IoU in %", title_justify="left")
    table.add_column("class")
    table.add_column("share of pixels", justify="right")
    for title in titles:
        table.add_column(title, justify="right")
    total = max(1, sum(row["support"] for row in results[0]["per_class"]))
    for index, row in enumerate(results[0]["per_class"]):
        cells = [percent(result["per_class"][index]["iou"]) for result in results]
        table.add_row(row["name"], percent(row["support"] / total), *cells)
    table.add_section()
    table.add_row("mean IoU", "", *(percent(result["miou"]) for result in results))
    table.add_row("pixel accuracy", "", *(percent(result["pixel_accuracy"]) for result in results))
    return table


def percent(value: float | None) -> str:
    """Write a ratio 0 to 1 in percent with two decimals; "-" for None."""
    return "-" if value is None else f"{100 * value:.2f}"


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that moves a bar on a terminal and does nothing elsewhere."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def summary_table(summary: Summary) -> Table:
    """Return one line per stage and one for all; multiply-adds in billions, memory in MiB."""
    model = summary.model
    table = Table(
        title=f"{model['name']}, {summary.height}x{summary.width}, output stride {model['output_stride']}, "
        f"{model['num_classes']} classes, {summary.dtype}",
        title_justify="left",
        caption="adds: multiply-adds in 10⁹; valid: without taps on padding. outputs: MiB of all convolutions' "
        "outputs for one image; largest: MiB of one's input and output. field: pixels along a side that a sample sees.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, heading in enumerate(
        ("stage", "parameters", "adds", "valid", "outputs", "largest", "field", "stride", "shape")
    ):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for stage in summary.stages:
        table.add_row(*_cells(stage))
    table.add_section()
    table.add_row(*_cells(summary.total))
    return table


def _cells(stage: Stage) -> list[str]:
    shape = "-" if stage.output_shape is None else "x".join(str(side) for side in stage.output_shape[1:])
    return [
        stage.name,
        f"{stage.parameters:,}",
        f"{stage.multiply_adds / 1e9:.3f}",
        f"{stage.multiply_adds_valid / 1e9:.3f}",
        f"{stage.activation_bytes / 2**20:.1f}",
        f"{stage.largest_pair_bytes / 2**20:.1f}",
        "-" if stage.receptive_field is None else str(stage.receptive_field).removesuffix(" image"),
        "-" if stage.output_stride is None else str(stage.output_stride),
        shape,
    ]


def table_width(console_width: int) -> int:
    """Return the columns to print a summary in: a narrower terminal breaks its lines, which keeps every digit."""
    return max(console_width, 100)
