"""Transposed convolution: learned upsampling (FCN, sec. 3.3)."""

import chex
import jax
from jax import lax

from deeplab_jax.ops.geometry import NO_PADS
from deeplab_jax.ops.observe import Convolution, notify


def conv_transpose2d(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Return the sum of kernels placed `stride` pixels apart, one for each sample of a map and weighted by it.

    This is the gradient of a "VALID" convolution of that stride. Bilinear upsampling by s is a kernel of 2s - s % 2
    taps.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[kh, kw, C, D]`, not rotated: sample (0, 0) alone puts `kernel[i, j]` at pixel (i, j).
      stride: at least 1.

    Returns:
      `[N, (H - 1) * stride + kh, (W - 1) * stride + kw, D]`, before any crop.

    Raises:
      AssertionError: shapes that do not fit.
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
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    notify(Convolution(x.shape, kernel.shape, result.shape, 1, stride, NO_PADS, 1, transposed=True))
    return result
