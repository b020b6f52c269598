"""Shows the user the plan, the running jobs with the time that is left, and the tables with the paper's and our
numbers.

Times are estimated from finished jobs of the same regime only.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path
from statistics import mean
from typing import Any, Self

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from deeplab_jax.train.record import RECORD_FILE, records
from experiments.outcomes.cells import cells, headings, hours
from experiments.outcomes.files import state_of
from experiments.outcomes.gather import TableResult
from experiments.run.plan import Job, weights_name

LINE_EVERY = 60.0  # seconds between two plain lines about one job
SHOWN = 12  # jobs of the live overview

Key = tuple[Any, ...]
Pending = Mapping[str, Collection[str]]  # a job's name -> keys of the evaluations that it lacks


# The time that jobs take.


class Rates:
    """Mean times of the finished jobs that are most alike.

    They are known by model, output stride and batch size, evaluations also by their key. The mean is over all jobs that
    share as much of this as any job does, from its beginning.

    Args:
      contents: rows of results.
    """

    def __init__(self, contents: Iterable[Mapping[str, Any]]) -> None:
        # Rows share trainings and evaluations. With these keys, each counts once.
        steps: dict[Any, tuple[Key, float]] = {}
        evaluations: dict[Any, tuple[Key, float]] = {}
        for content in contents:
            network, length = _network(content["config"]), content["config"]["train"]["steps"]
            for entry in content["seeds"]:
                training, key = (content["training"], entry["seed"]), content["evaluation"]
                steps[training] = network, entry["seconds"]["training"] / length
                evaluations[training, key] = (key, *network), entry["seconds"]["evaluation"]
            before = content.get("pretraining")
            if before and before["seconds"]:  # 0 means that the log is lost.
                config = before["config"]
                steps[before["name"]] = _network(config), before["seconds"] / config["train"]["steps"]
        self._steps, self._evaluations = list(steps.values()), list(evaluations.values())

    def step(self, config: Mapping[str, Any]) -> float | None:
        """Return the seconds of a training's step, None where nothing was measured."""
        return _mean(self._steps, _network(config))

    def seconds(self, job: Job, *, steps: int, evaluations: Collection[str]) -> float | None:
        """Return the seconds of these steps and evaluations of a job, None where nothing was measured."""
        network, step = _network(job.config), self.step(job.config)
        found = [_mean(self._evaluations, (key, *network)) for key in evaluations]
        if step is None or None in found:
            return None
        return steps * step + sum(seconds for seconds in found if seconds is not None)


def _network(config: Mapping[str, Any]) -> Key:
    return config["model"]["name"], config["model"]["output_stride"], config["train"]["batch_size"]


def _mean(measured: Iterable[tuple[Key, float]], key: Key) -> float | None:
    by_likeness: dict[int, list[float]] = defaultdict(list)
    for other, value in measured:
        by_likeness[len(list(takewhile(bool, map(eq, key, other))))].append(value)
    return mean(by_likeness[max(by_likeness)]) if by_likeness else None


# The tables.


