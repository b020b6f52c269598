"""What the user sees: the plan, the jobs as they run, and the paper's table with our numbers beside it."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Self

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from deeplab_jax.train.writers import METRICS_FILE
from experiments.runner.estimate import Rates, hours
from experiments.runner.jobs import Job, weights_name
from experiments.runner.progress import state_of
from experiments.runner.results import measure
from experiments.tables import Table
from experiments.tables.table import MEASURES

LINE_EVERY = 60.0  # seconds between two plain lines about one job
SHOWN = 12  # jobs of the live overview

Pending = Mapping[str, Collection[str]]  # a job's name -> keys of the evaluations that it lacks


def grid(title: str, columns: Sequence[str]) -> Grid:
    """Return an empty table."""
    table = Grid(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def wide(console: Console) -> Console:
    """Return a console whose lines hold a row of a table, also where it is no terminal."""
    return console if console.is_terminal else Console(width=max(console.width, 160), file=console.file)


def plan_table(jobs: Sequence[Job], pending: Pending, runs: Path, rates: Rates) -> Grid:
    """Return every job: what it serves, its state, and the estimated time that is left of it."""
    table = grid("jobs", ("job", "network", "steps", "serves", "state", "time left"))
    for job in jobs:
        step, _ = state_of(runs / job.name / METRICS_FILE)
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
            step, _ = state_of(runs / job.name / METRICS_FILE)
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
        if job.pretraining is not None and not state_of(runs / job.name / METRICS_FILE)[0]
    }
    return [(config, config.train.steps - state_of(runs / name / METRICS_FILE)[0]) for name, config in waiting.items()]


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
        """Tell a job's new state: "running", "done" or "failed"."""
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
        step, loss = state_of(self._runs / job.name / METRICS_FILE)
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


def results_table(table: Table, contents: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the paper's table with our numbers: the mean over seeds, and their range where there are several."""
    headings = [*table.columns]
    printed = [name for name in table.measures if any(name in content["paper"] for content in contents)]
    for name in table.measures:
        headings += [f"{MEASURES[name]}: paper", "ours"] if name in printed else [MEASURES[name]]
    shown = grid("", headings)
    for content in contents:
        cells = [{True: "yes", False: ""}[c] if isinstance(c, bool) else str(c) for c in content["cells"].values()]
        for name in table.measures:
            if name in printed:
                cells.append(f"{content['paper'][name]:.2f}" if name in content["paper"] else "")
            cells.append(ours(content, name))
        shown.add_row(*cells)
    return shown


def ours(content: Mapping[str, Any], name: str) -> str:
    """Return a measure for a reader."""
    if "not_run" in content:
        return f"not run here: {content['not_run']}"
    if "missing" in content:
        return "not yet"
    values = measure(content, name)
    if not values:
        return "none"
    spread = f" ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"
