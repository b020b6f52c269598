"""A convolution as a sum over the taps of its kernel, with its gradients, for dense and depthwise kernels.

Each tap adds one product, over only the positions whose sample lies on the map: a matrix product for dense kernels, a
shifted product for depthwise ones.

Sums are in float32, or in float64 if the map is.

Both operands of a matrix product here are matrices. If one has the rank of a map, XLA's CPU backend takes up to five
times as long for the gradient.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.ops.geometry import NO_PADS, Pads, Window, taps_on_map
from deeplab_jax.ops.primitive import Form

Tap = tuple[int, int]
WHOLE_ROWS_SHARE = 0.7  # `python -m experiments.benchmarks --parts lowerings` measures it.


def sum_dtype(dtype: Any) -> Any:
    """Return the dtype in which the products of a dtype are added up."""
    return jnp.promote_types(dtype, jnp.float32)


def sum_of_taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Return the convolution `[N, H', W', D]` of a map `[N, H, W, C]` with an HWIO kernel."""
    if window.groups > 1:
        return _depthwise_taps(x, kernel, window)
    if kernel.shape[:2] == (1, 1) and window.pads == NO_PADS:
        return _matrix_product(_every(x, window.stride), kernel[0, 0]).astype(x.dtype)
    return _dense_taps(x, kernel, window)


