"""Losses of single labels, and which of them are added.

The shapes say what the logits mean. Labels `[...]` for logits `[..., K]` are one class a pixel: softmax. For a single
logit, `[..., 1]`, they are two classes: the sigmoid of the logit is the probability of class 1. Labels `[..., K]` are
several labels a pixel, 0 or 1 for each: one sigmoid each.
"""

import chex
import jax
import jax.numpy as jnp

from deeplab_jax.labels import IGNORE_LABEL

LossSums = tuple[jax.Array, jax.Array, jax.Array]
"""What a loss of the table `LOSSES` returns: `(sum, count, right)`."""


def valid_pixels(labels: jax.Array) -> jax.Array:
    """Return which pixels have a label, as booleans of the shape of `labels`."""
    return labels != IGNORE_LABEL


def stands_alone(logits: jax.Array, labels: jax.Array) -> bool:
    """Return whether each logit has a sigmoid of its own: one for two classes, or several labels a pixel."""
    return logits.shape[-1] == 1 or logits.ndim == labels.ndim


def sigmoid_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return logits that stand alone as float32 of the shape of `labels`."""
    logits = (logits[..., 0] if labels.ndim < logits.ndim else logits).astype(jnp.float32)
    chex.assert_equal_shape([logits, labels])
    return logits


def is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return which labels the logits predict, booleans of the shape of `labels`; a sigmoid predicts 1 above 0.5."""
    if not stands_alone(logits, labels):
        return jnp.argmax(logits, axis=-1) == labels
    positive = logits > 0
    return (positive[..., 0] if labels.ndim < logits.ndim else positive) == labels.astype(jnp.int32)


def pixel_losses(
    logits: jax.Array,
    labels: jax.Array,
    *,
    class_weights: jax.Array | None = None,
    smoothing: float = 0.0,
) -> jax.Array:
    """Return the cross-entropy of every label, float32 of the labels' shape, 0 where ignored.

    With label smoothing (Szegedy et al., CVPR 2016, sec. 7) it is the cross-entropy to 1 - e for the label plus e / K
    for each of the K classes, as in PyTorch and optax. The class weight is that of the label. A sigmoid has two
    classes, as in Keras: smoothing 0.1 makes 0.05 and 0.95 of 0 and 1. The argument `smooth_factor` of
    segmentation_models_pytorch's `SoftBCEWithLogitsLoss` is half of ours.

    Args:
      logits: `[..., K]`, any floating dtype; the losses are taken in float32.
      labels: integer `[...]`, class ids 0 to K - 1 or 255, which is ignored; for one logit, 0 and 1. Or `[..., K]`, 0
        or 1 for each label. Other values are not noticed here (an accelerator cannot raise); training checks its first
        batches on the host.
      class_weights: float, the factor of each class's pixels: `[K]`, for one logit `[2]`; None is 1. A mean divides by
        the number of pixels, as in the authors' TensorFlow code; PyTorch divides by the sum of the weights instead.
      smoothing: e, from 0 to below 1.
    """
    valid = valid_pixels(labels)
    target = jnp.where(valid, labels, 0).astype(jnp.int32)
    if stands_alone(logits, labels):
        # It equals the softmax cross-entropy of two logits, 0 and the given one.
        signed = sigmoid_logits(logits, labels)
        signed = jnp.where(target == 1, signed, -signed)
        losses = jax.nn.softplus(-signed)
        if smoothing:
            losses += smoothing / 2 * signed
    else:
        chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
        logits = logits.astype(jnp.float32)
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - picked
        if smoothing:
            losses += smoothing * (picked - jnp.mean(logits, axis=-1))
    if class_weights is not None:
        losses *= label_weights(labels, class_weights, of_pixel=labels.ndim < logits.ndim)
    return jnp.where(valid, losses, 0.0)


