"""Curves of a training while it runs, in a notebook or in a file."""

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from deeplab_jax.terminal import note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS, RATE, IOU = "#4477aa", "#bbbbbb", "#228833"


class LivePlot:
    """The loss, the learning rate and the validation mIoU so far, for `train(..., on_step=plot, on_evaluation=plot)`.

    In a notebook it draws below the cell, and draws over its own picture. Elsewhere it keeps the numbers, and writes
    `file` after each evaluation; if that fails, it says so, and the training goes on. A step whose loss was not finite
    is not drawn.

    Args:
      workdir: a run directory; what its record has is drawn, too, for a run that goes on. None: only what comes.
      file: PNG file; "" writes none.
      every: seconds between two drawings in a notebook, apart from evaluations.

    Attributes:
      steps: the numbers of each logged step; see `on_step` of `train`.
      evaluations: the results of each evaluated step.
    """

    def __init__(self, workdir: str | Path | None = None, *, file: str | Path = "", every: float = 2.0) -> None:
        self.steps: dict[int, Mapping[str, Any]] = {}
        self.evaluations: dict[int, Mapping[str, Any]] = {}
        self._file, self._every, self._drawn, self._display = file, every, -math.inf, _display()
        self._shown: Any = None
        if workdir is not None:
            self._read(Path(workdir))

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the numbers of a step or the results of an evaluation, which has an mIoU."""
        evaluated = "miou" in metrics
        (self.evaluations if evaluated else self.steps)[step] = metrics
        if evaluated and self._file:
            try:
                self.save(self._file)
            except UserError as error:  # A picture must not cost a training.
                note(f"note: {error}; training goes on")
        if evaluated or time.monotonic() - self._drawn >= self._every:
            self._show()

    def figure(self) -> "Figure":
        """Return the curves."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        losses = {step: self.steps[step]["loss"] for step in sorted(self.steps) if "loss" in self.steps[step]}
        left.plot(list(losses), list(losses.values()), color=LOSS, marker="o" if len(losses) < 30 else "", markersize=3)
        left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
        rates = {step: self.steps[step]["learning_rate"] for step in losses if "learning_rate" in self.steps[step]}
        if rates:
            beside = left.twinx()
            beside.plot(list(rates), list(rates.values()), color=RATE, linewidth=1)
            beside.set(ylim=(0, None))
            beside.set_ylabel("learning rate", color="#888888")
            beside.tick_params(colors="#888888")
            beside.spines[["top"]].set_visible(False)
            left.set_zorder(beside.get_zorder() + 1)  # The loss is drawn over the rate.
            left.patch.set_visible(False)
        mious = {step: self.evaluations[step]["miou"] for step in sorted(self.evaluations)}
        known = {step: 100 * miou for step, miou in mious.items() if miou is not None}
        right.plot(list(known), list(known.values()), color=IOU, marker="o", markersize=4)
        right.set(xlabel="step", ylabel="validation mIoU in %", ylim=(0, 100))
        if known:
            best = max(known, key=lambda step: (known[step], -step))
            right.set_title(f"best {known[best]:.2f} at step {best}", fontsize="medium")
        for axes in (left, right):
            axes.set_xlim(0, None)
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def save(self, file: str | Path) -> Path:
        """Write the curves as a PNG file, whole or not at all, and return its path."""
        return write_whole(file, lambda fresh: fresh.write_bytes(self._png()))

    def _png(self) -> bytes:
        content = io.BytesIO()
        self.figure().savefig(content, dpi=110, format="png")
        return content.getvalue()

    def _show(self) -> None:
        if self._display is None:
            return
        self._drawn = time.monotonic()
        picture = self._display.Image(self._png())
        if self._shown is None:
            self._shown = self._display.display(picture, display_id=True)
        else:
            self._shown.update(picture)

    def _read(self, workdir: Path) -> None:
        from deeplab_jax.train.record import RECORD_FILE, records

        for values in records(workdir / RECORD_FILE):
            for prefix, name, found in (("train/", "loss", self.steps), ("val/", "miou", self.evaluations)):
                if prefix + name in values:
                    found[values["step"]] = {key.removeprefix(prefix): value for key, value in values.items()}
        if self.steps or self.evaluations:
            self._show()


def _display() -> Any:
    """Return `IPython.display` in a notebook, otherwise None."""
    try:
        from IPython import display, get_ipython
    except ImportError:
        return None
    return display if getattr(get_ipython(), "kernel", None) is not None else None
