"""Runs jobs on this machine, one after another or several at once, or all on Slurm, and watches them.

Small networks gain little from a second core. On two cores, two jobs at once end sooner than one after the other.
"""

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from deeplab_jax.commands import INTERRUPTED, PREEMPTED
from deeplab_jax.errors import UserError
from deeplab_jax.train.from_config import open_split
from deeplab_jax.train.signals import Interrupted
from experiments.run.execute import is_pretrained
from experiments.run.plan import Asked, Job, weights_name
from experiments.run.processes import start_job
from experiments.run.results import Store
from experiments.run.slurm import Slurm, SlurmJob
from experiments.run.view import Rates, View

POLL = 0.5  # seconds
RESTARTS = 100  # of one job after a signal has stopped it
SAVED = "The running jobs have saved their state."
SUBMITTED = "The submitted jobs stay with Slurm (scancel ends them)."

Started = subprocess.Popen[bytes] | SlurmJob
Start = Callable[[Sequence[str], Path], Started]  # Takes the command and the file of its output.


def check_data(jobs: Sequence[Job]) -> None:
    """Raise a UserError where the data of a job cannot be opened. It is called before the first job starts."""
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
    command: Sequence[str],
    runs: Path,
    console: Console,
    asked: Sequence[Asked],
    store: Store,
    at_once: int,
    slurm: Slurm | None = None,
) -> list[str]:
    """Run jobs, write the rows of each job when it ends, and return a line for every job that failed.

    With several `at_once`, each has its own share of the cores. Slurm gets all jobs at once.
    """
    waiting, failed, free = list(jobs), list[str](), list(range(len(jobs) if slurm else at_once))
    start: Start = slurm.start if slurm else start_job
    running: dict[int, tuple[Job, Started]] = {}
    tries: Counter[str] = Counter()
    with View(console, jobs, runs, Rates(store.all_rows()), at_once) as view:
        try:
            while waiting or running:
                while waiting and free:
                    job, share = next_job(waiting, [other for other, _ in running.values()], runs), free.pop(0)
                    waiting.remove(job)
                    cores = ["--cores", f"{share}/{at_once}"] if at_once > 1 else []
                    running[share] = job, start([*command, "--job", job.name, *cores], log_of(runs, job))
                    view.change(job, "running")
                time.sleep(POLL)
                for share, (job, process) in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[share]
                    free.append(share)
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
                    view.rates = Rates(store.all_rows())
                view.refresh()
        except (KeyboardInterrupt, Interrupted) as stop:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
            preempted = isinstance(stop, Interrupted) and stop.preempted
            raise Interrupted(SUBMITTED if slurm else SAVED, preempted=preempted) from None
    return failed


def next_job(waiting: Sequence[Job], running: Iterable[Job], runs: Path) -> Job:
    """Return the first waiting job that can train at once. A job that would wait for a backbone, because a running job
    trains it, is only taken where there is no other.
    """
    trained = {
        weights_name(job.pretraining)
        for job in running
        if job.pretraining is not None and not is_pretrained(job.pretraining, runs)
    }
    able = (job for job in waiting if job.pretraining is None or weights_name(job.pretraining) not in trained)
    return next(able, waiting[0])


def log_of(runs: Path, job: Job) -> Path:
    """Return the file that gets the output of a job."""
    return runs / f"{job.name}.log"


def last_line(log: Path) -> str:
    """Return why a job failed: the last line of its log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it said nothing; see {log.parent}")
