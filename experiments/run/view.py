"""What the user sees: the plan, the jobs as they run and the time that is left, the paper's tables with our numbers.

Times come from what was measured in the same regime, never from anything else.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Self

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from deeplab_jax.train.writers import METRICS_FILE
from experiments.report.cells import cells, headings, hours
from experiments.report.gather import TableResult
from experiments.run.files import read_records, state_of
from experiments.run.plan import Job, weights_name

LINE_EVERY = 60.0  # seconds between two plain lines about one job
SHOWN = 12  # jobs of the live overview

Key = tuple[Any, ...]
Pending = Mapping[str, Collection[str]]  # a job's name -> keys of the evaluations that it lacks


# How long jobs take.


@dataclass(frozen=True)
class Rates:
    """Mean times of what is finished. Each also stands under every beginning of its key.

    Attributes:
      steps: seconds of a training step, by model, output stride and batch size.
      evaluations: seconds of an evaluation, by its key and by the same.
    """

    steps: Mapping[Key, float]
    evaluations: Mapping[Key, float]

    def step(self, config: Mapping[str, Any]) -> float | None:
        """Return the seconds of a training's step, None where nothing was measured."""
        return _nearest(self.steps, _network(config))

    def seconds(self, job: Job, *, steps: int, evaluations: Collection[str]) -> float | None:
        """Return the seconds of so many steps and these evaluations of a job, None where nothing was measured."""
        network = _network(job.config)
        found = [_nearest(self.evaluations, (key, *network)) for key in evaluations]
        step = self.step(job.config)
        if step is None or None in found:
            return None
        return steps * step + sum(seconds for seconds in found if seconds is not None)


def rates(contents: Iterable[Mapping[str, Any]]) -> Rates:
    """Return the means over the rows of results."""
    # Rows share trainings and evaluations. By these keys each counts once.
    steps: dict[Any, tuple[Key, float]] = {}
    evaluations: dict[Any, tuple[Key, float]] = {}
    for content in contents:
        network, length = _network(content["config"]), content["config"]["train"]["steps"]
        for entry in content["seeds"]:
            training = (content["training"], entry["seed"])
            steps[training] = (network, entry["seconds"]["training"] / length)
            evaluations[training, content["evaluation"]] = (
                (content["evaluation"], *network),
                entry["seconds"]["evaluation"],
            )
        before = content.get("pretraining")
        if before and before["seconds"]:  # 0 where its log is lost.
            steps[before["name"]] = (_network(before["config"]), before["seconds"] / before["config"]["train"]["steps"])
    return Rates(_means(steps.values()), _means(evaluations.values()))


def _network(config: Mapping[str, Any]) -> Key:
    model = (config["model"]["name"], config["model"]["output_stride"]) if "model" in config else ()
    return (*model, config["train"]["batch_size"])


def _means(found: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    values: dict[Key, list[float]] = {}
    for key, value in found:
        for beginning in _beginnings(key):
            values.setdefault(beginning, []).append(value)
    return {key: mean(several) for key, several in values.items()}


def _nearest(means: Mapping[Key, float], key: Key) -> float | None:
    return next((means[beginning] for beginning in _beginnings(key) if beginning in means), None)


def _beginnings(key: Key) -> Iterator[Key]:
    """Yield the key, then its beginnings, down to the empty one."""
    return (key[:length] for length in range(len(key), -1, -1))


# What is printed.


def grid(title: str, columns: Sequence[str]) -> Grid:
    """Return an empty table."""
    table = Grid(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def wide(console: Console) -> Console:
    """Return a console that is wide enough for a row of a table, also where it is no terminal."""
    return console if console.is_terminal else Console(width=max(console.width, 160), file=console.file)


def plan_table(jobs: Sequence[Job], pending: Pending, runs: Path, rates: Rates) -> Grid:
    """Return every job: what it serves, its state, and the estimated time that is left of it."""
    table = grid("jobs", ("job", "network", "steps", "serves", "state", "time left"))
    for job in jobs:
        step, _ = progress(runs, job.name)
        steps = job.config.train.steps
        state = "finished" if not pending[job.name] else f"at step {step}" if step else "waiting"
        left = rates.seconds(job, steps=steps - min(step, steps), evaluations=pending[job.name])
        serves = ", ".join(dict.fromkeys(name.split("/")[0] for name in job.serves))
        table.add_row(
            job.name,
            job.network,
            str(steps),
            f"{serves} ({len(job.serves)} rows)",
            state,
            hours(left) if pending[job.name] else "-",
        )
    return table


def time_left(jobs: Sequence[Job], pending: Pending, runs: Path, rates: Rates, at_once: int) -> float | None:
    """Return the estimated seconds of all that is not finished, None where that is not known.

    Args:
      jobs: all of them.
      pending: what each lacks.
      runs: folder of their run directories.
      rates: what was measured.
      at_once: how many jobs run at the same time.
    """
    total = 0.0
    for job in jobs:
        if pending[job.name]:
            step, _ = progress(runs, job.name)
            steps = max(job.config.train.steps - step, 0)
            seconds = rates.seconds(job, steps=steps, evaluations=pending[job.name])
            if seconds is None:
                return None
            total += seconds
    for config, steps in _pretrainings_left([job for job in jobs if pending[job.name]], runs):
        total += steps * (rates.step(config) or 0.0)
    return total / at_once


def _pretrainings_left(jobs: Sequence[Job], runs: Path) -> list[tuple[ConfigDict, int]]:
    """Return the trainings whose backbones jobs are going to start from, and the steps that are left of each."""
    waiting = {
        weights_name(job.pretraining): job.pretraining
        for job in jobs
        if job.pretraining is not None and not progress(runs, job.name)[0]
    }
    return [(config, config.train.steps - progress(runs, name)[0]) for name, config in waiting.items()]


class View:
    """The jobs as they run: a live table on a terminal, plain lines elsewhere."""

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
        """Print a line of its own."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def change(self, job: Job, state: str, *, why: str = "") -> None:
        """Print a job's new state: "running", "done" or "failed"."""
        self.states[job.name] = state
        self._said[job.name] = time.monotonic()
        self.say(f"{state}: {job.name} ({job.network}; {', '.join(job.serves)}){why}")

    def refresh(self) -> None:
        """Show how far the running jobs are."""
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
    """Return the paper's table with our numbers, as the report has it."""
    shown = grid("", headings(result))
    for row in result.rows:
        shown.add_row(*(Text(cell.text) for cell in cells(result, row)))
    return shown


def progress(runs: Path, name: str) -> tuple[int, float | None]:
    """Return the last step that a run has logged, and its loss."""
    return state_of(read_records(runs / name / METRICS_FILE))
