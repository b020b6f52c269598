"""Does a job: trains a network and evaluates it. A job that was killed goes on at its next start."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import files
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.protocol import split_section
from deeplab_jax.files import save_json
from deeplab_jax.provenance import git_commit
from deeplab_jax.train.allocator import keep_freed_memory
from deeplab_jax.train.from_config import open_split
from deeplab_jax.train.loop import train
from deeplab_jax.train.record import RECORD_FILE, records
from deeplab_jax.train.workdir import RUN_FILE
from deeplab_jax.weights.folder import load
from experiments.outcomes.files import Unreadable, last_miou, newest_step, read_json
from experiments.outcomes.per_image import counts_of, write_counts
from experiments.run.plan import Job, evaluation_counts, evaluation_file, start_file, weights_name
from experiments.run.results import EVALUATION

# The metrics that the file of an evaluation keeps: all but the confusion matrix.
KEPT = ("miou", "pixel_accuracy", "mean_accuracy", "per_class", "protocol", "model", "versions", "seconds")


def work(job: Job, runs: Path, *, again: bool) -> None:
    """Train and evaluate in the run directory `runs/NAME`; `again`: set what another commit has left aside, and run it
    again.

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
            weights = pretrained(job.pretraining, runs, again=again)
            config.init, config.init_scope = str(weights), "backbone"
            save_json(start_file(workdir), {"backbone": last_miou(records(weights / RECORD_FILE))})
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
    """
    workdir = runs / weights_name(config)
    with files.locked(workdir.with_suffix(".lock"), "", option="--runs"):
        if again:
            _set_aside(workdir, git_commit())
        if not is_pretrained(config, runs):
            print(f"first the backbone, in {workdir}", flush=True)
            train(config, workdir, allow_config_change=True)
    return workdir


def is_pretrained(config: ConfigDict, runs: Path) -> bool:
    """Return whether the training that jobs start from has ended."""
    return newest_step(runs / weights_name(config)) >= config.train.steps


def trained_commits(workdir: Path) -> set[str]:
    """Return the commits of the code at each start of a run, "unknown" where the run does not say."""
    try:
        return {str(start["commit"]) for start in files.read_json(workdir / RUN_FILE)} or {"unknown"}
    except (OSError, ValueError, LookupError, TypeError):
        return {"unknown"}


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
    save_json(evaluation_file(workdir, key), {"commits": commits, **kept})


def _set_aside(workdir: Path, commit: str) -> None:
    """Rename a run of another commit."""
    if workdir.exists() and trained_commits(workdir) != {commit}:
        number = 1
        while (name := workdir.with_name(f"{workdir.name}.old{number}")).exists():
            number += 1
        workdir.rename(name)