def label_weights(labels: jax.Array, class_weights: jax.Array, *, of_pixel: bool) -> jax.Array:
    """Return the class weight of every label, float32 of the shape of `labels`; that of an ignored one has no meaning.

    Args:
      labels: see `pixel_losses`.
      class_weights: one for each class.
      of_pixel: whether a label is the class of its pixel; otherwise the last axis is that of the classes.
    """
    weights = jnp.asarray(class_weights, jnp.float32)
    if not of_pixel:
        return jnp.broadcast_to(weights, labels.shape)
    return weights[jnp.where(labels < weights.size, labels, 0).astype(jnp.int32)]


def focal_losses(
    logits: jax.Array,
    labels: jax.Array,
    *,
    class_weights: jax.Array | None = None,
    gamma: float = 2.0,
    alpha: float = 0.0,
) -> jax.Array:
    """Return the focal loss of every label (Lin et al., ICCV 2017, eq. 5), float32 of the labels' shape, 0 where
    ignored.

    It is the cross-entropy times (1 - p) ** gamma, where p is the probability of the label. With sigmoids it equals
    optax's `sigmoid_focal_loss` and the `FocalLoss` of segmentation_models_pytorch (smp). With a softmax, p is the
    softmax's probability, as in smp's `softmax_focal_loss_with_logits`. smp's `FocalLoss` uses a sigmoid for each logit
    there.

    Args:
      logits, labels, class_weights: see `pixel_losses`.
      gamma: from 0, the cross-entropy.
      alpha: for sigmoids, the weight of label 1; label 0 has the weight 1 - alpha. 0: both have the weight 1.
    """
    losses = pixel_losses(logits, labels)
    # The power's derivative at 0 is infinite if gamma is below 1.
    missed = jnp.maximum(-jnp.expm1(-losses), 1e-12)
    losses *= missed**gamma
    if alpha:
        losses *= jnp.where(labels == 1, alpha, 1 - alpha)
    if class_weights is not None:
        losses *= label_weights(labels, class_weights, of_pixel=labels.ndim < logits.ndim)
    return losses


def sum_hardest(losses: jax.Array, valid: jax.Array, *, top_k: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the largest losses, and how many there are, float32 scalars; both are 0 if no label is valid.

    Args:
      losses: of every label, 0 where ignored.
      valid: which labels count, booleans of the same shape.
      top_k: share (above 0, up to 1) of the valid labels to keep, those with the largest loss (hard-pixel mining).
        Under `jit` with a sharded batch it is that of the global batch.
    """
    count = jnp.sum(valid, dtype=jnp.float32)
    if top_k >= 1.0:
        return jnp.sum(losses), count
    # Rounding must not turn a whole product into the next number: 0.3 of 50 pixels are 15.
    kept = jnp.ceil(top_k * count * (1 - 1e-6))
    # Ignored pixels are sorted behind all labelled ones, even those of zero loss.
    ranked = jnp.sort(jnp.where(valid, losses, -1.0).ravel(), descending=True)
    rank = jnp.arange(ranked.size, dtype=jnp.float32)
    return jnp.sum(jnp.where(rank < kept, ranked, 0.0)), kept


def hard_labels(losses: jax.Array, valid: jax.Array, *, threshold: float, least: int) -> jax.Array:
    """Return which labels online hard example mining keeps, as booleans of the shape of `losses`.

    Args:
      losses: cross-entropy of each label, without weights: -log p.
      valid: which labels count.
      threshold: labels of a probability p below it are kept.
      least: the smallest number of labels to keep, from 1: those with the smallest p, and all that are as hard as the
        last of them. If there are fewer labels, all are kept.
    """
    cut = -jnp.log(threshold)
    losses = jax.lax.stop_gradient(jnp.where(valid, losses, -1.0))
    last = jnp.sort(losses.ravel(), descending=True)[min(least, losses.size) - 1]
    return valid & ((losses > cut) | (losses >= last))


def mean_loss(total: jax.Array, count: jax.Array) -> jax.Array:
    """Return a summed loss divided by its count; 0 if the count is 0 (every pixel of the batch is ignored)."""
    return total / jnp.maximum(count, 1.0)
