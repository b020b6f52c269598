"""Ways to compute a convolution, and the choice of a fast one on a CPU.

All of them compute the same sums; only speed and rounding differ.

- "direct" is XLA's own convolution (`atrous.direct`). It covers every case.
- "taps" adds up one product per tap of the kernel (`taps.py`).
- "space_to_batch" splits the map into rate x rate smaller maps, as TensorFlow's atrous convolution does.
- "auto" is the choice of `choose_on_cpu` on a CPU, and "direct" everywhere else.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.ops.geometry import Window
from deeplab_jax.ops.primitive import Form, convolution_primitive, gradient_by_jax
from deeplab_jax.ops.taps import input_gradient, kernel_gradient, pad, sum_of_taps

# The limits that `choose_on_cpu` uses; `python -m experiments.benchmarks --parts lowerings` measures them.
FEW_CHANNELS = 16
TAPS_SHARE = 0.93
BFLOAT16_CHANNELS = 128
FEW_MULTIPLY_ADDS = 100_000_000  # A millisecond or two; below it, a quick compilation is worth more than speed.


def covers(lowering: str, shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> bool:
    """Return whether a lowering can convolve a map of a shape `[N, H, W, C]` with an HWIO kernel.

    Only "direct" covers kernels that are grouped but not depthwise, and kernels that do not fit on the padded map.
    "taps" of a dense kernel needs known sizes; "space_to_batch" needs them too, and a stride of 1.
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


taps: Form = convolution_primitive(
    "convolution_by_taps", sum_of_taps, partial(input_gradient, sum_of_taps), kernel_gradient
)


def faster_on_cpu(direct: Form) -> Form:
    """Return `direct` with faster ways on a CPU, for the map, its gradient and the kernel's gradient.

    The choice follows the platform that a program is compiled for, so a program exported elsewhere is as fast there. In
    bfloat16 it also follows the processor of the machine that traces the program.
    """

    def on_cpu(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
        form = sum_of_taps if choose_on_cpu(x.shape, kernel.shape, window, x.dtype) == "taps" else direct
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

    return convolution_primitive("convolution_by_platform", auto, of_input, of_kernel)


def choose_on_cpu(
    shape: Sequence[int], kernel_shape: Sequence[int], window: Window, dtype: Any
) -> Literal["direct", "taps"]:
    """Return the name of the lowering with which a CPU convolves a map of a shape `[N, H, W, C]` and a dtype.

    Medians on an Intel Xeon:
    - XLA takes more than ten times as long for a depthwise convolution as for nine shifted products.
    - It takes 1.4 times as long for a 1x1 convolution as for the equal matrix product (1.9 with gradients).
    - For larger dense kernels, "taps" leaves out the part on padding, which is most of it at large rates. In return it
      sums as many maps as there are taps.
    - XLA computes a dense convolution of bfloat16 in float32, but products of bfloat16 with the processor's own, where
      it has some. From 128 inputs on, these are faster at every rate.
    - Kernels with few inputs, such as a network's first, make thin products, which are slow.
    - For small convolutions it is not worth the time to compile many operations.
    """
    if not _are_taps_worth_it(shape, kernel_shape, window):
        return "direct"
    if _is_one_operation(kernel_shape, window):
        return "taps"
    if dtype == jnp.bfloat16 and kernel_shape[2] >= BFLOAT16_CHANNELS and multiplies_bfloat16():
        return "taps"
    return "taps" if math.prod(window.shares_on_map(shape[1:3], kernel_shape)) <= TAPS_SHARE else "direct"


@cache
def multiplies_bfloat16() -> bool:
    """Return whether this machine's processor has instructions that multiply matrices of bfloat16 (AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:  # Only Linux has this file.
        return False


def _is_one_operation(kernel_shape: Sequence[int], window: Window) -> bool:
    """Return whether all taps are one product (1x1) or one pass over the map (depthwise)."""
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
    """Split the padded map into rate x rate maps of every rate-th pixel, convolve each at rate 1, and interleave them.

    It extends the map to a multiple of the rate, as TensorFlow's operation does. The papers' multiply-add counts
    include these zeros.
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
