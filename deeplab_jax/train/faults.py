"""When a step or what surrounds it fails: nothing that is done gets lost, and what failed can be looked at."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.config import to_plain
from deeplab_jax.distributed import is_first, is_lost, together, whole
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.signals import Interrupted
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import Metrics
from deeplab_jax.train.workdir import (
    CONFIG_FILE,
    as_user_errors,
)
from deeplab_jax.train.writers import Writers
from deeplab_jax.weights.folder import CHECKPOINTS, write_description

POSTMORTEM, BATCH_FILE = "postmortem", "batch.npz"

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@contextmanager
def saving_first(save: Callable[[], None]) -> Iterator[None]:
    """Save before a failure, or the wish to stop, ends the run."""
    try:
        yield
    except Interrupted:
        save()
        raise
    except Exception as error:
        if is_lost(error):  # A save needs all processes.
            raise
        with suppress(UserError):  # What failed first is what there is to tell.
            save()
        raise


def keep_finite(step: Step) -> Step:
    """Wrap a step so that it leaves the state as it was where the loss or the gradient's norm is not finite.

    The buffers of the state before are donated, so that on the host it would be too late. `state.step` stays as well:
    the number of a step minus `state.step` after it is the number of updates that were skipped so far.
    """

    def guarded_train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state), metrics

    return guarded_train_step


def is_finite(metrics: Metrics) -> bool:
    """Whether the update of a step was made; waits for the step."""
    return bool(np.isfinite(jax.device_get([metrics["loss"], metrics["gradient_norm"]])).all())


def describe_failure(number: int, metrics: Metrics) -> str:
    """Return `step 7: loss nan, gradient norm inf`."""
    return f"step {number}: loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}"


def write_postmortem(
    folder: Path, state: TrainState, number: int, batch: Any, *, config: Any, model: Segmenter, info: dict[str, Any]
) -> None:
    """Write what `replay` needs to run step `number` again; an older post-mortem there is replaced.

    The folder is a run directory of one checkpoint, and a batch.

    Args:
      folder: made where missing.
      state: before the step.
      number: of the step, from 1.
      batch: what the step was given.
      config, model, info: of the run.

    Raises:
      UserError: it cannot be written.
    """
    batch = whole(batch)
    with together(), as_user_errors(folder):
        if is_first():
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            write_json(folder / CONFIG_FILE, to_plain(config))
            write_description(folder, model, info)
            np.savez_compressed(folder / BATCH_FILE, image=batch["image"], label=batch["label"])
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(number - 1, state.variables(), state.extra())


def stop_or_skip(
    state: TrainState,
    number: int,
    batch: Any,
    metrics: Metrics,
    *,
    allowed: int,
    postmortem: Callable[[TrainState, int, Any], None],
    writers: Writers,
) -> None:
    """Go on without the update of a step that is not finite, or write a post-mortem and raise a UserError.

    Args:
      state: as it was before the step; see `keep_finite`.
      number, batch, metrics: of the step.
      allowed: so many updates of a run may be skipped.
    """
    skipped, what = number - int(state.step), describe_failure(number, metrics)
    if skipped <= allowed:
        with together():
            writers.scalars(number, {"skipped_updates": skipped}, prefix="train")
        writers.say(f"{what}: update skipped, {skipped} of at most {allowed}")
        return
    try:
        postmortem(state, number, batch)
        saved = f"see python -m deeplab_jax replay {writers.workdir / POSTMORTEM}"
    except UserError as error:
        saved = f"no post-mortem ({error})"
    raise UserError(
        f"{what}; {saved}; lower config.optimizer.learning_rate, set config.optimizer.clip_norm or let "
        "config.train.skip_nonfinite updates be skipped, and start again from the last checkpoint"
    )
