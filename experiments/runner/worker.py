"""Does one job: trains what is not trained, evaluates what is not evaluated. After a kill the next start goes on."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import files as whole_files
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.protocol import split_section
from deeplab_jax.files import locked
from deeplab_jax.provenance import git_commit
from deeplab_jax.train.from_config import open_split
from deeplab_jax.train.loop import train
from deeplab_jax.train.run import RUN_FILE
from deeplab_jax.weights.folder import CHECKPOINTS, load
from experiments.runner.files import Unreadable, read_json, write_json
from experiments.runner.jobs import Job, evaluation_file, weights_name

# What an evaluation keeps of the metrics: all but the confusion matrix.
KEPT = ("miou", "pixel_accuracy", "mean_accuracy", "per_class", "protocol", "model", "versions", "seconds")
NEEDED = ("miou", "commits", "seconds")


def work(job: Job, runs: Path, *, again: bool) -> None:
    """Train and evaluate, in `runs/NAME`.

    Args:
      job: what to do.
      runs: folder of the run directories of the scale.
      again: what another commit trained or evaluated is set aside, and done anew.

    Raises:
      UserError: another process does this job already, or what `train` and `evaluate` raise.
      Interrupted: after Ctrl-C, once the state is saved.
    """
    workdir = runs / job.name
    busy = f"{workdir}: another process is at work on it; wait for it to end"
    with locked(runs / f"{job.name}.lock", busy, option="--runs"):
        commit = git_commit()
        if again:
            _set_aside(workdir, commit)
        missing = {key: options for key, options in job.evaluations.items() if not _evaluated(workdir, key, again)}
        if not missing:
            return
        config = job.config.copy_and_resolve_references()
        if job.pretraining is not None and not _newest_step(workdir):
            config.init, config.init_scope = str(pretrained(job.pretraining, runs, again=again)), "backbone"
        # The key of a job says that nothing differs which moves a weight.
        last = train(config, workdir, allow_config_change=True)
        own = _key_of(job.config, job)
        if last is not None and own in missing:
            _write(workdir, own, last)
            del missing[own]
        for key, options in missing.items():
            _write(workdir, key, _evaluate(workdir, job.config, options))


def pretrained(config: ConfigDict, runs: Path, *, again: bool) -> Path:
    """Return the run directory of the training that jobs start from; the first one that needs it trains it, and the
    others wait. The arguments are those of `work`.
    """
    workdir = runs / weights_name(config)
    with locked(workdir.with_suffix(".lock"), "", option="--runs"):
        if again:
            _set_aside(workdir, git_commit())
        if _newest_step(workdir) < config.train.steps:
            print(f"first the backbone, in {workdir}", flush=True)
            train(config, workdir, allow_config_change=True)
    return workdir


def _newest_step(workdir: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    if not (workdir / CHECKPOINTS).is_dir():
        return 0
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.latest() or 0


def trained_commits(workdir: Path) -> set[str]:
    """Return the commits under which a run was started and went on, "unknown" where it does not say."""
    try:
        return {str(start["commit"]) for start in whole_files.read_json(workdir / RUN_FILE)} or {"unknown"}
    except (OSError, ValueError, LookupError, TypeError):
        return {"unknown"}


def end_with_parent() -> None:
    """End this process, and what it computes, when standard input ends: with the runner that started it."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # Not by the buffer, whose lock a process that ends would wait for.
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _evaluate(workdir: Path, config: ConfigDict, options: Any) -> Results:
    """Evaluate the last weights."""
    model, variables, _ = load(workdir, checkpoint="newest")
    source = open_split(config, config.data.val_split)
    protocol, how = split_section(options)
    return evaluate(model, variables, source, protocol, split=config.data.val_split, **how)


def _evaluated(workdir: Path, key: str, again: bool) -> bool:
    file = evaluation_file(workdir, key)
    try:
        content = read_json(file, needs=NEEDED)
    except Unreadable as error:
        print(f"{file}: cannot be read ({error}); evaluated again", flush=True)
        return False
    return content is not None and not (again and set(content["commits"]) != {git_commit()})


def _key_of(config: ConfigDict, job: Job) -> str:
    """Return the key of the evaluation that the training itself ends with, "" where it is not asked for."""
    plain = config.evaluate.to_dict()
    return next((key for key, options in job.evaluations.items() if dict(options) == plain), "")


def _write(workdir: Path, key: str, results: Results) -> None:
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
