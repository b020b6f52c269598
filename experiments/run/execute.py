"""Runs jobs. A job trains a network and evaluates it. The runner starts the jobs and watches them.

A job that was killed goes on at its next start.
"""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import files
from deeplab_jax.commands import INTERRUPTED, PREEMPTED
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.protocol import split_section
from deeplab_jax.provenance import git_commit
from deeplab_jax.train.allocator import keep_freed_memory
from deeplab_jax.train.from_config import open_split
from deeplab_jax.train.loop import train
from deeplab_jax.train.signals import Interrupted
from deeplab_jax.train.workdir import RUN_FILE
from deeplab_jax.weights.folder import load
from experiments.output import write_json
from experiments.run.files import Unreadable, newest_step, read_json
from experiments.run.launchers import Launcher, LocalJob, SlurmJob
from experiments.run.per_image import counts_of, write_counts
from experiments.run.plan import Asked, Job, evaluation_counts, evaluation_file, weights_name
from experiments.run.results import EVALUATION, Store
from experiments.run.view import View, rates

# The metrics that the file of an evaluation keeps: all but the confusion matrix.
KEPT = ("miou", "pixel_accuracy", "mean_accuracy", "per_class", "protocol", "model", "versions", "seconds")
POLL = 0.5  # seconds
RESTARTS = 100  # of one job after a scheduler has taken its machine away


def work(job: Job, runs: Path, *, again: bool) -> None:
    """Train and evaluate in the run directory `runs/NAME`.

    Args:
      job: the job.
      runs: folder of the run directories of the regime.
      again: set trainings and evaluations of another commit aside, and run them again.

    Raises:
      UserError: another process works on this job, or `train` or `evaluate` raises it.
      Interrupted: after Ctrl-C, once the state is saved.
    """
    keep_freed_memory()
    workdir = runs / job.name
    busy = f"{workdir}: another process is at work on it; wait for it to end"
    with files.locked(runs / f"{job.name}.lock", busy, option="--runs"):
        commit = git_commit()
        if again:
            _set_aside(workdir, commit)
        missing = {key: options for key, options in job.evaluations.items() if not _evaluated(workdir, key, again)}
        if not missing:
            return
        config = job.config.copy_and_resolve_references()
        config.evaluate.per_image = True
        if job.pretraining is not None and not newest_step(workdir):
            config.init, config.init_scope = str(pretrained(job.pretraining, runs, again=again)), "backbone"
        # Trainings of one key differ in nothing that changes the weights.
        last = train(config, workdir, allow_config_change=True)
        final = _final_evaluation(job)
        if last is not None and final in missing:
            _write(workdir, final, last)
            del missing[final]
        for key, options in missing.items():
            _write(workdir, key, _evaluate(workdir, job.config, options))


def pretrained(config: ConfigDict, runs: Path, *, again: bool) -> Path:
    """Return the run directory of a training whose backbone jobs start from. The first job that needs it runs this
    training, and the others wait for it.

    Args:
      config: configuration of the training.
      runs, again: as in `work`.
    """
    workdir = runs / weights_name(config)
    with files.locked(workdir.with_suffix(".lock"), "", option="--runs"):
        if again:
            _set_aside(workdir, git_commit())
        if newest_step(workdir) < config.train.steps:
            print(f"first the backbone, in {workdir}", flush=True)
            train(config, workdir, allow_config_change=True)
    return workdir


def trained_commits(workdir: Path) -> set[str]:
    """Return the commits of the code at each start of a run, "unknown" where the run does not say."""
    try:
        return {str(start["commit"]) for start in files.read_json(workdir / RUN_FILE)} or {"unknown"}
    except (OSError, ValueError, LookupError, TypeError):
        return {"unknown"}


def end_with_parent() -> None:
    """End this process when its standard input ends. That happens when the runner that started it ends."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # Without a buffer, whose lock would hold up the end of the process.
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _evaluate(workdir: Path, config: ConfigDict, options: Any) -> Results:
    """Evaluate the last weights, with the counts of each image."""
    model, variables, _ = load(workdir, checkpoint="newest")
    source = open_split(config, config.data.val_split)
    protocol, how = split_section({**options, "per_image": True})
    return evaluate(model, variables, source, protocol, split=config.data.val_split, **how)


def _evaluated(workdir: Path, key: str, again: bool) -> bool:
    file = evaluation_file(workdir, key)
    try:
        content = read_json(file, needs=EVALUATION)
    except Unreadable as error:
        print(f"{file}: cannot be read ({error}); evaluated again", flush=True)
        return False
    return content is not None and not (again and set(content["commits"]) != {git_commit()})


def _final_evaluation(job: Job) -> str:
    """Return the key of the evaluation with which the training itself ends, "" where no row asks for it."""
    plain = job.config.evaluate.to_dict()
    return next((key for key, options in job.evaluations.items() if dict(options) == plain), "")


def _write(workdir: Path, key: str, results: Results) -> None:
    write_counts(evaluation_counts(workdir, key), counts_of(results["per_image"]["every"]))
    commits = sorted({*trained_commits(workdir), git_commit()})
    kept = {name: results[name] for name in (*KEPT, *(["trimap"] if "trimap" in results else []))}
    write_json(evaluation_file(workdir, key), {"commits": commits, **kept})


def _set_aside(workdir: Path, commit: str) -> None:
    """Rename a run of another commit."""
    if workdir.exists() and trained_commits(workdir) != {commit}:
        number = 1
        while (name := workdir.with_name(f"{workdir.name}.old{number}")).exists():
            number += 1
        workdir.rename(name)


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
    launcher: Launcher,
    command: Sequence[str],
    runs: Path,
    console: Console,
    asked: Sequence[Asked],
    store: Store,
) -> list[str]:
    """Run jobs, write the rows of each job when it ends, and return a line for every job that failed."""
    waiting, failed = list(jobs), []
    running: dict[str, tuple[Job, LocalJob | SlurmJob]] = {}
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
    """Return the file that gets the output of a job."""
    return runs / f"{job.name}.log"


def last_line(log: Path) -> str:
    """Return why a job failed: the last line of its log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it said nothing; see {log.parent}")
