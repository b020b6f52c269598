"""Ways to compute a convolution, and which of them is fast on a CPU.

All of them compute the same sums; only speed and rounding differ.

- "direct" is XLA's own convolution (`atrous.direct`). It covers every case.
- "taps" adds up one product per tap of the kernel (`taps.py`).
- "space_to_batch" splits the map into rate x rate smaller ones, as TensorFlow's atrous convolution does.
- "auto" is "direct" everywhere but on a CPU, and there what `choose_on_cpu` says.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
from jax import lax

from deeplab_jax.ops.bilinear import Form, bilinear, gradient_by_jax
from deeplab_jax.ops.geometry import Window
from deeplab_jax.ops.taps import input_gradient, kernel_gradient, pad, sum_of_taps

# What `choose_on_cpu` goes by; `python -m experiments.benchmarks --parts lowerings` measures it.
FEW_CHANNELS = 16
TAPS_SHARE = 0.93
FEW_MULTIPLY_ADDS = 100_000_000  # A millisecond or two: one operation for XLA to compile is worth more than speed.


def covers(lowering: str, shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> bool:
    """Return whether a lowering can convolve a map of a shape `[N, H, W, C]` with an HWIO kernel.

    None but "direct" covers kernels that are grouped and not depthwise, and kernels that do not fit on the padded map.
    "taps" of a dense kernel wants sizes that are known, and "space_to_batch" also a stride of 1.
    """
    size = shape[1:3]
    dense = window.groups == 1
    depthwise = window.groups == shape[3] == kernel_shape[3] and kernel_shape[2] == 1
    known = all(isinstance(side, int) for side in size)
    if known and 0 in window.output_size(size, kernel_shape):
        return lowering == "direct"
    return {
        "auto": dense or depthwise,
        "direct": True,
        "taps": depthwise or (dense and known),
        "space_to_batch": known and window.stride == 1 and window.rate > 1,
    }[lowering]


taps: Form = bilinear("convolution_by_taps", sum_of_taps, partial(input_gradient, sum_of_taps), kernel_gradient)


def faster_on_cpu(direct: Form) -> Form:
    """Return `direct` with faster ways on a CPU, for the map, its gradient and the kernel's.

    The platform that a program is compiled for decides, so what is exported on one platform is as fast on another.
    """

    def on_cpu(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
        form = sum_of_taps if choose_on_cpu(x.shape, kernel.shape, window) == "taps" else direct
        return form(x, kernel, window)

    def auto(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
        return lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: on_cpu(x, kernel, window),
            default=lambda x, kernel: direct(x, kernel, window),
        )

    def of_input(x: jax.ShapeDtypeStruct, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
        def cpu(kernel: jax.Array, gradient: jax.Array) -> jax.Array:
            return input_gradient(on_cpu, x, kernel, gradient, window)

        def default(kernel: jax.Array, gradient: jax.Array) -> jax.Array:
            return gradient_by_jax(lambda x: direct(x, kernel, window), x, gradient)

        return lax.platform_dependent(kernel, gradient, cpu=cpu, default=default)

    def of_kernel(x: jax.Array, kernel: jax.ShapeDtypeStruct, gradient: jax.Array, window: Window) -> jax.Array:
        def default(x: jax.Array, gradient: jax.Array) -> jax.Array:
            return gradient_by_jax(lambda kernel: direct(x, kernel, window), kernel, gradient)

        def cpu(x: jax.Array, gradient: jax.Array) -> jax.Array:
            if _are_taps_worth_it(x.shape, kernel.shape, window):
                return kernel_gradient(x, kernel, gradient, window)
            return default(x, gradient)

        return lax.platform_dependent(x, gradient, cpu=cpu, default=default)

    return bilinear("convolution_by_platform", auto, of_input, of_kernel)


def choose_on_cpu(shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> Literal["direct", "taps"]:
    """Return how a CPU computes a convolution of a map of some shape `[N, H, W, C]`.

    Medians on an Intel Xeon:
    - For a depthwise convolution XLA takes more than ten times as long as for nine shifted products.
    - For a 1x1 convolution it takes 1.4 times as long as for the matrix product that this is (1.9 with gradients).
    - Of larger dense kernels, taps leave out what falls on padding, which is most of it at large rates. The price is a
      sum of as many maps as there are taps.
    - Kernels with few inputs, such as a network's first, make thin products, which are slow.
    - Small convolutions are not worth the time that it takes to compile many operations.
    """
    if not _are_taps_worth_it(shape, kernel_shape, window):
        return "direct"
    if _is_one_operation(kernel_shape, window):
        return "taps"
    return "taps" if math.prod(window.shares_on_map(shape[1:3], kernel_shape)) <= TAPS_SHARE else "direct"


def _is_one_operation(kernel_shape: Sequence[int], window: Window) -> bool:
    """Return whether the taps are a single product (1x1) or a single pass over the map (depthwise)."""
    return window.groups > 1 or math.prod(kernel_shape[:2]) == 1


def _are_taps_worth_it(shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> bool:
    """Return whether the taps' products are neither thin nor small; a batch of unknown size counts as one image."""
    if _is_one_operation(kernel_shape, window):
        return True
    if kernel_shape[2] < FEW_CHANNELS or not all(isinstance(side, int) for side in shape[1:3]):
        return False
    images = shape[0] if isinstance(shape[0], int) else 1
    outputs = window.output_size(shape[1:3], kernel_shape)
    return math.prod((images, *outputs, *kernel_shape)) >= FEW_MULTIPLY_ADDS


def space_to_batch(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Split the padded map into rate x rate maps of every rate-th pixel, convolve them at rate 1, and interleave them.

    It grows the map to a multiple of the rate, as TensorFlow's operation does; the papers' multiply-add counts include
    those zeros.
    """
    n, _, _, channels = x.shape
    rate, pads = window.rate, window.pads
    outputs = window.output_size(x.shape[1:3], kernel.shape)
    blocks = [-(-size // rate) for size in outputs]
    grown = [(block + kernel.shape[axis] - 1) * rate for axis, block in enumerate(blocks)]
    tail = [grown[axis] - x.shape[axis + 1] - pads[axis][0] for axis in (0, 1)]
    padded = pad(x, ((pads[0][0], tail[0]), (pads[1][0], tail[1])))
    maps = padded.reshape(n, grown[0] // rate, rate, grown[1] // rate, rate, channels)
    maps = maps.transpose(2, 4, 0, 1, 3, 5).reshape(rate * rate * n, grown[0] // rate, grown[1] // rate, channels)
    result = lax.conv_general_dilated(
        maps,
        kernel,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )
    result = result.reshape(rate, rate, n, blocks[0], blocks[1], kernel.shape[3])
    result = result.transpose(2, 3, 0, 4, 1, 5).reshape(n, blocks[0] * rate, blocks[1] * rate, kernel.shape[3])
    return result[:, : outputs[0], : outputs[1]]
