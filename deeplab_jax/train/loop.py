"""The training loop: create, restore, and for each batch step, log, evaluate, save."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.config_values import check
from deeplab_jax.distributed import together
from deeplab_jax.train.batches import Batches
from deeplab_jax.train.from_config import build_mesh, build_optimizer, build_step, model_for, open_splits
from deeplab_jax.train.given import NOTHING, Given
from deeplab_jax.train.initialise import fresh_state
from deeplab_jax.train.notes import announce
from deeplab_jax.train.program import build_program
from deeplab_jax.train.run import Run
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import Step
from deeplab_jax.train.validation import Results, Validation


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    given: Given = NOTHING,
    allow_config_change: bool = False,
    console: Console | None = None,
) -> Results | None:
    """Train a model, or resume in this run directory.

    Args:
      config: from `config.load_config`.
      workdir: receives `config.json`, `run.json`, `model.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and
        `pictures/`.
      given: parts in the place of those that the configuration names, and functions to call.
      allow_config_change, console: see `Run`.

    Returns:
      The last evaluation, or None if the run was already complete.

    Raises:
      UserError: anything in the configuration, data or directory that the user can fix.
      Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    with Run(Path(workdir), given, allow_config_change=allow_config_change, console=console) as run:
        with together():  # A failure on one process is a failure on all of them, before anything is written.
            check(config)
            config, train_source, val_source = open_splits(config, given)
            model = model_for(config, train_source.labels, given.model)
            mesh = build_mesh(config, model)
            optimizer, schedule = build_optimizer(config, model, given)
            step = build_step(config, model, optimizer, own_loss=given.loss)
            batches = Batches(config, model, train_source, mesh)
            validation = Validation(config, model, val_source, mesh)
            run.open(config)
        initial, shardings, step = build_program(config, model, mesh, optimizer, step)
        state, start = run.restore(initial, shardings)
        if state is None:
            state = fresh_state(initial, shardings, config, model=model, images=batches.sample, say=run.say)
        if not run.begin(start, model, train_source, schedule):
            return None
        announce(config, model, train_source, val_source, mesh, run.writers)
        with run.saying_skipped(batches):
            return run_steps(run, state, step, batches.placed(start, stopped=run.stop.heard), validation)


def run_steps(
    run: Run, state: TrainState, step: Step, batches: Iterator[Any], evaluate: Callable[..., Results]
) -> Results | None:
    """Run the steps after `run.start`; return the last evaluation."""
    results = run.catch_up(state, evaluate)
    batch = run.first_batch(batches)
    for number in run.numbers():
        state, metrics = step(state, batch)
        used, batch = batch, run.next_batch(number, state, metrics, batches)  # While the devices work.
        run.check_finite(number, state, metrics, used)
        run.log(number, state, metrics)
        results = run.finish(number, state, evaluate) or results  # Evaluates and saves if it is time.
    run.say_skipped_updates(state)
    return results
