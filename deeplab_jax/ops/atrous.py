"""Atrous convolution and the ways to lower it.

`direct` hands the dilation to `lax.conv_general_dilated`. `taps` adds one product per kernel tap: a matrix product over
the valid overlap for dense kernels, a shifted product for depthwise ones. `space_to_batch` deinterleaves the map into
rate x rate smaller ones, as TensorFlow's atrous convolution does. All three compute the same sums; only speed and
rounding differ.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import conv_output_size, effective_kernel_size, same_padding

Lowering = Literal["auto", "direct", "taps", "space_to_batch"]
Pairs = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


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
_backend: ContextVar[str | None] = ContextVar("backend", default=None)


@contextmanager
def lowering_for(backend: str) -> Iterator[None]:
    """Let the lowering "auto" choose for a backend ("cpu", "gpu", "tpu") that is not the default one, in what this
    thread traces meanwhile.
    """
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


@contextmanager
def observe_convolutions(observer: Callable[[Convolution], None]) -> Iterator[None]:
    """Call `observer` with every convolution that this thread computes or traces meanwhile, whatever its lowering."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def _observed(
    x: jax.Array,
    kernel: jax.Array,
    result: jax.Array,
    rate: int,
    stride: int,
    pads: Pairs,
    groups: int,
    transposed: bool = False,
) -> jax.Array:
    observer = _observer.get()
    if observer is not None:
        observer(Convolution(x.shape, kernel.shape, result.shape, rate, stride, pads, groups, transposed))
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
      lowering: how to compute it; "auto" is `choose_lowering`. A lowering that does not cover the case (grouped kernels
        that are not depthwise, space-to-batch with a stride, sizes that are symbolic) falls back to "direct", which
        covers all.

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
    depthwise = feature_group_count == x.shape[-1] == kernel.shape[3] and kernel.shape[2] == 1 and x.shape[-1] > 1
    if lowering == "auto":
        lowering = choose_lowering(kernel.shape, rate=rate, stride=stride, depthwise=depthwise)
    static = all(isinstance(side, int) for side in x.shape[1:3])
    if lowering == "taps" and depthwise:
        result = _depthwise_taps(x, kernel[:, :, 0, :], rate, stride, pads)
    elif lowering == "taps" and feature_group_count == 1 and stride == 1 and static:
        result = _dense_taps(x, kernel, rate, pads)
    elif lowering == "space_to_batch" and stride == 1 and rate > 1 and static:
        result = _space_to_batch(x, kernel, rate, pads, feature_group_count)
    else:
        result = _direct(x, kernel, rate, stride, pads, feature_group_count)
    return _observed(x, kernel, result, rate, stride, pads, feature_group_count)


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
        dimension_numbers=_LAYOUT,
    )
    return _observed(x, kernel, result, 1, stride, ((0, 0), (0, 0)), 1, transposed=True)


def choose_lowering(kernel_shape: Sequence[int], *, rate: int, stride: int, depthwise: bool) -> Lowering:
    """Decide what "auto" means for one convolution on the default backend, or on that of `lowering_for`.

    On a CPU, XLA computes a depthwise convolution 20 to 40 times slower than nine shifted products, and the padding
    that a dense kernel of large rate mostly sees is arithmetic that `taps` leaves out; below rate 4 the direct form
    wins once the gradient is counted. Elsewhere the vendor's kernels win.
    """
    spatial = kernel_shape[0] * kernel_shape[1] > 1
    if (_backend.get() or jax.default_backend()) == "cpu" and spatial and (depthwise or (rate >= 4 and stride == 1)):
        return "taps"
    return "direct"


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


