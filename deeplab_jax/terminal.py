"""Output for people on a terminal: tables and progress bars."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from deeplab_jax.errors import printable


def class_table(results: Sequence[dict[str, Any]], titles: Sequence[str]) -> Table:
    """Return IoU in percent for each class and its mean, with one column for each of several results on the same
    classes.
    """
    table = Table(title="IoU in %", title_justify="left")
    table.add_column("class")
    table.add_column("share of pixels", justify="right")
    for title in titles:
        table.add_column(title, justify="right")
    rows, confusion = results[0]["per_class"], results[0].get("confusion_matrix")
    totals = [sum(row["support"] for row in rows)] * len(rows)
    if confusion and isinstance(confusion[0][0], list):  # With several labels a pixel, each label has its own matrix.
        totals = [sum(map(sum, own)) for own in confusion]
    for index, (row, total) in enumerate(zip(rows, totals, strict=True)):
        cells = [percent(result["per_class"][index]["iou"]) for result in results]
        table.add_row(Text(printable(row["name"])), percent(row["support"] / max(1, total)), *cells)
    table.add_section()
    table.add_row("mean IoU", "", *(percent(result["miou"]) for result in results))
    table.add_row("pixel accuracy", "", *(percent(result["pixel_accuracy"]) for result in results))
    return table


def weights_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of published weights; each row is that of `Published.row`, with `here`."""
    table = Table(title="Published weights", title_justify="left", box=box.SIMPLE)
    for title in ("name", "network"):
        table.add_column(title, no_wrap=True)
    for title in ("trained on", "published figure", "licence"):
        table.add_column(title)
    for title in ("parameters (M)", "file (MiB)", "here"):
        table.add_column(title, justify="right")
    for row in rows:
        size = f"{row['megabytes']:.1f}" if row["megabytes"] else "?"
        words = [row[key] or "-" for key in ("name", "network", "trained_on", "figure", "licence")]
        table.add_row(*words, f"{row['parameters']:.2f}", size, "yes" if row["here"] else "no")
    return table


def plain_console() -> Console:
    """Return where lines for people go: standard output. In a notebook these are plain lines of one cell's output,
    without colours and bars.
    """
    console = Console()
    return Console(force_jupyter=False, force_terminal=False, width=120) if console.is_jupyter else console


def percent(value: float | None) -> str:
    """Return a ratio 0 to 1 in percent with two decimals; "-" for None."""
    return "-" if value is None else f"{100 * value:.2f}"


@contextmanager
def elapsed(console: Console, text: str) -> Iterator[None]:
    """Show a text with the seconds so far on a terminal; print it once elsewhere."""
    if not console.is_terminal:
        console.print(f"{text}, which takes up to some ten minutes", highlight=False, soft_wrap=True)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


@contextmanager
def progress_bar(console: Console, *numbers: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total, 0 if unknown) that moves a bar on a terminal and does nothing elsewhere.

    Args:
      numbers: what stands beside the bar; by default how many are done.
    """
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (BarColumn(), *(numbers or [MofNCompleteColumn()]), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def progress_of_bytes() -> AbstractContextManager[Callable[[int, int], None]]:
    """Return `progress_bar` for bytes, on stderr."""
    return progress_bar(Console(stderr=True), DownloadColumn(), TransferSpeedColumn())


def note(line: str) -> None:
    """Print a note to stderr. Results go to stdout."""
    print(line, file=sys.stderr, flush=True)
