"""One training step, as a pure function; the loop wraps it in `jit`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.models.decoders.unet import centre_crop
from deeplab_jax.models.layers import CONVOLUTION
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.losses import mean_loss, sum_hardest, upsampled_losses, valid_pixels
from deeplab_jax.ops.resize import resize_labels
from deeplab_jax.train.state import TrainState

Metrics = dict[str, jax.Array]


def keep_convolutions(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a network's function whose gradient keeps the convolutions' results alone, and computes again what follows
    from them: normalisation, activations, sums and resizing, which cost little beside the convolutions.
    """
    return jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(CONVOLUTION))


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    accumulate: int = 1,
    upsample_logits: bool = True,
    class_weights: Sequence[float] = (),
    top_k: float = 1.0,
    aux_weight: float = 0.5,
    ema_decay: float = 0.0,
    space: int = 1,
    remat: bool = False,
) -> tuple[TrainState, Metrics]:
    """Update the state with one batch.

    The gradient is that of the summed loss divided by the count of labelled pixels in the whole batch: micro-batches
    and devices with few labelled pixels do not weigh more.

    Args:
      state: the state before.
      batch: `image` uint8 `[N, H, W, 3]`, `label` uint8 `[N, H, W]`, 255 ignored.
      model, optimizer: static.
      key: of the run; the step is folded in, so that a resumed run draws the same dropout masks.
      accumulate: micro-batches, one after another.
      upsample_logits: resize logits to the labels (DeepLabv3, sec. 4.1), or labels to the logits; an auxiliary head's,
        too.
      class_weights, top_k: see `cross_entropy`; top_k ranks the pixels of a micro-batch.
      aux_weight: of the auxiliary head's loss.
      space: devices that share the rows of an image.
      ema_decay: the average of the parameters becomes `d * average + (1 - d) * params`.
      remat: of the activations keep the convolutions' results alone, and compute the others again for the gradient.

    Returns:
      The state after, and float32 scalars: `loss` (over the labelled pixels), `pixel_accuracy`, `gradient_norm`.
    """
    key = jax.random.fold_in(key, state.step)
    plain = partial(model.apply, train=True, method="coarse_logits", mutable=["batch_stats", "intermediates"])
    apply = keep_convolutions(plain) if remat else plain
    weights = jnp.asarray(class_weights, jnp.float32) if len(class_weights) else None

    def summed_loss(
        params: Any, batch_stats: Any, micro: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        images, labels = model.preprocessing(micro["image"]), micro["label"]
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        logits, updates = apply(variables, images, rngs={"dropout": key})
        if model.valid:
            labels = centre_crop(labels, logits.shape[1:3])
        elif not upsample_logits:
            labels = resize_labels(labels, logits.shape[1:3], align_corners=model.settings.align_corners)
        valid = valid_pixels(labels)
        compare = partial(
            upsampled_losses, align_corners=model.settings.align_corners, class_weights=weights, parts=space
        )
        losses, right = compare(logits, labels)
        total, count = sum_hardest(losses, valid, top_k=top_k)
        auxiliary = updates.get("intermediates", {}).get("aux", ())  # one for each scale of an image pyramid
        for aux in auxiliary:
            aux_losses, _ = compare(aux, labels)
            total += aux_weight / len(auxiliary) * mean_loss(*sum_hardest(aux_losses, valid)) * count
        right, labelled = (jnp.sum(which, dtype=jnp.float32) for which in (right & valid, valid))
        return total, (
            updates.get("batch_stats", {}),
            {"total": total, "count": count, "right": right, "labelled": labelled},
        )

    def add_micro_batch(
        carry: tuple[Any, Any, Metrics], inputs: tuple[dict[str, jax.Array], jax.Array]
    ) -> tuple[Any, None]:
        gradient, batch_stats, sums = carry
        micro, micro_key = inputs
        new_gradient, (batch_stats, new_sums) = jax.grad(summed_loss, has_aux=True)(
            state.params, batch_stats, micro, micro_key
        )
        return (jax.tree.map(jnp.add, gradient, new_gradient), batch_stats, jax.tree.map(jnp.add, sums, new_sums)), None

    zeros = {name: jnp.zeros((), jnp.float32) for name in ("total", "count", "right", "labelled")}
    carry = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, zeros)
    if accumulate == 1:
        carry, _ = add_micro_batch(carry, (batch, key))
    else:
        # Strided, so that every micro-batch stays split over all devices.
        micro_batches = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)
        carry, _ = jax.lax.scan(add_micro_batch, carry, (micro_batches, jax.random.split(key, accumulate)))
    gradient, batch_stats, sums = carry

    gradient = jax.tree.map(lambda g: mean_loss(g, sums["count"]), gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = jax.tree.map(lambda average, new: ema_decay * average + (1 - ema_decay) * new, ema_params, params)
    metrics = {
        "loss": mean_loss(sums["total"], sums["count"]),
        "pixel_accuracy": mean_loss(sums["right"], sums["labelled"]),
        "gradient_norm": optax.tree.norm(gradient),
    }
    state = state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema_params=ema_params
    )
    return state, metrics
