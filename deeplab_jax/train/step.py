"""One training step as a pure function; the loop wraps it in `jit`."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import path_aware_map

from deeplab_jax.models.layers import CONVOLUTION, running_statistics
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.losses import LOSSES, Loss, mean_loss, valid_pixels
from deeplab_jax.ops.resize import centre_crop, resize_labels
from deeplab_jax.train.optimizer import matches
from deeplab_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
# (params, batch_stats, micro-batch, key) -> summed loss, (new batch_stats, sums for the metrics)
SummedLoss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Any, Metrics]]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: SummedLoss,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    ema_debias: bool = False,
) -> tuple[TrainState, Metrics]:
    """Update the state with one batch, or keep it if the loss or the gradient's norm is not finite.

    On the host it would be too late to keep it, because training donates the buffers of the old state. `state.step`
    keeps its value too: the number of a step minus `state.step` after it is the number of updates skipped so far.

    Args:
      state: state before the step.
      batch: see `summed_loss`.
      objective, key, accumulate: see `mean_gradient`.
      optimizer: static.
      ema_decay: d; the average of the parameters becomes `d * average + (1 - d) * params`.
      ema_debias: whether that average is of the parameters after each update, without the initial ones. See
        `share_of_newest`.

    Returns:
      The state after the step, and the metrics of `mean_gradient`.
    """
    gradient, batch_stats, metrics = mean_gradient(state, batch, objective=objective, key=key, accumulate=accumulate)
    share = share_of_newest(state.step + 1, ema_decay) if ema_debias else 1 - ema_decay
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    update = partial(updated, optimizer=optimizer, share=share)
    # A condition, and no choice between two states: the update then starts after the gradient is complete, and takes
    # the place of the old state without a copy.
    return jax.lax.cond(finite, update, lambda state, *_: state, state, gradient, batch_stats), metrics


def mean_gradient(
    state: TrainState, batch: Batch, *, objective: SummedLoss, key: jax.Array, accumulate: int
) -> tuple[Any, Any, Metrics]:
    """Return the gradient of the mean loss of a batch, new batch statistics, and the metrics.

    The gradient is that of the summed loss divided by its count in the whole batch. So micro-batches and devices with
    few labelled pixels do not weigh more.

    Args:
      state, batch: see `train_step`.
      objective: `summed_loss` of a model; static.
      key: key of the run. The step is folded in, so a resumed run draws the same dropout masks.
      accumulate: number of micro-batches, which run one after another.

    Returns:
      The metrics are float32 scalars: `loss` (over the labelled pixels), `pixel_accuracy`, `gradient_norm` (of the
      trained parameters, before it is clipped).
    """
    key = jax.random.fold_in(key, state.step)
    gradient, batch_stats, sums = summed_gradient(objective, state, batch, key, accumulate=accumulate)
    gradient = jax.tree.map(lambda g: mean_loss(g, sums["count"]), gradient)
    metrics = {
        "loss": mean_loss(sums["total"], sums["count"]),
        "pixel_accuracy": mean_loss(sums["right"], sums["labelled"]),
        "gradient_norm": optax.tree.norm(gradient),
    }
    return gradient, batch_stats, metrics


def summed_loss(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    key: jax.Array,
    *,
    model: Segmenter,
    loss: Loss = LOSSES["cross_entropy"],
    class_weights: Sequence[float] = (),
    top_k: float = 1.0,
    aux_weight: float = 0.5,
    upsample_logits: bool = True,
    space: int = 1,
    remat: bool = False,
    freeze: Sequence[str] = (),
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Return the summed loss of a micro-batch, new batch statistics, and the sums for the metrics.

    Args:
      params, batch_stats: of the model.
      batch: `image` uint8 or float32 `[N, H, W, C]`, `label` uint8 `[N, H, W]`, 255 ignored; `[N, H, W, K]` where a
        pixel can have several labels.
      key: of the dropout.
      model: static.
      loss: an entry of `ops.losses.LOSSES`; one that ranks or compares pixels sees those of a micro-batch.
      class_weights, top_k: see `ops.losses.pixel_losses` and `sum_hardest`.
      aux_weight: weight of the auxiliary head's loss.
      upsample_logits: whether logits are resized to the labels (DeepLabv3, sec. 4.1), or labels to the logits; also for
        an auxiliary head.
      space: number of devices that share the rows of an image.
      remat: whether to keep only the convolutions' results of the activations, and compute the others again for the
        gradient.
      freeze: patterns of the frozen parameters, which have no gradient; see `make_optimizer`.
    """
    weights = jnp.asarray(class_weights, jnp.float32) if len(class_weights) else None
    loss = partial(loss, align_corners=model.settings.align_corners, class_weights=weights, parts=space)
    plain = partial(model.apply, train=True, method="coarse_logits", mutable=["batch_stats", "intermediates"])
    apply = keep_convolutions(plain) if remat else plain
    variables = {"params": constant(params, freeze), **({"batch_stats": batch_stats} if batch_stats else {})}
    with running_statistics(partial(matches, freeze)) if freeze else nullcontext():
        logits, updates = apply(variables, model.preprocessing(batch["image"]), rngs={"dropout": key})
    labels = batch["label"]
    if model.valid:
        labels = centre_crop(labels, logits.shape[1:3])
    elif not upsample_logits:
        labels = resize_labels(labels, logits.shape[1:3], align_corners=model.settings.align_corners)
    total, count, right = loss(logits, labels, top_k=top_k)
    auxiliary = updates.get("intermediates", {}).get("aux", ())  # one for each scale of an image pyramid
    for aux in auxiliary:
        aux_total, aux_count, _ = loss(aux, labels, top_k=1.0)
        total += aux_weight / len(auxiliary) * mean_loss(aux_total, aux_count) * count
    valid = valid_pixels(labels)
    right, labelled = (jnp.sum(which, dtype=jnp.float32) for which in (right & valid, valid))
    sums = {"total": total, "count": count, "right": right, "labelled": labelled}
    return total, (updates.get("batch_stats", {}), sums)


def constant(params: Any, freeze: Sequence[str]) -> Any:
    """Return the parameters. Those that match a pattern get a gradient of 0, and none is computed."""

    def stopped(path: tuple[Any, ...], leaf: Any) -> Any:
        return jax.lax.stop_gradient(leaf) if matches(freeze, "/".join(path)) else leaf

    return path_aware_map(stopped, params) if freeze else params


def keep_convolutions(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a network's function whose gradient keeps only the convolutions' results. It computes again what follows
    from them (normalisation, activations, sums and resizing), which costs little beside the convolutions.
    """
    return jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(CONVOLUTION))


def summed_gradient(
    objective: SummedLoss, state: TrainState, batch: Batch, key: jax.Array, *, accumulate: int
) -> tuple[Any, Any, Metrics]:
    """Return the gradient, batch statistics and sums of `summed_loss` over the micro-batches of a batch."""

    def add(carry: tuple[Any, Any, Metrics], inputs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        gradient, batch_stats, sums = carry
        more, (batch_stats, more_sums) = jax.grad(objective, has_aux=True)(state.params, batch_stats, *inputs)
        return (jax.tree.map(jnp.add, gradient, more), batch_stats, jax.tree.map(jnp.add, sums, more_sums)), None

    zeros = {name: jnp.zeros((), jnp.float32) for name in ("total", "count", "right", "labelled")}
    start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, zeros)
    if accumulate == 1:
        return add(start, (batch, key))[0]
    # Strided, so that every micro-batch stays split over all devices.
    micro_batches = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)
    return jax.lax.scan(add, start, (micro_batches, jax.random.split(key, accumulate)))[0]


def share_of_newest(updates: jax.Array, decay: float) -> jax.Array:
    """Return the share of the newest parameters in an average with Adam's correction (Kingma and Ba, 2015, sec. 3).

    The corrected average after t updates is `sum_k (1 - d) d^(t - k) params_k / (1 - d^t)`. It equals a running average
    whose newest member has the share `(1 - d) / (1 - d^t)`: all of it at first, later `1 - d`. So the state holds the
    corrected average itself.

    Args:
      updates: t, from 1.
      decay: d, above 0 and below 1.
    """
    return -(1 - decay) / jnp.expm1(updates * math.log(decay))


def updated(
    state: TrainState,
    gradient: Any,
    batch_stats: Any,
    *,
    optimizer: optax.GradientTransformation,
    share: float | jax.Array,
) -> TrainState:
    """Return the state after an update: parameters, their average, in which the new ones have a `share`, and the
    optimizer's state.
    """
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:  # In this form a frozen parameter is its own average, without rounding.
        ema_params = jax.tree.map(lambda average, new: average + share * (new - average), ema_params, params)
    return state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema_params=ema_params
    )