def _every(x: jax.Array, stride: int) -> jax.Array:
    """Return every `stride`-th sample of a map, from the first one on. The slice ends with the last of them, so that an
    unknown size gives the same formula as `Window.output_size`.
    """
    n, height, width, channels = x.shape
    rows, columns = ((side - 1) // stride * stride + 1 for side in (height, width))
    return lax.slice(x, (0, 0, 0, 0), (n, rows, columns, channels), (1, stride, stride, 1))


def _matrix_product(samples: jax.Array, matrix: jax.Array) -> jax.Array:
    """Return every sample `[N, H, W, C]` times a matrix `[C, D]`: `[N, H, W, D]` of the sums' dtype."""
    flat = jnp.matmul(samples.reshape(-1, matrix.shape[0]), matrix, preferred_element_type=sum_dtype(samples.dtype))
    return flat.reshape(*samples.shape[:3], matrix.shape[1])


def matrix_transpose(matrices: jax.Array) -> jax.Array:
    """Return matrices `[..., A, B]` as `[..., B, A]`; those of bfloat16 are copied.

    XLA makes a transposition part of the product that uses it. Its CPU backend computes such a product of bfloat16 in
    float32. On a processor with products of bfloat16 (AMX), this takes two to four times as long as copy and product.
    The axis of one keeps the transposition apart.
    """
    if matrices.dtype != jnp.bfloat16:
        return matrices.swapaxes(-1, -2)
    *outer, rows, columns = matrices.shape
    return jnp.moveaxis(matrices[..., None, :], -1, -3).reshape(*outer, columns, rows)


def _dense_taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Return the sum of the taps' matrix products, over only the positions whose sample lies on the map.

    Whole rows of the map are one block of memory; a part of each row must be copied first. So if
    most columns lie on the map, it multiplies whole rows and cuts the product.
    """
    size = x.shape[1:3]
    total = jnp.zeros((x.shape[0], *window.output_size(size, kernel.shape), kernel.shape[3]), sum_dtype(x.dtype))
    whole_rows = window.stride == 1 and window.shares_on_map(size, kernel.shape)[1] >= WHOLE_ROWS_SHARE
    for tap, (seen_rows, seen_columns), (rows, columns) in _positions(size, kernel.shape, window):
        if whole_rows:
            products = _matrix_product(x[:, seen_rows], kernel[tap])[:, :, seen_columns]
        else:
            products = _matrix_product(x[:, seen_rows, seen_columns], kernel[tap])
        total = total.at[:, rows, columns].add(products)
    return total.astype(x.dtype)


def _depthwise_taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Return the sum over the taps of the shifted map times the tap's weights; XLA fuses it into one pass."""
    live, window = _on_map(x.shape[1:3], kernel.shape, window)
    kernel = kernel[live]
    n, height, width, channels = x.shape
    rows, columns = window.output_size((height, width), kernel.shape)
    rate, stride, padded = window.rate, window.stride, pad(x, window.pads)

    def seen_by(row: int, column: int) -> jax.Array:
        top, left = row * rate, column * rate
        stop = (n, top + (rows - 1) * stride + 1, left + (columns - 1) * stride + 1, channels)
        return lax.slice(padded, (0, top, left, 0), stop, (1, stride, stride, 1)).astype(sum_dtype(x.dtype))

    weights = kernel.astype(sum_dtype(kernel.dtype))
    return reduce(jnp.add, [seen_by(*tap) * weights[tap][None, None] for tap in _taps_of(kernel.shape)]).astype(x.dtype)


def input_gradient(
    form: Form, x: jax.ShapeDtypeStruct, kernel: jax.Array, gradient: jax.Array, window: Window
) -> jax.Array:
    """Return the gradient of the map, which is again a convolution: the result's gradient with the rotated kernel.

    If the convolution has a stride, zeros go between the samples: of the result's gradient (depthwise), of the product
    (1x1), or by XLA (larger dense kernels).

    Args:
      form: how to convolve.
      x: shape and dtype of the map.
      kernel: HWIO.
      gradient: gradient of the result, `[N, H', W', D]`.
      window: window of the forward convolution.
    """
    height, width = kernel.shape[:2]
    stride, (vertical, horizontal) = window.stride, window.pads
    turned = kernel[::-1, ::-1]
    # The distance of the gradient's samples, spread by the stride, from the borders of the map.
    low = (-vertical[0], -horizontal[0])
    high = [x.shape[a + 1] - low[a] - (gradient.shape[a + 1] - 1) * stride - 1 for a in (0, 1)]
    reach = [window.rate * (side - 1) for side in (height, width)]
    pads = ((low[0] + reach[0], high[0]), (low[1] + reach[1], high[1]))
    if window.groups == 1 and stride > 1 and height * width > 1:
        return lax.conv_general_dilated(
            gradient,
            turned,
            window_strides=(1, 1),
            padding=pads,
            lhs_dilation=(stride, stride),
            rhs_dilation=(window.rate, window.rate),
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
        )
    if window.groups == 1:
        turned = matrix_transpose(turned)
    if height * width == 1:
        result = form(gradient, turned, Window(1, 1, NO_PADS, window.groups))
        return pad(result, ((low[0], high[0]), (low[1], high[1])), between=stride - 1)
    gradient = pad(gradient, NO_PADS, between=stride - 1)
    return form(gradient, turned, Window(window.rate, 1, pads, window.groups))


def kernel_gradient(x: jax.Array, kernel: jax.ShapeDtypeStruct, gradient: jax.Array, window: Window) -> jax.Array:
    """Return the gradient of the kernel: for each tap the sum, over the positions, of its sample times the gradient.

    Args:
      x: the map, `[N, H, W, C]`.
      kernel: shape and dtype of the kernel.
      gradient: gradient of the result, `[N, H', W', D]`.
      window: window of the forward convolution.
    """
    result = jnp.zeros(kernel.shape, sum_dtype(x.dtype))
    if window.groups > 1:
        live, window = _on_map(x.shape[1:3], kernel.shape, window)
        shape = result[live].shape
        return result.at[live].set(_depthwise_kernel_gradient(x, shape, gradient, window)).astype(kernel.dtype)
    channels, features = kernel.shape[2:]
    for tap, seen, there in _positions(x.shape[1:3], kernel.shape, window):
        samples, gradients = x[:, *seen].reshape(-1, channels), gradient[:, *there].reshape(-1, features)
        result = result.at[tap].set(_sum_of_outer_products(samples, gradients))
    return result.astype(kernel.dtype)


def _sum_of_outer_products(samples: jax.Array, gradients: jax.Array) -> jax.Array:
    """Return the sum of each sample times its gradient, `[C, D]`, of samples `[P, C]` and gradients `[P, D]`.

    In bfloat16 the narrower of the two is copied for it, which is faster; see `matrix_transpose`.
    """
    product = partial(jnp.matmul, preferred_element_type=sum_dtype(samples.dtype))
    if samples.dtype == jnp.bfloat16 and gradients.shape[1] < samples.shape[1]:
        return matrix_transpose(product(matrix_transpose(gradients), samples).astype(samples.dtype))
    return product(matrix_transpose(samples), gradients)


def _depthwise_kernel_gradient(x: jax.Array, shape: Sequence[int], gradient: jax.Array, window: Window) -> jax.Array:
    """Return the gradient of a depthwise kernel of a shape `[kh, kw, 1, C]`, summed row by row of the result's
    gradient.

    The loop keeps one sum `[N, W', C]` per tap. One reduction over rows and columns takes up to fourteen times as long,
    because XLA's CPU backend computes it channel by channel.
    """
    height, width = shape[:2]
    padded = pad(x, window.pads)
    reach = (gradient.shape[2] - 1) * window.stride + 1
    dtype = sum_dtype(x.dtype)

    def add_row(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        there = lax.dynamic_index_in_dim(gradient, index, axis=1, keepdims=False).astype(dtype)
        products = []
        for row in range(height):
            seen = lax.dynamic_index_in_dim(padded, index * window.stride + row * window.rate, axis=1, keepdims=False)
            for column in range(width):
                start = column * window.rate
                view = lax.slice_in_dim(seen, start, start + reach, window.stride, axis=1)
                products.append(view.astype(dtype) * there)
        return tuple(map(jnp.add, sums, products))

    n, rows, columns, channels = gradient.shape
    zeros = (jnp.zeros((n, columns, channels), dtype),) * (height * width)
    sums = lax.fori_loop(0, rows, add_row, zeros)
    return jnp.stack([jnp.sum(each, axis=(0, 1)) for each in sums]).reshape(shape)


def _taps_of(kernel_shape: Sequence[int]) -> Iterator[Tap]:
    """Return the taps `(row, column)` of a kernel in reading order."""
    return product(range(kernel_shape[0]), range(kernel_shape[1]))


def _on_map(size: Sequence[int], kernel_shape: Sequence[int], window: Window) -> tuple[tuple[slice, slice], Window]:
    """Return the rows and columns of a kernel that meet the map, and the window of this part.

    At a rate as large as the map, only the centre of a 3x3 kernel meets it. The others would only make the padded map
    large: 30 times the map at rate 36 and 16x16 pixels. If the size of the map is not known, all taps count.
    """
    outputs = window.output_size(size, kernel_shape)
    live, pads = [], []
    for side, count, taps, (before, after) in zip(size, outputs, kernel_shape[:2], window.pads, strict=True):
        seen: Sequence[int] = range(taps)
        if isinstance(side, int):
            on_map = taps_on_map(side, count, taps, stride=window.stride, rate=window.rate, before=before)
            seen = np.flatnonzero(on_map.any(axis=0)).tolist() or seen
        first, last = seen[0], seen[-1]
        live.append(slice(first, last + 1))
        pads.append((before - first * window.rate, after - (taps - 1 - last) * window.rate))
    return (live[0], live[1]), dataclasses.replace(window, pads=(pads[0], pads[1]))


def _positions(
    size: Sequence[int], kernel_shape: Sequence[int], window: Window
) -> Iterator[tuple[Tap, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield each tap that meets the map, with the rows and columns of the map that it reads and those of the result
    that it adds to.
    """
    outputs = window.output_size(size, kernel_shape)

    def along(axis: int, tap: int) -> tuple[slice, slice]:
        """Return the samples of the map that a tap reads along one axis, and the positions of the kernel there."""
        offset, stride = tap * window.rate - window.pads[axis][0], window.stride
        first, last = max(0, -(offset // stride)), min(outputs[axis] - 1, (size[axis] - 1 - offset) // stride)
        last = max(last, first - 1)
        return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)

    for row, column in _taps_of(kernel_shape):
        (seen_rows, rows), (seen_columns, columns) = along(0, row), along(1, column)
        if rows.start < rows.stop and columns.start < columns.stop:
            yield (row, column), (seen_rows, seen_columns), (rows, columns)


def pad(x: jax.Array, pads: Pads, *, between: int = 0) -> jax.Array:
    """Return a map `[N, H, W, C]` with zeros around it and between its samples; a negative number removes rows."""
    (top, bottom), (left, right) = pads
    border = ((0, 0, 0), (top, bottom, between), (left, right, between), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), border)
