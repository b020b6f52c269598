"""Where the numbers of a run go: a JSONL file, TensorBoard, and the terminal."""

import json
import os
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deeplab_jax.files import parse_json
from deeplab_jax.train.events import EventFile
from deeplab_jax.train.faults import recording

METRICS_FILE = "metrics.jsonl"


class Writers:
    """Write scalars of a step everywhere; on a terminal a progress bar, in a log file plain lines.

    Records after `start` are dropped first: a run that was killed after its last checkpoint writes those steps again.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, console: Console) -> None:
        self.workdir, self._console = workdir, console
        self._file = workdir / METRICS_FILE
        with recording(workdir):
            self._truncate(start)
            self._jsonl = self._file.open("a", encoding="utf-8")
            self._events = EventFile(workdir / "tensorboard", start=start)
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
        # Closing a file whose disk was full writes, and fails, again: what failed first is what there is to tell.
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

    def line(self, step: int, text: str) -> None:
        """Show a step's numbers: beside the bar on a terminal, as a line otherwise."""
        if self._live:
            self._progress.update(self._task, completed=step, text=text)
        else:
            self.say(f"step {step}: {text}")

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _truncate(self, start: int) -> None:
        if not self._file.exists():
            return
        kept = []
        for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if parse_json(line)["step"] <= start:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # A line that a killed run left half-written.
                continue
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self._file)


class NoWriters(Writers):
    """Of the processes beside the first: nothing is written or printed."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, step: int) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float], *, prefix: str) -> None:
        pass

    def line(self, step: int, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass
