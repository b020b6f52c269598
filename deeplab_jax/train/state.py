"""The state that training carries from step to step: its start, and how it is restored."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from deeplab_jax.analysis.cost import Watcher
from deeplab_jax.analysis.padding_taps import zero_unreached
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.models.segmenter import Segmenter, Variables


class TrainState(flax.struct.PyTreeNode):
    """Step, parameters, batch statistics, optimizer state, and the running average of the parameters (or None)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any

    def variables(self) -> Variables:
        """Return the variables for prediction, with the averaged parameters if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, **({"batch_stats": self.batch_stats} if self.batch_stats else {})}

    def extra(self) -> dict[str, Any]:
        """Return the rest of the state, which a checkpoint stores separately."""
        raw = {} if self.ema_params is None else {"params": self.params}
        return {"step": self.step, "opt_state": self.opt_state, **raw}

    def with_restored(self, variables: Variables, extra: dict[str, Any]) -> "TrainState":
        """Return the state whose `variables()` and `extra()` are given."""
        return self.replace(
            step=extra["step"],
            params=extra.get("params", variables["params"]),
            batch_stats=variables.get("batch_stats", {}),
            opt_state=extra["opt_state"],
            ema_params=None if self.ema_params is None else variables["params"],
        )


def create_state(
    key: jax.Array,
    *,
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    size: tuple[int, int],
    ema: bool,
    variables: Variables | None = None,
) -> TrainState:
    """Return the state of step 0 with these variables, or with random ones; run it under `jit` (or `eval_shape`).

    Random variables are for images of `size`: taps of atrous kernels that read only padding there start at zero; see
    `analysis.padding_taps`.
    """
    if variables is None:
        watcher, images = Watcher(), jnp.zeros((1, *size, model.in_channels), jnp.float32)
        with watcher.watch():
            fresh = model.init({"params": key}, images, train=False)
        variables = {**fresh, "params": zero_unreached(fresh["params"], watcher.calls)}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def abstract_state(initial: Callable[[jax.Array], TrainState], shardings: TrainState) -> TrainState:
    """Return the shapes, dtypes and places of the state that `initial` makes from a key."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(initial, jax.random.key(0)),
        shardings,
    )


def restore(
    checkpoints: Checkpoints, step: int, initial: Callable[[jax.Array], TrainState], shardings: TrainState
) -> TrainState:
    """Return the state of a step, for any devices that it was saved from; `initial` makes a state of this kind from a
    key.
    """
    abstract = abstract_state(initial, shardings)
    return abstract.with_restored(
        checkpoints.restore_variables(step, abstract.variables()), checkpoints.restore_extra(step, abstract.extra())
    )
