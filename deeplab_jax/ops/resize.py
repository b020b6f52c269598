"""Bilinear resizing that names its corner alignment.

Frameworks disagree on the positions of a map's samples. With `align_corners=True` the centres of the corner pixels
coincide, as in the authors' TensorFlow code: sample `i` of a map at stride s lies exactly on pixel `i * s`, which is
why its crops have 513 = 512 + 1 pixels. With `align_corners=False` the outer edges coincide (half-pixel centres), as in
torchvision. Neither smooths before it shrinks.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def resize_bilinear(x: jax.Array, size: Sequence[int], *, align_corners: bool) -> jax.Array:
    """Return maps resized bilinearly.

    It takes two small matrix products, columns before rows. Sizes are static under `jit`, so the weights are constants;
    only for the symbolic sizes of an export they are computed. The second product gives the result image by image, in
    the right order; one product over all images would need a transpose at full resolution.

    Args:
      x: `[N, H, W, C]` of a floating dtype.
      size: `(height, width)` of the result in pixels.
      align_corners: which points of both grids coincide; see the module's docstring.

    Returns:
      `[N, height, width, C]` of the dtype of `x`; `x` itself if it has that size.

    Raises:
      TypeError: `x` is not of a floating dtype.
    """
    require_floating(x)
    for axis, target in ((2, size[1]), (1, size[0])):
        source = x.shape[axis]
        if source == target:
            continue
        if source == 1:
            x = jnp.broadcast_to(x, (*x.shape[:axis], target, *x.shape[axis + 1 :]))
            continue
        static = isinstance(source, int) and isinstance(target, int)
        matrix = interpolation_matrix if static else computed_interpolation_matrix
        weights = jnp.asarray(matrix(source, target, align_corners), x.dtype)
        if axis == 2:
            x = jnp.einsum("pw,nhwc->nhpc", weights, x, precision=jax.lax.Precision.HIGHEST)
        else:
            x = interpolate_rows(x, weights)
    return x


def require_floating(x: jax.Array) -> None:
    """Raise a TypeError unless an array has a floating dtype: in another, averages and weights between 0 and 1 would
    lose their fractions.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"the map is {x.dtype}: convert it to a floating dtype first")


def interpolate_rows(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return maps `[N, H, W, C]` with their rows multiplied by weights `[height, H]`: `[N, height, W, C]`."""
    n, rows, columns, channels = x.shape
    weights = jnp.broadcast_to(weights, (n, *weights.shape))
    result = jnp.matmul(weights, x.reshape(n, rows, columns * channels), precision=jax.lax.Precision.HIGHEST)
    return result.reshape(n, weights.shape[1], columns, channels)


def sample_positions(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Return where the samples of a result lie between those of its source, along one axis: float64 `[target]`."""
    if align_corners:
        return np.arange(target) * (source - 1) / max(target - 1, 1)  # In this order, halves are exact.
    return (np.arange(target) + 0.5) * (source / target) - 0.5


@lru_cache(maxsize=256)
def interpolation_matrix(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Return the float32 `[target, source]` matrix of linear interpolation along one axis; every row sums to 1."""
    positions = np.clip(sample_positions(source, target, align_corners), 0, source - 1)
    lower = np.minimum(positions.astype(int), max(source - 2, 0))
    fraction = positions - lower
    matrix = np.zeros((target, source), np.float32)
    rows = np.arange(target)
    matrix[rows, lower] = 1 - fraction
    matrix[rows, np.minimum(lower + 1, source - 1)] += fraction
    return matrix


def computed_interpolation_matrix(source: Any, target: Any, align_corners: bool) -> jax.Array:
    """Return `interpolation_matrix` for sizes that are known only when the program runs."""
    rows = jnp.arange(target)
    # In whole numbers, so that positions far along an axis stay precise: a position is numerator / denominator.
    if align_corners:
        denominator = jnp.maximum(jnp.asarray(target) - 1, 1)
        numerator = rows * (source - 1)
    else:
        denominator = 2 * jnp.asarray(target)
        numerator = jnp.clip((2 * rows + 1) * source - target, 0, 2 * target * (source - 1))
    lower = numerator // denominator
    fraction = ((numerator % denominator) / denominator).astype(jnp.float32)
    columns = jnp.arange(source)[None]
    at_lower, at_upper = columns == lower[:, None], columns == lower[:, None] + 1
    return at_lower * (1 - fraction)[:, None] + at_upper * fraction[:, None]


def resize_labels(labels: jax.Array, size: Sequence[int], *, align_corners: bool) -> jax.Array:
    """Return class ids resized to the nearest sample; of two equally near ones, to the lower index.

    Args:
      labels: integer `[N, H, W]`.
      size: `(height, width)` of the result.
      align_corners: as in `resize_bilinear`.

    Returns:
      `[N, height, width]` of the dtype of `labels`.
    """
    for axis, target in ((1, size[0]), (2, size[1])):
        source = labels.shape[axis]
        positions = sample_positions(source, target, align_corners)
        nearest = np.clip(np.ceil(positions - 0.5).astype(int), 0, source - 1)
        labels = jnp.take(labels, nearest, axis=axis)
    return labels


def centre_crop(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return the centre of `[N, H, W, ...]`, of `size` (height, width)."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]
