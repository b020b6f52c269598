"""Logits that are resized to the labels one band of rows at a time, so that all of them never exist at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops.loss_pixels import is_right, pixel_losses
from deeplab_jax.ops.resize import interpolate_rows, interpolation_matrix, resize_bilinear

BAND_ROWS = 64


def over_bands(
    compare: Callable[[jax.Array, jax.Array], tuple[Any, Any]],
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    parts: int = 1,
) -> tuple[Any, Any]:
    """Return what `compare` says of logits that are resized bilinearly to the labels.

    It resizes the logits one band of rows at a time, and again for the gradient. So all of them never exist at full
    resolution: for 16 crops of 513x513 and 21 classes they would take 354 MB, and their gradient as much.

    Args:
      compare: function of logits `[N, r, W, K]` and labels `[N, r, W]` or `[N, r, W, K]` that returns a tree of maps
        `[N, r, ...]`, and a tree of sums over the rows. Its labels have rows of ignored pixels in addition.
      logits: `[N, h, w, K]`.
      labels: `[N, H, W]` or `[N, H, W, K]`, see `ops.loss_pixels.pixel_losses`.
      align_corners: see `ops.resize`.
      parts: number of equal parts of the rows that are on different devices. A band takes rows of each part, so that
        all devices work.

    Returns:
      The maps `[N, H, ...]`, and the sums over all rows.
    """
    logits = logits.astype(jnp.float32)
    if logits.shape[1:3] == labels.shape[1:3]:
        return compare(logits, labels)
    (height, width, *several), rows = labels.shape[1:], logits.shape[1]
    parts = parts if height % parts == 0 else 1  # Labels that were resized to logits may not split.
    bands = -(-height // BAND_ROWS)
    missing = -(height // parts) % bands
    weights = interpolation_matrix(rows, height, align_corners).reshape(parts, -1, rows)
    weights = np.pad(weights, ((0, 0), (0, missing), (0, 0)))
    labels = labels.reshape(labels.shape[0], parts, -1, width, *several)
    below = [(0, missing) if axis == 2 else (0, 0) for axis in range(labels.ndim)]
    labels = jnp.pad(labels, below, constant_values=IGNORE_LABEL)
    wide = resize_bilinear(logits, (rows, width), align_corners=align_corners)

    @jax.checkpoint
    def band(wide: jax.Array, weights: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        return compare(interpolate_rows(wide, weights), labels)

    of_bands = split_rows(jnp.asarray(weights[None]), bands)[:, 0], split_rows(labels, bands)
    maps, sums = jax.lax.map(lambda inputs: band(wide, *inputs), of_bands)
    return jax.tree.map(lambda x: join_rows(x, parts, height), maps), jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def upsampled_losses(
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    parts: int = 1,
    of_pixels: Callable[..., jax.Array] = pixel_losses,
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of logits that are resized to the labels, and which pixels are predicted right.

    Args:
      logits, labels, align_corners, parts: see `over_bands`.
      class_weights: see `pixel_losses`.
      of_pixels: function such as `pixel_losses` that returns the loss of every pixel.

    Returns:
      float32 of the shape of `labels`, 0 where ignored, and booleans of the same shape.
    """

    def compare(logits: jax.Array, labels: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[()]]:
        return (of_pixels(logits, labels, class_weights=class_weights), is_right(logits, labels)), ()

    (losses, right), _ = over_bands(compare, logits, labels, align_corners=align_corners, parts=parts)
    return losses, right


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
