"""Atrous convolution, and who watches it; the ways to compute one are in `lowerings`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

import chex
import jax
from jax import lax

from deeplab_jax.ops import lowerings
from deeplab_jax.ops.geometry import effective_kernel_size, same_padding
from deeplab_jax.ops.lowerings import LAYOUT, NO_PADS, Form, Pairs, Window

Lowering = Literal["auto", "direct", "taps", "space_to_batch"]


@dataclass(frozen=True)
class Convolution:
    """One call of `conv2d` or `conv_transpose2d`, as an observer sees it.

    Attributes:
      inputs, kernel, outputs: shapes, `[N, H, W, C]`, HWIO and `[N, H', W', D]`.
      rate, stride: as given.
      padding: zeros `((top, bottom), (left, right))`.
      groups: 1, or the channels of a depthwise convolution.
      transposed: a transposed convolution, whose stride spreads the inputs.
    """

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    outputs: tuple[int, ...]
    rate: int
    stride: int
    padding: Pairs
    groups: int
    transposed: bool = False


_observer: ContextVar[Callable[[Convolution], None] | None] = ContextVar("observer", default=None)


@contextmanager
def observe_convolutions(observer: Callable[[Convolution], None]) -> Iterator[None]:
    """Call `observer` with every convolution that this thread computes or traces meanwhile, whatever its lowering."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def _observed(
    x: jax.Array, kernel: jax.Array, result: jax.Array, window: Window, *, transposed: bool = False
) -> jax.Array:
    observer = _observer.get()
    if observer is not None:
        shapes = (x.shape, kernel.shape, result.shape)
        observer(Convolution(*shapes, window.rate, window.stride, window.pads, window.groups, transposed))
    return result


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    rate: int = 1,
    stride: int = 1,
    padding: Literal["SAME", "VALID"] | Sequence[tuple[int, int]] | None = None,
    feature_group_count: int = 1,
    lowering: Lowering = "auto",
) -> jax.Array:
    """Convolve a map with a kernel whose taps are `rate` pixels apart (DeepLabv3, sec. 3.1).

    Args:
      x: `[N, H, W, C]`.
      kernel: `[kh, kw, C / feature_group_count, D]` (HWIO), of the dtype of `x`.
      rate: atrous rate, 1 and up.
      stride: distance of output samples, 1 and up.
      padding: None pads `rate * (k - 1) / 2` zeros on each side (odd kernels), so that the samples of a strided
        convolution sit at 0, s, 2s, ... and subsampling commutes with it; "SAME" is TensorFlow's, which pads less on
        the left for even sizes; "VALID" pads nothing; or explicit `((top, bottom), (left, right))`.
      feature_group_count: 1 for a dense convolution, C for a depthwise one.
      lowering: how to compute it; "auto" is what is fast on the platform that runs the program. One that does not cover
        the case (grouped kernels that are not depthwise, space-to-batch with a stride, sizes that are symbolic, a
        kernel that does not fit on the padded map) falls back to "direct", which covers all and is the one with a
        forward-mode derivative (`jax.jvp`) everywhere.

    Returns:
      `[N, H', W', D]` with `H' = conv_output_size(H, kh, ...)`.

    Raises:
      ValueError: an unknown lowering, or an even kernel with `padding=None`.
      AssertionError: shapes that do not fit.
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_axis_dimension(kernel, 2, x.shape[-1] // feature_group_count)
    if lowering not in get_args(Lowering):
        raise ValueError(f"lowering={lowering!r}: choose from {', '.join(get_args(Lowering))}")
    pads = explicit_padding(x.shape[1:3], kernel.shape[:2], rate=rate, stride=stride, padding=padding)
    window = Window(rate, stride, pads, feature_group_count)
    result = _form(lowering, x, kernel, window)(x, kernel, window)
    return _observed(x, kernel, result, window)


def _form(lowering: Lowering, x: jax.Array, kernel: jax.Array, window: Window) -> Form:
    """Return the function that computes a lowering, or "direct" where it does not cover the case."""
    dense = window.groups == 1
    depthwise = window.groups == x.shape[-1] == kernel.shape[3] and kernel.shape[2] == 1
    static = all(isinstance(side, int) for side in x.shape[1:3])
    if static and 0 in window.output_size(x.shape[1:3], kernel.shape):
        return lowerings.direct
    if lowering == "auto" and (dense or depthwise):
        return lowerings.auto
    if lowering == "taps" and (depthwise or (dense and static)):
        return lowerings.taps
    if lowering == "space_to_batch" and window.stride == 1 and window.rate > 1 and static:
        return lowerings.space_to_batch
    return lowerings.direct


def conv_transpose2d(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Add, for every sample of a map, the kernel weighted by it, at `stride` pixels' distance (FCN, sec. 3.3).

    The gradient of a "VALID" convolution of that stride, so bilinear upsampling by s is a kernel of 2s - s % 2 taps.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[kh, kw, C, D]`, not turned: sample (0, 0) alone puts `kernel[i, j]` at pixel (i, j).
      stride: 1 and up.

    Returns:
      `[N, (H - 1) * stride + kh, (W - 1) * stride + kw, D]`, which the caller crops.
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_axis_dimension(kernel, 2, x.shape[-1])
    height, width = kernel.shape[:2]
    result = lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((height - 1, height - 1), (width - 1, width - 1)),
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return _observed(x, kernel, result, Window(1, stride, NO_PADS, 1), transposed=True)


def explicit_padding(
    size: Sequence[int],
    kernel_size: Sequence[int],
    *,
    rate: int,
    stride: int,
    padding: Literal["SAME", "VALID"] | Sequence[tuple[int, int]] | None,
) -> Pairs:
    """Return the zeros `((top, bottom), (left, right))` that `padding` stands for; see `conv2d`."""
    if padding is None:
        row, column = (same_padding(k, rate) for k in kernel_size)
        return (row, row), (column, column)
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME":
        extent = [effective_kernel_size(k, rate) for k in kernel_size]
        padding = lax.padtype_to_pads(size, extent, (stride, stride), "SAME")
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))
