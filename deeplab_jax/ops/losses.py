"""Losses over labelled pixels, as (sum, count), so that shards, micro-batches and devices add up before the one
division.

The shapes say what the logits mean. Labels `[...]` for logits `[..., K]` are one class a pixel: softmax. For a single
logit, `[..., 1]`, they are two classes: the sigmoid of the logit is the probability of class 1. Labels `[..., K]` are
several labels a pixel, 0 or 1 for each: one sigmoid each.
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops.resize import interpolate_rows, interpolation_matrix, resize_bilinear

BAND_ROWS = 64


def valid_pixels(labels: jax.Array, *, ignore_label: int = IGNORE_LABEL) -> jax.Array:
    """Return which pixels have a label, as booleans of the shape of `labels`."""
    return labels != ignore_label


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = IGNORE_LABEL,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Return the cross-entropy summed over the labelled pixels, or over all labels where a pixel has several.

    Args:
      logits: `[..., K]`, any floating dtype; the sum is taken in float32.
      labels: integer `[...]`, class ids 0 to K - 1 or `ignore_label`; for one logit, 0 and 1. Or `[..., K]`, 0 or 1 for
        each label. Other values are not noticed here (an accelerator cannot raise); training checks its first batches
        on the host.
      ignore_label: labels of this value do not count.
      class_weights: float, the factor of each class's pixels: `[K]`, for one logit `[2]`; None is 1. The count stays
        the number of pixels, as in the authors' TensorFlow code; PyTorch divides by the sum of the weights instead.
      top_k: share (above 0, up to 1) of the labelled pixels to keep, those with the largest loss (hard-pixel mining),
        among all given pixels. Under `jit` with a sharded batch these are the global batch.

    Returns:
      `(sum of losses, number of summed labels)`, float32 scalars; both are 0 if no pixel is labelled.
    """
    losses = pixel_losses(logits, labels, ignore_label=ignore_label, class_weights=class_weights)
    return sum_hardest(losses, valid_pixels(labels, ignore_label=ignore_label), top_k=top_k)


def pixel_losses(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = IGNORE_LABEL, class_weights: jax.Array | None = None
) -> jax.Array:
    """Return the cross-entropy of every label, float32 of the labels' shape, 0 where ignored; see `cross_entropy`."""
    if stands_alone(logits, labels):
        return sigmoid_losses(logits, labels, ignore_label=ignore_label, class_weights=class_weights)
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    valid = valid_pixels(labels, ignore_label=ignore_label)
    target = jnp.where(valid, labels, 0).astype(jnp.int32)
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    if class_weights is not None:
        losses = losses * jnp.asarray(class_weights, jnp.float32)[target]
    return jnp.where(valid, losses, 0.0)


def stands_alone(logits: jax.Array, labels: jax.Array) -> bool:
    """Return whether each logit has a sigmoid of its own: one for two classes, or several labels a pixel."""
    return logits.shape[-1] == 1 or logits.ndim == labels.ndim


def sigmoid_losses(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int = IGNORE_LABEL, class_weights: jax.Array | None = None
) -> jax.Array:
    """Return the binary cross-entropy of every label, float32 of the shape of `labels`, 0 where ignored.

    It equals the softmax cross-entropy of two logits, 0 and the given one.
    """
    one_logit = labels.ndim < logits.ndim
    logits = (logits[..., 0] if one_logit else logits).astype(jnp.float32)
    chex.assert_equal_shape([logits, labels])
    valid = valid_pixels(labels, ignore_label=ignore_label)
    target = jnp.where(valid, labels, 0).astype(jnp.int32)
    losses = jax.nn.softplus(jnp.where(target == 1, -logits, logits))
    if class_weights is not None:
        weights = jnp.asarray(class_weights, jnp.float32)
        losses *= weights[target] if one_logit else jnp.broadcast_to(weights, losses.shape)
    return jnp.where(valid, losses, 0.0)


