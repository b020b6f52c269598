"""The loop that runs jobs: starts them, watches them, and has the results of each written as it ends."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deeplab_jax.commands import INTERRUPTED, PREEMPTED
from deeplab_jax.errors import UserError
from deeplab_jax.train.faults import Interrupted
from deeplab_jax.train.from_config import open_split
from experiments.runner.estimate import rates
from experiments.runner.jobs import Asked, Job
from experiments.runner.launchers import Launcher, Running
from experiments.runner.overview import View
from experiments.runner.results import Store

POLL = 0.5  # seconds
RESTARTS = 100  # of one job that a scheduler takes its machine from


def check_data(jobs: Sequence[Job]) -> None:
    """Raise a UserError where a job's data cannot be opened, before the first one starts."""
    seen = set()
    for job in jobs:
        data = job.config.data
        for split in (data.train_split, data.val_split):
            key = (data.name, split, data.dir, str(data.options))
            if key not in seen:
                seen.add(key)
                try:
                    open_split(job.config, split)
                except UserError as error:
                    raise UserError(f"{error} (here: --data_dir)") from None


def run_jobs(
    jobs: Sequence[Job],
    launcher: Launcher,
    command: Sequence[str],
    runs: Path,
    console: Console,
    asked: Sequence[Asked],
    store: Store,
) -> list[str]:
    """Run jobs, write the rows of each as it ends, and return a line for every one that failed."""
    waiting, failed = list(jobs), []
    running: dict[str, tuple[Job, Running]] = {}
    tries: Counter[str] = Counter()
    with View(console, jobs, runs, rates(store.all_rows()), max(launcher.limit, 1)) as view:
        try:
            while waiting or running:
                while waiting and (not launcher.limit or len(running) < launcher.limit):
                    job = waiting.pop(0)
                    started = launcher.start(job.name, [*command, "--job", job.name], log_of(runs, job))
                    running[job.name] = (job, started)
                    view.change(job, "running")
                time.sleep(POLL)
                for job, process in list(running.values()):
                    code = process.code()
                    if code is None:
                        continue
                    del running[job.name]
                    if code == INTERRUPTED:
                        raise KeyboardInterrupt
                    if code == PREEMPTED and tries[job.name] < RESTARTS:
                        tries[job.name] += 1
                        waiting.insert(0, job)
                        view.change(job, "waiting", why=": stopped by a signal, goes on")
                        continue
                    if code:
                        failed.append(f"{job.name}: {last_line(log_of(runs, job))}")
                    view.change(job, "failed" if code else "done", why=f": {failed[-1]}" if code else "")
                    for one in asked:
                        if one.name in job.serves:
                            store.collect(one)
                    view.rates = rates(store.all_rows())
                view.refresh()
        except (KeyboardInterrupt, Interrupted) as stop:
            for _, process in running.values():
                process.stop()
            preempted = isinstance(stop, Interrupted) and stop.preempted
            raise Interrupted(launcher.left, preempted=preempted) from None
    return failed


def log_of(runs: Path, job: Job) -> Path:
    """Return the file that gets what a job prints."""
    return runs / f"{job.name}.log"


def last_line(log: Path) -> str:
    """Return why a job failed: the last line of its log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it said nothing; see {log.parent}")
