"""Atrous convolution (DeepLabv3, sec. 3.1): a convolution whose kernel taps lie `r` pixels apart.

    y[i] = sum over k of x[i + r k] w[k]

The rate `r` widens the area that a kernel sees and adds no weights: `k` taps span `k + (k - 1)(r - 1)` pixels, the
effective kernel size. With `r (k - 1) / 2` zeros on each side the result is as large as the map.
"""

from collections.abc import Sequence
from typing import Literal

import chex
import jax
import numpy as np
from jax import lax

from deeplab_jax.ops import lowerings
from deeplab_jax.ops.geometry import Pads, Window, effective_kernel_size, same_padding
from deeplab_jax.ops.observe import Convolution, notify

Padding = Literal["SAME", "VALID"] | Sequence[tuple[int, int]] | None
Lowering = Literal["auto", "direct", "taps", "space_to_batch"]


def direct(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Return the convolution as XLA computes it: `rhs_dilation` spreads the taps. It covers every case."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride, window.stride),
        padding=window.pads,
        rhs_dilation=(window.rate, window.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


FORMS: dict[Lowering, lowerings.Form] = {
    "auto": lowerings.faster_on_cpu(direct),
    "direct": direct,
    "taps": lowerings.taps,
    "space_to_batch": lowerings.space_to_batch,
}


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    rate: int = 1,
    stride: int = 1,
    padding: Padding = None,
    feature_group_count: int = 1,
    lowering: Lowering = "auto",
) -> jax.Array:
    """Return the convolution `[N, H', W', D]` of a map with a kernel, with `H' = conv_output_size(H, kh, ...)`.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[kh, kw, C / feature_group_count, D]` (HWIO), with the dtype of `x`.
      rate: atrous rate, at least 1: the distance of the taps in pixels.
      stride: distance of the output samples in pixels, at least 1.
      padding: zeros around the map. None puts `rate * (k - 1) / 2` on each side (odd kernels): the samples of a strided
        convolution are at 0, s, 2s, ..., so it equals a convolution of stride 1, subsampled. "SAME" is TensorFlow's,
        with fewer zeros before an even side than after it; "VALID" means none; or `((top, bottom), (left, right))`.
      feature_group_count: 1 for a dense convolution, C for a depthwise one.
      lowering: how to compute it; see `lowerings`. "auto" is fast on the platform that runs the program. "direct" is
        XLA's own convolution, which also replaces a lowering that does not cover the case. Give "direct" under
        `jax.shard_map` and on a mesh with explicit axes: JAX cannot check or infer there how the others split.

    Raises:
      ValueError: an unknown lowering or padding, a rate or stride below 1, or an even kernel with `padding=None`.
      TypeError: a map and a kernel of different dtypes, or a rate or stride that is no integer.
      AssertionError: shapes that do not fit.
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_axis_dimension(kernel, 2, x.shape[-1] // feature_group_count)
    if x.dtype != kernel.dtype:
        raise TypeError(f"the map is {x.dtype} and the kernel {kernel.dtype}: give both the same dtype")
    if lowering not in FORMS:
        raise ValueError(f"lowering={lowering!r}: choose from {', '.join(FORMS)}")
    if not (isinstance(rate, int | np.integer) and isinstance(stride, int | np.integer)):
        raise TypeError(f"rate={rate!r}, stride={stride!r}: give each as one integer, for both sides")
    if rate < 1 or stride < 1:
        raise ValueError(f"rate={rate}, stride={stride}: give at least 1")
    pads = explicit_padding(x.shape[1:3], kernel.shape[:2], rate=rate, stride=stride, padding=padding)
    window = Window(rate, stride, pads, feature_group_count)
    form = FORMS[lowering] if lowerings.covers(lowering, x.shape, kernel.shape, window) else direct
    result = form(x, kernel, window)
    notify(Convolution(x.shape, kernel.shape, result.shape, rate, stride, pads, feature_group_count))
    return result


def explicit_padding(
    size: Sequence[int], kernel_size: Sequence[int], *, rate: int, stride: int, padding: Padding
) -> Pads:
    """Return the zeros `((top, bottom), (left, right))` that `padding` means; see `conv2d`."""
    if padding is None:
        row, column = (same_padding(k, rate) for k in kernel_size)
        return (row, row), (column, column)
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME":
        extent = [effective_kernel_size(k, rate) for k in kernel_size]
        padding = lax.padtype_to_pads(size, extent, (stride, stride), "SAME")
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: give None, 'SAME', 'VALID' or ((top, bottom), (left, right))")
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))
