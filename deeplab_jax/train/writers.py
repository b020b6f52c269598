"""Where the messages, numbers and pictures of a run go: a JSONL file, TensorBoard, trackers, and the terminal."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deeplab_jax.config import to_plain
from deeplab_jax.files import replacing
from deeplab_jax.train.events import EventFile
from deeplab_jax.train.faults import recording
from deeplab_jax.train.record import RECORD_FILE, records
from deeplab_jax.train.schedules import Schedule
from deeplab_jax.train.trackers import Trackers


class Writers:
    """Writes scalars of a step everywhere; shows a progress bar on a terminal, plain lines in a log file.

    It drops older records after `start` first: a run that was killed after its last checkpoint writes those steps
    again.

    Args:
      workdir: the run directory.
      start: the step that was restored.
      steps: of the whole run.
      console: where to print.
      config: of the run; it names the trackers.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, console: Console, config: ConfigDict) -> None:
        self.workdir, self._console = workdir, console
        self._file = workdir / RECORD_FILE
        with recording(workdir):
            self._truncate(start)
            self._jsonl = self._file.open("a", encoding="utf-8")
            self._events = EventFile(workdir / "tensorboard", start=start)
        self._trackers = Trackers(config.train.trackers, workdir, to_plain(config), self.say)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._live = console.is_terminal
        self._task = self._progress.add_task("train", total=steps, completed=start, text="")

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()
        self._trackers.close(failed=error is not None)
        # If the disk was full, closing its file writes, and fails, again. The first failure is the one to report.
        with suppress(OSError) if error else recording(self.workdir), closing(self._events), closing(self._jsonl):
            pass

    def step(self, step: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step)

    def scalars(self, step: int, values: Mapping[str, float], *, prefix: str) -> None:
        """Write scalars under `prefix/`."""
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        with recording(self.workdir):
            self._jsonl.write(json.dumps({"step": step, **named}) + "\n")
            self._jsonl.flush()
            self._events.scalars(step, named)
        self._trackers.scalars(step, named)

    def picture(self, step: int, name: str, file: Path) -> None:
        """Write the picture of a step, a PNG file, to TensorBoard and to the trackers."""
        with recording(self.workdir):
            self._events.picture(step, name, file)
        self._trackers.picture(step, name, file)

    def line(self, step: int, text: str) -> None:
        """Show a step's numbers: beside the bar on a terminal, as a line otherwise."""
        if self._live:
            self._progress.update(self._task, completed=step, text=text)
        else:
            self.say(f"step {step}: {text}")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _truncate(self, start: int) -> None:
        if self._file.exists():
            kept = [json.dumps(record) + "\n" for record in records(self._file) if record["step"] <= start]
            with replacing(self._file) as fresh:
                fresh.write_text("".join(kept), encoding="utf-8")


class NoWriters(Writers):
    """The writers of the processes other than the first: they write and print nothing."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def __enter__(self) -> Self:
        return self

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    __exit__ = step = scalars = picture = line = say = _nothing


class Clock:
    """Throughput, and the share of time in which the devices waited for data, since the last restart."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start the count again."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def fetch(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, or None at the end; `wait_for_step` uses the time that it took."""
        began = time.perf_counter()
        batch = next(batches, None)
        self._fetching = time.perf_counter() - began
        return batch

    def wait_for_step(self, metrics: Any) -> None:
        """Wait for the step that returns `metrics`, and count it; the last batch was fetched while the step ran.

        If the devices were already done, all of the fetching time counts as waiting: an upper bound.
        """
        began = time.perf_counter()
        jax.block_until_ready(metrics)
        if time.perf_counter() - began < 1e-3:
            self._waited += self._fetching
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return images per second and the share of waiting, 0 to 1."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        return {"images_per_second": self._steps * self._batch_size / elapsed, "data_wait": self._waited / elapsed}


def report(
    number: int, updates: int, metrics: dict[str, jax.Array], schedule: Schedule, clock: Clock, writers: Writers
) -> dict[str, float]:
    """Write a step's numbers and return them, without those that are not finite, as of a skipped update.

    The learning rate is that of the last of `updates`; skipped updates are not counted there. It is left out if it is
    not known.
    """
    values = {name: float(value) for name, value in metrics.items()}
    values["learning_rate"] = float(schedule(max(updates - 1, 0)))
    speed = clock.read()
    written = {name: value for name, value in values.items() if math.isfinite(value)} | speed
    writers.scalars(number, written, prefix="train")
    rate = f", learning rate {values['learning_rate']:.2e}" if "learning_rate" in written else ""
    writers.line(
        number,
        f"loss {values['loss']:.4f}, pixel accuracy {values['pixel_accuracy']:.3f}{rate}, "
        f"{speed['images_per_second']:.1f} images/s, waiting for data {speed['data_wait']:.1%}",
    )
    return written
