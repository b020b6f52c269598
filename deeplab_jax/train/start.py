"""Where a run starts: from the newest checkpoint that can be read, or afresh."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.checkpoint import Checkpoints, DamagedCheckpoint
from deeplab_jax.data.loader import Batch
from deeplab_jax.distributed import listed, together
from deeplab_jax.errors import UserError
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.initialise import initial_variables
from deeplab_jax.train.state import TrainState

SAMPLED_BATCHES = 3


def start_state(
    checkpoints: Checkpoints,
    initial: Callable[[jax.Array], TrainState],
    config: ConfigDict,
    shardings: TrainState,
    console: Console,
    *,
    model: Segmenter,
    images: Callable[[], jax.Array],
) -> tuple[TrainState, int]:
    """Return the newest checkpoint's state, or a fresh one, on the devices that `shardings` (a tree like it) names.

    `model` and `images` are those of `initial_variables`.
    """
    key = jax.random.key(config.train.seed)
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    if checkpoints.latest() is not None:
        state, step = restore_newest(checkpoints, initial, shardings, say)
        say(f"resuming from step {step} in {checkpoints.directory}")
        return state, step
    # Run once, so compiled in a hurry: a third of the time, the same numbers.
    hurry = {"xla_backend_optimization_level": 0}
    state = jax.jit(initial, out_shardings=shardings, compiler_options=hurry)(key)
    if config.init:
        state = initial_variables(state, config.init, scope=config.init_scope, model=model, images=images, say=say)
    return state, 0


def restore_newest(
    checkpoints: Checkpoints,
    initial: Callable[[jax.Array], TrainState],
    shardings: TrainState,
    say: Callable[[str], Any],
) -> tuple[TrainState, int]:
    """Return the newest state that can be read, and its step; what is damaged above it is said and set aside.

    What one process cannot read counts as damaged on all of them.

    Raises:
      UserError: all are damaged, and stay where they are; or the newest that can be read is of another network.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps()):
        own: list[str] = []
        try:
            state = restore(checkpoints, step, initial, shardings)
        except DamagedCheckpoint as error:
            own = [error.reason or "cannot be read"]
        if found := listed(own):
            damaged[step] = found[0]
            continue
        for bad, reason in damaged.items():
            aside = checkpoints.set_aside(bad)
            say(f"the checkpoint of step {bad} is damaged ({reason}) and now called {aside.name}")
        return state, step
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise UserError(
        f"{checkpoints.directory}: every checkpoint is damaged ({reasons}); bring one back from a backup, or give "
        "another --workdir"
    )


def restore(
    checkpoints: Checkpoints, step: int, initial: Callable[[jax.Array], TrainState], shardings: TrainState
) -> TrainState:
    """Return the state of a step, however it was spread over devices when it was saved; `initial` makes a state of the
    same kind from a key.
    """
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(initial, jax.random.key(0)),
        shardings,
    )
    return abstract.with_restored(
        checkpoints.restore_variables(step, abstract.variables()), checkpoints.restore_extra(step, abstract.extra())
    )


def sample(batches: Callable[..., Iterator[Batch]], model: Segmenter) -> jax.Array:
    """Return the first training images, preprocessed: enough of them for the statistics of a norm."""
    with together():
        images = np.concatenate([batch["image"] for batch in itertools.islice(batches(start=0), SAMPLED_BATCHES)])
    return model.preprocessing(jnp.asarray(images))