def grid(title: str, columns: Sequence[str]) -> Grid:
    """Return an empty table."""
    table = Grid(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def wide(console: Console) -> Console:
    """Return a console that is wide enough for a row of a table, even where it is no terminal."""
    return console if console.is_terminal else Console(width=max(console.width, 160), file=console.file)


def plan_table(jobs: Sequence[Job], pending: Pending, runs: Path, rates: Rates) -> Grid:
    """Return a table of all jobs: their rows, their states, and the estimated time that is left."""
    table = grid("jobs", ("job", "network", "steps", "serves", "state", "time left"))
    for job in jobs:
        step, _ = progress(runs, job.name)
        state = "finished" if not pending[job.name] else f"at step {step}" if step else "waiting"
        serves = ", ".join(dict.fromkeys(name.split("/")[0] for name in job.serves))
        table.add_row(
            job.name,
            job.network,
            str(job.config.train.steps),
            f"{serves} ({len(job.serves)} rows)",
            state,
            hours(_job_left(job, step, pending, rates)) if pending[job.name] else "-",
        )
    return table


def _job_left(job: Job, step: int, pending: Pending, rates: Rates) -> float | None:
    """Return the estimated seconds of a job that has logged `step`, None where they are not known."""
    return rates.seconds(job, steps=max(job.config.train.steps - step, 0), evaluations=pending[job.name])


def time_left(jobs: Sequence[Job], pending: Pending, runs: Path, rates: Rates, at_once: int) -> float | None:
    """Return the estimated seconds until all jobs are finished, `at_once` at a time; None where they are not known."""
    unfinished = [job for job in jobs if pending[job.name]]
    total = 0.0
    for job in unfinished:
        seconds = _job_left(job, progress(runs, job.name)[0], pending, rates)
        if seconds is None:
            return None
        total += seconds
    for config, steps in _pretrainings_left(unfinished, runs):
        total += steps * (rates.step(config) or 0.0)
    return total / at_once


def _pretrainings_left(jobs: Sequence[Job], runs: Path) -> list[tuple[ConfigDict, int]]:
    """Return the trainings whose backbones the jobs still need, and the steps that are left of each."""
    waiting = {
        weights_name(job.pretraining): job.pretraining
        for job in jobs
        if job.pretraining is not None and not progress(runs, job.name)[0]
    }
    return [(config, config.train.steps - progress(runs, name)[0]) for name, config in waiting.items()]


class View:
    """Shows the jobs while they run: a live table on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, jobs: Sequence[Job], runs: Path, rates: Rates, at_once: int) -> None:
        self._console, self._jobs, self._runs, self.rates, self._at_once = console, jobs, runs, rates, at_once
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._said: dict[str, float] = {}
        self.states = {job.name: "waiting" for job in jobs}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def change(self, job: Job, state: str, *, why: str = "") -> None:
        """Print a job's new state: "running", "done" or "failed"."""
        self.states[job.name] = state
        self._said[job.name] = time.monotonic()
        self.say(f"{state}: {job.name} ({job.network}; {', '.join(job.serves)}){why}")

    def refresh(self) -> None:
        """Show the progress of the running jobs."""
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        for job in self._jobs:
            if self.states[job.name] == "running" and time.monotonic() - self._said[job.name] > LINE_EVERY:
                self._said[job.name] = time.monotonic()
                self.say(f"running: {job.name}, {self._progress(job)}")

    def _progress(self, job: Job) -> str:
        step, loss = progress(self._runs, job.name)
        steps = job.config.train.steps
        if step >= steps:
            return "evaluating"
        return f"step {step} of {steps}" + ("" if loss is None else f", loss {loss:.4f}")

    def _table(self) -> Grid:
        count = {state: list(self.states.values()).count(state) for state in ("done", "running", "waiting", "failed")}
        pending = {
            job.name: list(job.evaluations) if self.states[job.name] in ("waiting", "running") else []
            for job in self._jobs
        }
        left = hours(time_left(self._jobs, pending, self._runs, self.rates, self._at_once))
        table = grid(
            f"{', '.join(f'{n} {state}' for state, n in count.items())}; time left: {left}", ("job", "network", "state")
        )
        first = [job for job in self._jobs if self.states[job.name] in ("running", "failed")]
        waiting = [job for job in self._jobs if self.states[job.name] == "waiting"]
        for job in [*first, *waiting][:SHOWN]:
            state = self.states[job.name]
            table.add_row(job.name, job.network, self._progress(job) if state == "running" else state)
        return table


def results_table(result: TableResult) -> Grid:
    """Return the paper's table with our numbers, with the columns of the report."""
    shown = grid("", headings(result))
    for row in result.rows:
        shown.add_row(*(Text(cell.text) for cell in cells(result, row)))
    return shown


def progress(runs: Path, name: str) -> tuple[int, float | None]:
    """Return the last step that a run has logged, and its loss."""
    return state_of(records(runs / name / RECORD_FILE))
