"""Pixels near the boundaries of classes."""

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.loss_pixels import valid_pixels


def near_boundary(labels: jax.Array, *, width: int) -> jax.Array:
    """Return which labelled pixels have a pixel of another label within `width` steps, booleans of the shape of
    `labels`.

    Diagonal steps count as one, as in `evaluate.boundary`. But an ignored pixel is no other label here: neither are the
    pixels around a padded crop. So where a strip of ignored pixels parts two classes, the width has to reach across it.

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