def is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return which labels the logits predict, booleans of the shape of `labels`; a sigmoid predicts 1 above 0.5."""
    if not stands_alone(logits, labels):
        return jnp.argmax(logits, axis=-1) == labels
    positive = logits > 0
    return (positive[..., 0] if labels.ndim < logits.ndim else positive) == labels.astype(jnp.int32)


def upsampled_losses(
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    parts: int = 1,
    of_pixels: Callable[..., jax.Array] = pixel_losses,
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of logits that are resized bilinearly to the labels, and which pixels are predicted right.

    It resizes the logits one band of rows at a time, and again for the gradient. So all of them never exist at full
    resolution: for 16 crops of 513x513 and 21 classes they would take 354 MB, and their gradient as much.

    Args:
      logits: `[N, h, w, K]`.
      labels: `[N, H, W]` or `[N, H, W, K]`, see `cross_entropy`.
      align_corners: see `ops.resize`.
      class_weights: see `cross_entropy`.
      parts: number of equal parts of the rows that are on different devices. A band takes rows of each part, so that
        all devices work.
      of_pixels: function such as `pixel_losses` that returns the loss of every pixel.

    Returns:
      float32 of the shape of `labels`, 0 where ignored, and booleans of the same shape.
    """

    def compare(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return of_pixels(logits, labels, class_weights=class_weights), is_right(logits, labels)

    logits = logits.astype(jnp.float32)
    if logits.shape[1:3] == labels.shape[1:3]:
        return compare(logits, labels)
    (height, width, *several), rows = labels.shape[1:], logits.shape[1]
    bands = -(-height // BAND_ROWS)
    missing = -(height // parts) % bands
    weights = interpolation_matrix(rows, height, align_corners).reshape(parts, -1, rows)
    weights = np.pad(weights, ((0, 0), (0, missing), (0, 0)))
    labels = labels.reshape(labels.shape[0], parts, -1, width, *several)
    below = [(0, missing) if axis == 2 else (0, 0) for axis in range(labels.ndim)]
    labels = jnp.pad(labels, below, constant_values=IGNORE_LABEL)
    wide = resize_bilinear(logits, (rows, width), align_corners=align_corners)

    @jax.checkpoint
    def band(wide: jax.Array, weights: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return compare(interpolate_rows(wide, weights), labels)

    of_bands = split_rows(jnp.asarray(weights[None]), bands)[:, 0], split_rows(labels, bands)
    losses, right = jax.lax.map(lambda inputs: band(wide, *inputs), of_bands)
    return join_rows(losses, parts, height), join_rows(right, parts, height)


def split_rows(x: jax.Array, bands: int) -> jax.Array:
    """Split the rows of parts `[N, parts, R, ...]` into bands of rows of each, `[bands, N, parts * R / bands, ...]`."""
    n, parts, rows, *rest = x.shape
    split = jnp.moveaxis(x.reshape(n, parts, bands, rows // bands, *rest), 2, 0)
    return split.reshape(bands, n, parts * rows // bands, *rest)


def join_rows(x: jax.Array, parts: int, height: int) -> jax.Array:
    """Join the bands of `split_rows` to `[N, height, ...]`, without the rows added at the end of each part."""
    bands, n, rows, *rest = x.shape
    joined = jnp.moveaxis(x.reshape(bands, n, parts, rows // parts, *rest), 0, 2)
    joined = joined.reshape(n, parts, bands * rows // parts, *rest)[:, :, : height // parts]
    return joined.reshape(n, height, *rest)


def sum_hardest(losses: jax.Array, valid: jax.Array, *, top_k: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the largest losses, of the share `top_k` of the `valid` ones; see `cross_entropy`."""
    count = jnp.sum(valid, dtype=jnp.float32)
    if top_k >= 1.0:
        return jnp.sum(losses), count
    # Rounding must not turn a whole product into the next number: 0.3 of 50 pixels are 15.
    kept = jnp.ceil(top_k * count * (1 - 1e-6))
    # Ignored pixels are sorted behind all labelled ones, even those of zero loss.
    ranked = jnp.sort(jnp.where(valid, losses, -1.0).ravel(), descending=True)
    rank = jnp.arange(ranked.size, dtype=jnp.float32)
    return jnp.sum(jnp.where(rank < kept, ranked, 0.0)), kept


def mean_loss(total: jax.Array, count: jax.Array) -> jax.Array:
    """Return a summed loss divided by its count; 0 if the count is 0 (every pixel of the batch is ignored)."""
    return total / jnp.maximum(count, 1.0)


def pixelwise(
    of_pixels: Callable[..., jax.Array],
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
    parts: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a loss that is a sum over pixels, in the form that the table `LOSSES` needs.

    Args:
      of_pixels: function such as `pixel_losses` that returns the loss of every pixel.
      logits, labels: `[N, h, w, K]`, and `[N, H, W]` or `[N, H, W, K]`; the logits are resized to the labels.
      align_corners, class_weights, parts: see `upsampled_losses`.
      top_k: see `cross_entropy`.

    Returns:
      `(sum of losses, number of summed labels, which labels are right)`: float32 scalars, and booleans of the shape of
      `labels`.
    """
    losses, right = upsampled_losses(
        logits, labels, align_corners=align_corners, class_weights=class_weights, parts=parts, of_pixels=of_pixels
    )
    return *sum_hardest(losses, valid_pixels(labels), top_k=top_k), right


Loss = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]

LOSSES: dict[str, Loss] = {
    "cross_entropy": partial(pixelwise, pixel_losses),
}
"""Name -> `loss(logits, labels, *, align_corners, class_weights, top_k, parts)` -> `(sum, count, right)`.

A batch's gradient is that of the sum of all sums divided by the sum of all counts. A loss that is not a sum over pixels
resizes the logits itself (`ops.resize`), and may take unused arguments as `**_`.
"""
