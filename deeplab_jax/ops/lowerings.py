"""Ways to compute a convolution over `[N, H, W, C]`, forward and backward.

`direct` hands the dilation to `lax.conv_general_dilated`. `taps` adds one product per kernel tap, over only those
positions whose sample lies on the map: a matrix product for dense kernels, a shifted product for depthwise ones.
`space_to_batch` deinterleaves the map into rate x rate smaller ones, as TensorFlow's atrous convolution does. `auto`
takes `direct` everywhere but on a CPU, and there what `choose_on_cpu` says. All compute the same sums; only speed and
rounding differ.

A matrix product here is always of two matrices: XLA's CPU backend takes up to five times as long for the gradient of
one whose operand has the rank of a map.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import conv_output_size, taps_on_map

Pairs = tuple[tuple[int, int], tuple[int, int]]
Tap = tuple[int, int]

# What `choose_on_cpu` goes by; `python -m experiments.benchmarks --parts lowerings` measures it.
FEW_CHANNELS = 16
TAPS_SHARE = 0.93
WHOLE_ROWS_SHARE = 0.7
FEW_MULTIPLY_ADDS = 100_000_000  # A millisecond or two: one operation for XLA to compile is worth more than speed.

NO_PADS: Pairs = ((0, 0), (0, 0))
LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class Window:
    """How a kernel `[kh, kw, C / groups, D]` lies on a map: `pads` are zeros `((top, bottom), (left, right))`, which
    may be negative.
    """

    rate: int
    stride: int
    pads: Pairs
    groups: int

    def output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the result."""
        rows, columns = (
            conv_output_size(size[a] + sum(self.pads[a]), kernel_size[a], stride=self.stride, padding=0, rate=self.rate)
            for a in (0, 1)
        )
        return rows, columns

    def shares_on_map(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[float, float]:
        """Return the shares (0 to 1) of the kernel's rows and columns that lie on the map and not on its padding, over
        all positions; their product is the share of the multiply-adds.
        """
        outputs = self.output_size(size, kernel_size)
        rows, columns = (
            taps_on_map(
                size[a], outputs[a], kernel_size[a], stride=self.stride, rate=self.rate, before=self.pads[a][0]
            ).mean()
            for a in (0, 1)
        )
        return float(rows), float(columns)


Form = Callable[[jax.Array, jax.Array, Window], jax.Array]


def direct(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Let XLA convolve; covers every case."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride, window.stride),
        padding=window.pads,
        rhs_dilation=(window.rate, window.rate),
        dimension_numbers=LAYOUT,
        feature_group_count=window.groups,
    )


def space_to_batch(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Deinterleave the padded map into rate x rate maps, convolve them at rate 1, and interleave the results.

    TensorFlow's op, too, grows the map to a multiple of the rate; the papers' multiply-add counts include those zeros.
    """
    n, _, _, channels = x.shape
    rate, pads = window.rate, window.pads
    outputs = window.output_size(x.shape[1:3], kernel.shape)
    blocks = [-(-size // rate) for size in outputs]
    grown = [(block + kernel.shape[axis] - 1) * rate for axis, block in enumerate(blocks)]
    tail = [grown[axis] - x.shape[axis + 1] - pads[axis][0] for axis in (0, 1)]
    padded = _pad(x, ((pads[0][0], tail[0]), (pads[1][0], tail[1])))
    maps = padded.reshape(n, grown[0] // rate, rate, grown[1] // rate, rate, channels)
    maps = maps.transpose(2, 4, 0, 1, 3, 5).reshape(rate * rate * n, grown[0] // rate, grown[1] // rate, channels)
    result = direct(maps, kernel, Window(1, 1, NO_PADS, window.groups))
    result = result.reshape(rate, rate, n, blocks[0], blocks[1], kernel.shape[3])
    result = result.transpose(2, 3, 0, 4, 1, 5).reshape(n, blocks[0] * rate, blocks[1] * rate, kernel.shape[3])
    return result[:, : outputs[0], : outputs[1]]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taps_with_gradient(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Add one product per tap; for dense and depthwise kernels. Has no forward-mode derivative."""
    return _taps(x, kernel, window)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _auto_with_gradient(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute on each platform in the way that is fast there; for dense and depthwise kernels.

    The choice is part of the traced program, so what is exported on one platform is as fast on another. Has no
    forward-mode derivative.
    """
    return lax.platform_dependent(
        x, kernel, cpu=partial(_on_cpu, window=window), default=partial(direct, window=window)
    )


# Compiled functions of their own, so that equal layers are traced once.
taps: Form = jax.jit(_taps_with_gradient, static_argnums=2)
auto: Form = jax.jit(_auto_with_gradient, static_argnums=2)


def choose_on_cpu(shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> Literal["direct", "taps"]:
    """Decide how a convolution of a map of some shape is computed on a CPU.

    XLA takes more than ten times as long there for a depthwise convolution as for nine shifted products, and for a 1x1
    convolution 1.4 times as long as for the matrix product that it is (with gradients 1.9 times; medians on an Intel
    Xeon). Of larger dense kernels `taps` leaves out what falls on padding, which is most at large rates, and pays with
    a sum of as many maps as there are taps. Kernels with few inputs, such as a network's first, make thin products; and
    small convolutions are not worth the time that many operations take to compile.
    """
    if not _are_taps_worth_it(shape, kernel_shape, window):
        return "direct"
    if _is_one_operation(kernel_shape, window):
        return "taps"
    return "taps" if math.prod(window.shares_on_map(shape[1:3], kernel_shape)) <= TAPS_SHARE else "direct"


def _is_one_operation(kernel_shape: Sequence[int], window: Window) -> bool:
    """Whether `taps` is a single product or a single pass over the map."""
    return window.groups > 1 or math.prod(kernel_shape[:2]) == 1


def _are_taps_worth_it(shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> bool:
    """Whether the products of the taps are neither thin nor small; a free batch counts as one image."""
    if _is_one_operation(kernel_shape, window):
        return True
    if kernel_shape[2] < FEW_CHANNELS or not all(isinstance(side, int) for side in shape[1:3]):
        return False
    images = shape[0] if isinstance(shape[0], int) else 1
    outputs = window.output_size(shape[1:3], kernel_shape)
    return math.prod((images, *outputs, *kernel_shape)) >= FEW_MULTIPLY_ADDS


def _on_cpu(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return (_taps if choose_on_cpu(x.shape, kernel.shape, window) == "taps" else direct)(x, kernel, window)


def _taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    if window.groups > 1:
        return _depthwise_taps(x, kernel, window)
    if kernel.shape[:2] == (1, 1) and window.pads == NO_PADS:
        return _product(x[:, :: window.stride, :: window.stride], kernel[0, 0]).astype(x.dtype)
    return _dense_taps(x, kernel, window)


def _product(samples: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply every sample `[N, H, W, C]` by a matrix `[C, D]`, in float32."""
    flat = jnp.matmul(samples.reshape(-1, matrix.shape[0]), matrix, preferred_element_type=jnp.float32)
    return flat.reshape(*samples.shape[:3], matrix.shape[1])


def _dense_taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Sum over the taps of a matrix product restricted to the positions whose sample lies on the map, in float32.

    Rows of samples are one block of memory, a part of each row is a copy of the map. So where most columns lie on the
    map, whole rows are multiplied, and the result is cut.
    """
    size = x.shape[1:3]
    total = jnp.zeros((x.shape[0], *window.output_size(size, kernel.shape), kernel.shape[3]), jnp.float32)
    whole_rows = window.stride == 1 and window.shares_on_map(size, kernel.shape)[1] >= WHOLE_ROWS_SHARE
    for tap, (seen_rows, seen_columns), (rows, columns) in _positions(size, kernel.shape, window):
        if whole_rows:
            product = _product(x[:, seen_rows], kernel[tap])[:, :, seen_columns]
        else:
            product = _product(x[:, seen_rows, seen_columns], kernel[tap])
        total = total.at[:, rows, columns].add(product)
    return total.astype(x.dtype)


def _depthwise_taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Sum over the taps of the shifted map times a row of the kernel; XLA fuses it into one pass."""
    products = [view * kernel[tap][None, None] for tap, view in _shifted(x, kernel.shape, window)]
    return reduce(jnp.add, products)


def _taps_forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _taps(x, kernel, window), (x, kernel)


def _auto_forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _auto_with_gradient(x, kernel, window), (x, kernel)


def _taps_backward(
    window: Window, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return _input_gradient(_taps, x, kernel, gradient, window), _kernel_gradient(x, kernel, gradient, window)


def _auto_backward(
    window: Window, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def on_cpu(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        by_taps = _are_taps_worth_it(x.shape, kernel.shape, window)
        of_kernel = _kernel_gradient if by_taps else _direct_kernel_gradient
        return _input_gradient(_on_cpu, x, kernel, gradient, window), of_kernel(x, kernel, gradient, window)

    def elsewhere(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradients: tuple[jax.Array, jax.Array] = jax.vjp(partial(direct, window=window), x, kernel)[1](gradient)
        return gradients

    return lax.platform_dependent(*residuals, gradient, cpu=on_cpu, default=elsewhere)


_taps_with_gradient.defvjp(_taps_forward, _taps_backward)
_auto_with_gradient.defvjp(_auto_forward, _auto_backward)


def _input_gradient(form: Form, x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    """Return the gradient of the map, which is again a convolution: of the gradient with the turned kernel.

    Where the convolution strides, zeros go between the gradient's samples (depthwise) or the result's (1x1), or XLA's
    own form does it (larger dense kernels).
    """
    height, width = kernel.shape[:2]
    stride, (vertical, horizontal) = window.stride, window.pads
    turned = kernel[::-1, ::-1]
    if window.groups == 1:
        turned = turned.swapaxes(2, 3)
        if stride > 1 and height * width > 1:
            (result,) = jax.linear_transpose(lambda x: direct(x, kernel, window), x)(gradient)
            return result
    # How far the gradient's samples, spread by the stride, stay from the borders of the map.
    low = (-vertical[0], -horizontal[0])
    high = [x.shape[a + 1] - low[a] - (gradient.shape[a + 1] - 1) * stride - 1 for a in (0, 1)]
    if height * width == 1:
        product = form(gradient, turned, Window(1, 1, NO_PADS, window.groups))
        return _pad(product, ((low[0], high[0]), (low[1], high[1])), between=stride - 1)
    reach = [window.rate * (side - 1) for side in (height, width)]
    gradient = _pad(gradient, NO_PADS, between=stride - 1)
    pads = ((low[0] + reach[0], high[0]), (low[1] + reach[1], high[1]))
    return form(gradient, turned, Window(window.rate, 1, pads, window.groups))


def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    """Return the gradient of the kernel: for each tap the sum over the positions of what it saw times the gradient."""
    if window.groups > 1:
        return _depthwise_kernel_gradient(x, kernel, gradient, window)
    channels, features = kernel.shape[2:]
    result = jnp.zeros(kernel.shape, jnp.float32)
    for tap, seen, there in _positions(x.shape[1:3], kernel.shape, window):
        samples, gradients = x[:, *seen].reshape(-1, channels), gradient[:, *there].reshape(-1, features)
        result = result.at[tap].set(jnp.matmul(samples.T, gradients, preferred_element_type=jnp.float32))
    return result.astype(kernel.dtype)


def _direct_kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    (result,) = jax.linear_transpose(lambda kernel: direct(x, kernel, window), kernel)(gradient)
    return result


def _depthwise_kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    """Add up, row after row of the gradient, its product with what every tap saw there.

    The loop keeps one sum `[N, W', C]` per tap; a reduction over rows and columns at once, which XLA's CPU backend
    computes channel by channel, takes up to fourteen times as long.
    """
    height, width = kernel.shape[:2]
    padded = _pad(x, window.pads)
    reach = (gradient.shape[2] - 1) * window.stride + 1

    def add_row(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        there = lax.dynamic_index_in_dim(gradient, index, axis=1, keepdims=False).astype(jnp.float32)
        products = []
        for row in range(height):
            seen = lax.dynamic_index_in_dim(padded, index * window.stride + row * window.rate, axis=1, keepdims=False)
            for column in range(width):
                start = column * window.rate
                view = lax.slice_in_dim(seen, start, start + reach, window.stride, axis=1)
                products.append(view.astype(jnp.float32) * there)
        return tuple(map(jnp.add, sums, products))

    n, rows, columns, channels = gradient.shape
    zeros = (jnp.zeros((n, columns, channels), jnp.float32),) * (height * width)
    sums = lax.fori_loop(0, rows, add_row, zeros)
    return jnp.stack([jnp.sum(each, axis=(0, 1)) for each in sums]).reshape(kernel.shape).astype(kernel.dtype)


def _positions(
    size: Sequence[int], kernel_shape: Sequence[int], window: Window
) -> Iterator[tuple[Tap, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield each tap that touches the map, the rows and columns of the map that it sees, and those of the result that
    see them.
    """
    outputs = window.output_size(size, kernel_shape)

    def along(axis: int, tap: int) -> tuple[slice, slice]:
        offset, stride = tap * window.rate - window.pads[axis][0], window.stride
        first, last = max(0, -(offset // stride)), min(outputs[axis] - 1, (size[axis] - 1 - offset) // stride)
        last = max(last, first - 1)
        return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)

    for row in range(kernel_shape[0]):
        for column in range(kernel_shape[1]):
            (seen_y, y), (seen_x, x) = along(0, row), along(1, column)
            if y.start < y.stop and x.start < x.stop:
                yield (row, column), (seen_y, seen_x), (y, x)


def _pad(x: jax.Array, pads: Pairs, *, between: int = 0) -> jax.Array:
    """Put zeros around a map, and between its samples; negative numbers take rows and columns away."""
    (top, bottom), (left, right) = pads
    border = ((0, 0, 0), (top, bottom, between), (left, right, between), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), border)


def _shifted(x: jax.Array, kernel_shape: Sequence[int], window: Window) -> list[tuple[Tap, jax.Array]]:
    """Return every tap with what it sees of the padded map at all positions."""
    n, height, width, channels = x.shape
    rows, columns = window.output_size((height, width), kernel_shape)
    stride, padded = window.stride, _pad(x, window.pads)

    def view(row: int, column: int) -> jax.Array:
        y, z = row * window.rate, column * window.rate
        stop = (n, y + (rows - 1) * stride + 1, z + (columns - 1) * stride + 1, channels)
        return lax.slice(padded, (0, y, z, 0), stop, (1, stride, stride, 1))

    return [((row, column), view(row, column)) for row in range(kernel_shape[0]) for column in range(kernel_shape[1])]