def _direct(x: jax.Array, kernel: jax.Array, rate: int, stride: int, pads: Pairs, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        rhs_dilation=(rate, rate),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _dense_taps(x: jax.Array, kernel: jax.Array, rate: int, pads: Pairs) -> jax.Array:
    """Sum over the taps of a matrix product restricted to the pixels whose shifted neighbour lies on the map."""
    sizes = x.shape[1:3]
    outputs = [_output_size(sizes[a], kernel.shape[a], rate, 1, pads[a]) for a in (0, 1)]
    total = jnp.zeros((x.shape[0], *outputs, kernel.shape[3]), x.dtype)
    for row in range(kernel.shape[0]):
        y_out, y_in = _overlap(row * rate - pads[0][0], sizes[0], outputs[0])
        for column in range(kernel.shape[1]):
            x_out, x_in = _overlap(column * rate - pads[1][0], sizes[1], outputs[1])
            if y_in.start < y_in.stop and x_in.start < x_in.stop:
                product = jnp.einsum("nhwc,cd->nhwd", x[:, y_in, x_in], kernel[row, column])
                total = total.at[:, y_out, x_out].add(product)
    return total


def _overlap(offset: int, size: int, output: int) -> tuple[slice, slice]:
    """Return the output positions, and the input positions `offset` further, for which the input is on the map."""
    start, stop = max(0, -offset), min(output, size - offset)
    return slice(start, stop), slice(start + offset, stop + offset)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise_taps(x: jax.Array, kernel: jax.Array, rate: int, stride: int, pads: Pairs) -> jax.Array:
    """Sum over the taps of the shifted map times a row of the kernel `[kh, kw, C]`; XLA fuses it into one pass."""
    shifts = _shifted(x, kernel.shape[:2], rate, stride, pads)
    products = [shift * kernel[row, column][None, None, None] for row, column, shift in shifts]
    return sum(products[1:], products[0])


def _shifted(
    x: jax.Array, kernel_size: Sequence[int], rate: int, stride: int, pads: Pairs
) -> list[tuple[int, int, jax.Array]]:
    """Return (row, column, what that tap sees of the padded map at every output position) for every tap."""
    n, height, width, channels = x.shape
    out_h = _output_size(height, kernel_size[0], rate, stride, pads[0])
    out_w = _output_size(width, kernel_size[1], rate, stride, pads[1])
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))

    def view(row: int, column: int) -> jax.Array:
        y, z = row * rate, column * rate
        stop = (n, y + (out_h - 1) * stride + 1, z + (out_w - 1) * stride + 1, channels)
        return lax.slice(padded, (0, y, z, 0), stop, (1, stride, stride, 1))

    return [(row, column, view(row, column)) for row in range(kernel_size[0]) for column in range(kernel_size[1])]


def _depthwise_taps_forward(
    x: jax.Array, kernel: jax.Array, rate: int, stride: int, pads: Pairs
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise_taps(x, kernel, rate, stride, pads), (x, kernel)


def _depthwise_taps_backward(
    rate: int, stride: int, pads: Pairs, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradient of the map is again a depthwise convolution (of the strided-out gradient with the turned kernel), so
    it gets the same form.

    Differentiating the forward form instead would add nine padded maps, which XLA does not fuse as well.
    """
    x, kernel = residuals
    spread = [(gradient.shape[axis] - 1) * stride + 1 for axis in (1, 2)]
    before = [rate * (kernel.shape[axis] - 1) - pads[axis][0] for axis in (0, 1)]
    after = [x.shape[axis + 1] + pads[axis][0] - spread[axis] for axis in (0, 1)]
    grown = lax.pad(
        gradient,
        jnp.zeros((), gradient.dtype),
        ((0, 0, 0), (before[0], after[0], stride - 1), (before[1], after[1], stride - 1), (0, 0, 0)),
    )
    x_gradient = _depthwise_taps(grown, kernel[::-1, ::-1], rate, 1, ((0, 0), (0, 0)))
    rows = [
        jnp.einsum("nhwc,nhwc->c", shift, gradient, preferred_element_type=jnp.float32)
        for _, _, shift in _shifted(x, kernel.shape[:2], rate, stride, pads)
    ]
    return x_gradient, jnp.stack(rows).reshape(kernel.shape).astype(kernel.dtype)


_depthwise_taps.defvjp(_depthwise_taps_forward, _depthwise_taps_backward)


def _space_to_batch(x: jax.Array, kernel: jax.Array, rate: int, pads: Pairs, groups: int) -> jax.Array:
    """Deinterleave the padded map into rate x rate maps, convolve them at rate 1, and interleave the results."""
    n, _, _, channels = x.shape
    outputs = [_output_size(x.shape[axis + 1], kernel.shape[axis], rate, 1, pads[axis]) for axis in (0, 1)]
    # TensorFlow's op, too, grows the map to a multiple of the rate; the papers' multiply-add counts include those
    # zeros.
    blocks = [-(-size // rate) for size in outputs]
    grown = [(block + kernel.shape[axis] - 1) * rate for axis, block in enumerate(blocks)]
    tail = [grown[axis] - x.shape[axis + 1] - pads[axis][0] for axis in (0, 1)]
    padded = lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (pads[0][0], tail[0], 0), (pads[1][0], tail[1], 0), (0, 0, 0))
    )
    maps = padded.reshape(n, grown[0] // rate, rate, grown[1] // rate, rate, channels)
    maps = maps.transpose(2, 4, 0, 1, 3, 5).reshape(rate * rate * n, grown[0] // rate, grown[1] // rate, channels)
    result = _direct(maps, kernel, 1, 1, ((0, 0), (0, 0)), groups)
    result = result.reshape(rate, rate, n, blocks[0], blocks[1], kernel.shape[3])
    result = result.transpose(2, 3, 0, 4, 1, 5).reshape(n, blocks[0] * rate, blocks[1] * rate, kernel.shape[3])
    return result[:, : outputs[0], : outputs[1]]


def _output_size(size: int, kernel_size: int, rate: int, stride: int, pads: tuple[int, int]) -> int:
    return conv_output_size(size + sum(pads), kernel_size, stride=stride, padding=0, rate=rate)
