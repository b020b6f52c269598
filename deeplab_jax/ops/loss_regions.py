"""Losses of regions: overlaps of what is found with what is there, for each class over the whole batch.

They are no sums over pixels, but they need only three sums for each class. So they are computed in bands of rows, as
the cross-entropy is, and are the same on any number of devices. The sums are those of a batch, as by default in
segmentation_models_pytorch, not of an image. With micro-batches they are those of each micro-batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.ops.loss_bands import over_bands
from deeplab_jax.ops.loss_pixels import LossSums, is_right, sigmoid_logits, stands_alone, valid_pixels

EPSILON = 1e-7  # Smallest divisor, as in segmentation_models_pytorch.


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
    parts: int = 1,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
    tversky_gamma: float = 1.0,
    region_smooth: float = 0.0,
) -> LossSums:
    """Return 1 - the mean Tversky index of the classes (Salehi et al., MLMI 2017), in the form of `LOSSES`.

    A class's index is (TP + s) / (TP + alpha FP + beta FN + s). TP is the sum of its probability over the pixels of its
    label, FP that over the others, and FN what is missing to 1 over the pixels of its label. Ignored pixels do not
    count. For one logit the object is the only class. Several labels a pixel are a class each.

    A class without a pixel in the batch costs nothing, but it counts in the mean. So false positives on images without
    any object have no gradient; add a cross-entropy for them. All this is as in segmentation_models_pytorch's
    `TverskyLoss`, except for gamma: its power is that of the mean, ours that of each class, as in the paper of the
    focal Tversky loss (Abraham & Khan, ISBI 2019, which writes 1 / gamma).

    Args:
      logits, labels, align_corners, parts: see `over_bands`.
      class_weights: `[K]`, for a weighted mean of the classes; of no effect for one logit.
      top_k: of no effect; the loss is no sum over pixels.
      tversky_alpha, tversky_beta: factors of the false positives, and of the false negatives; at 0.5 both it is the
        Dice loss, at 1 the Jaccard loss.
      tversky_gamma: exponent of each class's loss; 0.75 in the paper of the focal Tversky loss.
      region_smooth: s, in pixels.

    Returns:
      `(loss times count, count, right)`: the count is that of the labelled pixels, or of all labels where a pixel has
      several.
    """
    right, sums = over_bands(region_sums, logits, labels, align_corners=align_corners, parts=parts)
    both, found, there = jnp.sum(sums, axis=0)
    divisor = both + tversky_alpha * (found - both) + tversky_beta * (there - both) + region_smooth
    losses = 1 - (both + region_smooth) / jnp.maximum(divisor, EPSILON)
    if tversky_gamma != 1:  # Below 1, the power's derivative at 0 is infinite.
        losses = jnp.maximum(losses, EPSILON) ** tversky_gamma
    losses = jnp.where(there > 0, losses, 0.0)
    count = jnp.sum(valid_pixels(labels), dtype=jnp.float32)
    return mean_of_classes(losses, class_weights) * count, count, right


def dice(logits: jax.Array, labels: jax.Array, *, region_smooth: float = 0.0, **how: Any) -> LossSums:
    """Return 1 - the mean Dice coefficient of the classes (Milletari et al., 3DV 2016, without squares), see `tversky`.

    It is segmentation_models_pytorch's `DiceLoss`, whose argument `smooth` is `region_smooth` from version 0.5 on, and
    twice that before.
    """
    return tversky(logits, labels, tversky_alpha=0.5, tversky_beta=0.5, region_smooth=region_smooth, **how)


def jaccard(logits: jax.Array, labels: jax.Array, *, region_smooth: float = 0.0, **how: Any) -> LossSums:
    """Return 1 - the mean soft IoU of the classes (Rahman & Wang, ISVC 2016), see `tversky`.

    It is segmentation_models_pytorch's `JaccardLoss`, whose argument `smooth` is `region_smooth`.
    """
    return tversky(logits, labels, tversky_alpha=1.0, tversky_beta=1.0, region_smooth=region_smooth, **how)


def region_sums(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which labels are right, and the sums of each image over its labelled pixels, float32 `[N, 3, K]`: for each
    class the probability where it is there, the probability everywhere, and the number of its pixels.
    """
    valid = valid_pixels(labels)
    if stands_alone(logits, labels):
        probability, there = jax.nn.sigmoid(sigmoid_logits(logits, labels)), labels == 1
        if labels.ndim < logits.ndim:
            probability, there, valid = probability[..., None], there[..., None], valid[..., None]
    else:
        classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        probability, there = jax.nn.softmax(logits), labels[..., None] == classes
        valid = valid[..., None]
    probability = jnp.where(valid, probability, 0.0)
    maps = (jnp.where(there, probability, 0.0), probability, there.astype(jnp.float32))
    return is_right(logits, labels), jnp.stack([jnp.sum(each, axis=(1, 2)) for each in maps], axis=1)


def mean_of_classes(
    losses: jax.Array, class_weights: jax.Array | None = None, *, present: jax.Array | None = None
) -> jax.Array:
    """Return the mean of the losses `[K]` of the classes, or of those `present` alone; 0 if there is none.

    With class weights it is the weighted mean. The one loss of one logit is that of the object, whatever its weight.
    """
    one = class_weights is None or losses.size == 1
    weights = jnp.ones(losses.shape) if one else jnp.asarray(class_weights, jnp.float32)
    if present is not None:
        weights, losses = jnp.where(present, weights, 0.0), jnp.where(present, losses, 0.0)
    return jnp.sum(weights * losses) / jnp.maximum(jnp.sum(weights), EPSILON)
