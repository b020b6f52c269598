"""The arithmetic of atrous convolution: effective kernels, output sizes, valid weights (DeepLabv3, sec. 3.1 and 3.3;
Fig. 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pads = tuple[tuple[int, int], tuple[int, int]]
NO_PADS: Pads = ((0, 0), (0, 0))


def effective_kernel_size(kernel_size: int, rate: int) -> int:
    """Return the side of a kernel with `rate - 1` zeros between its taps: `k + (k - 1)(r - 1)`
    (DeepLabv2, sec. 3.1).
    """
    if kernel_size < 1 or rate < 1:
        raise ValueError(f"kernel_size and rate are at least 1, got {kernel_size} and {rate}")
    return kernel_size + (kernel_size - 1) * (rate - 1)


def same_padding(kernel_size: int, rate: int) -> int:
    """Return the zeros on each side that keep the size in a convolution of stride 1: `r (k - 1) / 2`, for odd kernels.

    Raises:
      ValueError: the kernel is even, and no symmetric padding keeps the size.
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"a kernel of even size {kernel_size} has no symmetric padding; give an odd size or the zeros")
    return rate * (kernel_size - 1) // 2


def conv_output_size(size: int, kernel_size: int, *, stride: int = 1, padding: int | None = None, rate: int = 1) -> int:
    """Return the side of a convolution's output: `floor((h + 2p - k_hat) / s) + 1`.

    Args:
      size: side of the input in pixels.
      kernel_size: taps along the side.
      stride: distance of output samples in input pixels.
      padding: zeros on each side; None means `same_padding`.
      rate: atrous rate.

    Returns:
      The side of the output in samples; 0 if the kernel does not fit.
    """
    pad = same_padding(kernel_size, rate) if padding is None else padding
    return max(0, (size + 2 * pad - effective_kernel_size(kernel_size, rate)) // stride + 1)


def scaled_side(side: int, scale: float) -> int:
    """Return the pixels of an image's side at a scale: `(n - 1) * scale + 1`, with the fraction cut off as in the
    authors' code (`scale_dimension` of tensorflow/models' deeplab/core/utils.py).
    """
    return int((side - 1) * scale + 1)


def taps_on_map(size: int, outputs: int, kernel_size: int, *, stride: int, rate: int, before: int) -> np.ndarray:
    """Return which taps of a 1-D kernel lie on the map and not on its zero padding.

    Args:
      size: side of the map in samples.
      outputs: positions of the kernel along it.
      kernel_size: taps along the side.
      stride: distance of the positions.
      rate: distance of the taps.
      before: zeros before the map's first sample; the first position starts there.

    Returns:
      bool array `[outputs, kernel_size]`.
    """
    seen = np.arange(outputs)[:, None] * stride - before + np.arange(kernel_size)[None] * rate
    return (seen >= 0) & (seen < size)


def valid_tap_counts(size: int, kernel_size: int, rate: int) -> np.ndarray:
    """Return for each position along one side how many taps of a centred 1-D kernel lie on the map and not on padding.

    Returns:
      int64 array `[size]`, values 1 to `kernel_size`.

    Raises:
      ValueError: the kernel is even, and has no centre.
    """
    before = same_padding(kernel_size, rate)
    return np.sum(taps_on_map(size, size, kernel_size, stride=1, rate=rate, before=before), axis=1)


def valid_weight_counts(size: int, kernel_size: int, rate: int) -> np.ndarray:
    """Count the positions of a `size x size` map that see 1, 2, ..., k*k valid weights (DeepLabv3, Fig. 4).

    As the rate approaches the map's size, more and more of a 3x3 kernel lies on padding. From `rate >= size` only its
    centre remains, and it acts as a 1x1 kernel. That is why DeepLabv3 adds image-level features to the pyramid.

    Args:
      size: side of the feature map.
      kernel_size: taps along the kernel's side (odd).
      rate: atrous rate.

    Returns:
      int64 array `[k * k]`; element `i` is the number of positions with `i + 1` valid weights. The sum is `size *
      size`.

    Raises:
      ValueError: the kernel is even, and has no centre.
    """
    per_axis = valid_tap_counts(size, kernel_size, rate)
    counts = np.bincount(np.outer(per_axis, per_axis).ravel(), minlength=kernel_size**2 + 1)
    return counts[1:]


@dataclass(frozen=True)
class Window:
    """How a kernel `[kh, kw, C / groups, D]` lies on a map.

    Attributes:
      rate: distance of the taps in pixels.
      stride: distance of the output samples in pixels.
      pads: zeros `((top, bottom), (left, right))`; a negative number removes rows or columns.
      groups: 1, or the channels of a depthwise convolution.
    """

    rate: int
    stride: int
    pads: Pads
    groups: int

    def output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the result in samples."""
        rows, columns = (
            conv_output_size(size[a] + sum(self.pads[a]), kernel_size[a], stride=self.stride, padding=0, rate=self.rate)
            for a in (0, 1)
        )
        return rows, columns

    def shares_on_map(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[float, float]:
        """Return the shares (0 to 1) of a kernel's rows and of its columns that lie on the map and not on its padding.

        Both are means over all positions. Their product is the share of the multiply-adds.
        """
        outputs = self.output_size(size, kernel_size)
        rows, columns = (
            taps_on_map(
                size[a], outputs[a], kernel_size[a], stride=self.stride, rate=self.rate, before=self.pads[a][0]
            ).mean()
            for a in (0, 1)
        )
        return float(rows), float(columns)
