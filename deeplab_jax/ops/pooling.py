"""Pooling, with symmetric padding unless stated otherwise."""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.ops.resize import require_floating


def max_pool(
    x: jax.Array, *, window: int, stride: int, rate: int = 1, padding: Literal["SAME"] | None = None
) -> jax.Array:
    """Return the maxima over windows around every `stride`-th pixel:
    `[N, H, W, C] -> [N, ceil(H / s), ceil(W / s), C]`.

    Odd windows are centred. Even ones reach further down and right, so that 2x2 windows of stride 2 tile the map. The
    part of a window beyond the map does not count.

    It takes one axis after the other, as a maximum of shifted views: on a CPU the gradient takes a third of the time of
    XLA's select-and-scatter. If several pixels of a window share the maximum, they share the gradient too;
    select-and-scatter gives all of it to the first.

    Args:
      x: `[N, H, W, C]`.
      window: pixels of a window along each side.
      stride: distance of the windows.
      rate: distance of the pixels within a window, for maps whose stride became a rate.
      padding: None is symmetric; "SAME" is TensorFlow's, whose windows are not centred where a stride meets an even
        side.

    Raises:
      ValueError: another padding.
    """
    if padding not in (None, "SAME"):
        raise ValueError(f"padding={padding!r}: give None or 'SAME'")
    extent = (window - 1) * rate
    lowest = jnp.array(-jnp.inf, x.dtype)
    for axis in (1, 2):
        outputs = (x.shape[axis] - 1) // stride + 1
        before = (window - 1) // 2 * rate
        if padding == "SAME":
            before = max((outputs - 1) * stride + extent + 1 - x.shape[axis], 0) // 2
        border = [(0, 0, 0)] * x.ndim
        border[axis] = (before, extent - before, 0)
        padded = lax.pad(x, lowest, border)
        starts = [tap * rate for tap in range(window)]
        x = reduce(
            jnp.maximum,
            (lax.slice_in_dim(padded, start, start + (outputs - 1) * stride + 1, stride, axis) for start in starts),
        )
    return x


def global_average_pool(x: jax.Array) -> jax.Array:
    """Return the average over height and width, in float32: `[N, H, W, C] -> [N, 1, 1, C]` of the dtype of `x`.

    Raises:
      TypeError: `x` is not of a floating dtype.
    """
    require_floating(x)
    return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


def max_unpool(x: jax.Array, pooled: jax.Array) -> jax.Array:
    """Undo a 2x2 max pooling of stride 2: put each value where the pooled map had its maximum, zeros elsewhere.

    If several maxima are equal, the first in reading order counts, as in PyTorch and Caffe.

    Args:
      x: `[N, ceil(H / 2), ceil(W / 2), C]`.
      pooled: `[N, H, W, C]`, the map that was pooled.

    Returns:
      `[N, H, W, C]`.
    """
    height, width = pooled.shape[1:3]
    size = (2 * x.shape[1], 2 * x.shape[2])
    lowest = jnp.array(-jnp.inf, pooled.dtype)
    whole = lax.pad(pooled, lowest, ((0, 0, 0), (0, size[0] - height, 0), (0, size[1] - width, 0), (0, 0, 0)))
    corners = [(row, column) for row in (0, 1) for column in (0, 1)]
    views = [whole[:, row::2, column::2] for row, column in corners]
    highest = reduce(jnp.maximum, views)
    taken = jnp.zeros(x.shape, bool)
    result = jnp.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
    for (row, column), view in zip(corners, views, strict=True):
        here = (view == highest) & ~taken
        taken |= here
        spread = ((0, 0, 0), (row, 1 - row, 1), (column, 1 - column, 1), (0, 0, 0))
        result += lax.pad(jnp.where(here, x, 0), jnp.zeros((), x.dtype), spread)
    return result[:, :height, :width]


def adaptive_average_pool(x: jax.Array, bins: int) -> jax.Array:
    """Return averages over `bins x bins` regions that cover a map of any size: `[N, H, W, C] -> [N, bins, bins, C]`.

    Region i reaches from `floor(i H / bins)` to `ceil((i + 1) H / bins)`, as in PyTorch, so regions may share a row.
    The averages are computed in float32.

    Raises:
      TypeError: `x` is not of a floating dtype.
    """
    require_floating(x)
    rows, columns = (jnp.asarray(_averaging_matrix(size, bins)) for size in x.shape[1:3])
    averages = jnp.einsum("ph,qw,nhwc->npqc", rows, columns, x.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return averages.astype(x.dtype)


def _averaging_matrix(size: int, bins: int) -> np.ndarray:
    matrix = np.zeros((bins, size), np.float32)
    for index, (start, stop) in enumerate(_regions(size, bins)):
        matrix[index, start:stop] = 1 / (stop - start)
    return matrix


def _regions(size: int, bins: int) -> list[tuple[int, int]]:
    return [(index * size // bins, -(-(index + 1) * size // bins)) for index in range(bins)]


def spatial_pyramid(x: jax.Array, bins: Sequence[int]) -> jax.Array:
    """Return a vector of fixed length for a map of any size: the maxima over `b x b` regions for each b in `bins`.

    SPP-net (arXiv 1406.4729, sec. 2.2) derives window and stride from the size, which for some sizes gives more than b
    windows. The regions of `adaptive_average_pool` are always b.

    Returns:
      `[N, C * sum(b * b)]`: level by level, and region by region in reading order. For 256 channels and bins 4, 2, 1
      these are 5376 numbers.
    """
    maxima = []
    for count in bins:
        rows, columns = (_regions(size, count) for size in x.shape[1:3])
        maxima += [
            jnp.max(x[:, top:bottom, left:right], axis=(1, 2)) for top, bottom in rows for left, right in columns
        ]
    return jnp.concatenate(maxima, axis=-1)
