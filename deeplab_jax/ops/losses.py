"""Losses over labelled pixels, as (sum, count), so that shards, micro-batches and devices add up before the one
division.

`loss_pixels` says what the shapes of logits and labels mean.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.loss_bands import upsampled_losses
from deeplab_jax.ops.loss_lovasz import lovasz
from deeplab_jax.ops.loss_pixels import (
    LossSums,
    focal_losses,
    hard_labels,
    label_weights,
    mean_loss,
    pixel_losses,
    sum_hardest,
    valid_pixels,
)
from deeplab_jax.ops.loss_regions import dice, jaccard, tversky

Loss = Callable[..., LossSums]


def pixelwise(
    of_pixels: Callable[..., jax.Array],
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
    parts: int = 1,
    factors: jax.Array | None = None,
) -> LossSums:
    """Return a loss that is a sum over pixels, in the form that the table `LOSSES` needs.

    Args:
      of_pixels: function such as `pixel_losses` that returns the loss of every pixel.
      logits, labels: `[N, h, w, K]`, and `[N, H, W]` or `[N, H, W, K]`; the logits are resized to the labels.
      align_corners, class_weights, parts: see `upsampled_losses`.
      top_k: see `sum_hardest`.
      factors: of the losses, float32 of the shape of `labels`; None is 1.

    Returns:
      `(sum of losses, number of summed labels, which labels are right)`: float32 scalars, and booleans of the shape of
      `labels`.
    """
    losses, right = upsampled_losses(
        logits, labels, align_corners=align_corners, class_weights=class_weights, parts=parts, of_pixels=of_pixels
    )
    losses = losses if factors is None else losses * factors
    return *sum_hardest(losses, valid_pixels(labels), top_k=top_k), right


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, top_k: float = 1.0, smoothing: float = 0.0, **how: Any
) -> LossSums:
    """Return the cross-entropy; see `pixelwise`, and `pixel_losses` for the smoothing of labels."""
    return pixelwise(partial(pixel_losses, smoothing=smoothing), logits, labels, top_k=top_k, **how)


def near_boundary(labels: jax.Array, *, width: int) -> jax.Array:
    """Return which labelled pixels have a pixel of another label within `width` steps, booleans of the shape of
    `labels`.

    Diagonal steps count as one, as in `evaluate.boundary`. Here an ignored pixel makes no boundary, so the padding of a
    crop makes none either. Where a strip of ignored pixels parts two classes, the width has to reach across it.

    Args:
      labels: integer `[N, H, W]`, or `[N, H, W, K]` with boundaries of their own for each of several labels a pixel.
      width: in pixels, from 1.
    """
    valid = valid_pixels(labels)
    labels = labels.astype(jnp.int32)
    # Both extremes of a square around each pixel, from rows and then columns.
    low, high = jnp.where(valid, labels, jnp.iinfo(jnp.int32).max), jnp.where(valid, labels, -1)
    for axis in (1, 2):
        window = tuple(2 * width + 1 if axis == other else 1 for other in range(labels.ndim))
        ones = (1,) * labels.ndim
        low = lax.reduce_window(low, jnp.iinfo(jnp.int32).max, lax.min, window, ones, "SAME")
        high = lax.reduce_window(high, -1, lax.max, window, ones, "SAME")
    return valid & (low != high)


def boundary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    top_k: float = 1.0,
    smoothing: float = 0.0,
    boundary_width: int = 3,
    boundary_weight: float = 5.0,
    **how: Any,
) -> LossSums:
    """Return the cross-entropy, with a larger weight for pixels near a boundary of the labels.

    The idea is that of U-Net's weights (Ronneberger et al., MICCAI 2015, eq. 2), which fall smoothly with the distance
    from two cells. Classes have no cells, so here a band of pixels has one weight. The count stays the number of
    pixels.

    Args:
      logits, labels, how: see `pixelwise`.
      top_k: see `sum_hardest`; the weighted losses are ranked.
      smoothing: see `pixel_losses`.
      boundary_width: see `near_boundary`.
      boundary_weight: factor of these pixels' losses.
    """
    near = near_boundary(labels, width=boundary_width)
    factors = jnp.where(near, jnp.float32(boundary_weight), 1.0)
    of_pixels = partial(pixel_losses, smoothing=smoothing)
    return pixelwise(of_pixels, logits, labels, top_k=top_k, factors=factors, **how)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    top_k: float = 1.0,
    focal_gamma: float = 2.0,
    focal_alpha: float = 0.0,
    **how: Any,
) -> LossSums:
    """Return the focal loss; see `pixelwise` and `focal_losses`."""
    return pixelwise(partial(focal_losses, gamma=focal_gamma, alpha=focal_alpha), logits, labels, top_k=top_k, **how)


def ohem(
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
    parts: int = 1,
    ohem_threshold: float = 0.7,
    ohem_min_kept: int = 100_000,
) -> LossSums:
    """Return the cross-entropy of the hard pixels: those whose label has a probability below a threshold.

    This is online hard example mining. It keeps the pixels that mmsegmentation's `OHEMPixelSampler` keeps. Their mean
    is the loss, as in HRNet's Cityscapes code; there `min_kept` is for a batch. The hardest pixels are chosen in the
    global batch, or in each micro-batch. Class weights do not change which pixels are hard.

    Args:
      logits, labels, align_corners, parts: see `over_bands`.
      class_weights: see `pixel_losses`.
      top_k: of no effect; the threshold ranks the pixels.
      ohem_threshold: probability, above 0 and below 1.
      ohem_min_kept: times the number of images, the smallest number of pixels to keep: the hardest of all images.

    Returns:
      See `pixelwise`; the count is that of the kept labels.
    """
    losses, right = upsampled_losses(logits, labels, align_corners=align_corners, parts=parts)
    least = ohem_min_kept * labels.shape[0]
    kept = hard_labels(losses, valid_pixels(labels), threshold=ohem_threshold, least=least)
    if class_weights is not None:
        losses *= label_weights(labels, class_weights, of_pixel=labels.ndim < logits.ndim)
    return jnp.sum(jnp.where(kept, losses, 0.0)), jnp.sum(kept, dtype=jnp.float32), right


def weighted_sum(terms: Sequence[tuple[float, Loss]], logits: jax.Array, labels: jax.Array, **how: Any) -> LossSums:
    """Return the weighted sum of several losses, in the form of `LOSSES`.

    Each is the mean over what it counts itself. The sum counts as many labels as there are.

    Args:
      terms: weights and losses, at least one.
      logits, labels, how: the arguments of each loss.
    """
    count = jnp.sum(valid_pixels(labels), dtype=jnp.float32)
    results = [(weight, loss(logits, labels, **how)) for weight, loss in terms]
    mean = sum(weight * mean_loss(total, counted) for weight, (total, counted, _) in results)
    return mean * count, count, results[0][1][2]


RANKED = ("cross_entropy", "boundary_cross_entropy", "focal")
"""Losses that sum the hardest pixels alone where `top_k` says so; the others take it and do not use it."""
OF_REGIONS = ("dice", "jaccard", "tversky", "lovasz")
"""Losses that compare regions: with one logit, those of the object alone."""
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "boundary_cross_entropy": boundary_cross_entropy,
    "focal": focal,
    "ohem": ohem,
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "lovasz": lovasz,
}
"""Name -> `loss(logits, labels, *, align_corners, class_weights, top_k, parts)` -> `(sum, count, right)`.

A batch's gradient is that of the sum of all sums divided by the sum of all counts. A loss that is not a sum over pixels
resizes the logits itself (`ops.resize`, or in bands with `ops.loss_bands.over_bands`), and takes arguments
that it does not use. An argument that has the name of a key of `config.train.loss_options` gets its value.
"""

__all__ = [
    "LOSSES",
    "Loss",
    "LossSums",
    "cross_entropy",
    "mean_loss",
    "pixel_losses",
    "pixelwise",
    "sum_hardest",
    "upsampled_losses",
    "valid_pixels",
    "weighted_sum",
]
