"""The parts of the papers' augmentation, as pure functions of an image, its label, and a numpy `Generator`.

Geometry always changes both. Pixel centres lie at half integers: if a map of size `n` becomes size `m`, its pixel i
reads the source at `(i + 0.5) * n / m - 0.5`. The image is read bilinearly (without low-pass filter, as in the papers),
the label at the nearest pixel (of two equally near ones, the right or lower one).

Images are uint8 `[H, W, C]`, or float32 in the same units, 0 to 255, which are never rounded. C is 3 (RGB) or any other
number of bands. Labels are uint8 `[H, W]` class ids, or `[H, W, K]` where a pixel can have several labels. No function
writes into its arguments; a result may be a view of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from deeplab_jax.data.colour import each_band
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

Size = tuple[int, int]
Arrays = tuple[np.ndarray, np.ndarray]
"""An image and its label."""


def sample_scale(rng: np.random.Generator, *, scale_range: tuple[float, float], scale_step: float) -> float:
    """Return a random factor: one of `low + k * step` up to `high`, or uniform over the interval if the step is 0.

    Raises:
      UserError: `low` is not positive, `high` is below `low`, or the step is negative.
    """
    low, high = scale_range
    if not 0 < low <= high < math.inf or not 0 <= scale_step < math.inf:
        raise UserError(
            f"scale_range {low}..{high} in steps of {scale_step}: give 0 < smallest <= largest "
            "and a step of 0 (continuous) or more"
        )
    if scale_step == 0:
        return float(rng.uniform(low, high))
    # The small term keeps the last factor if rounding makes the quotient a little too small, as for (1.3 - 0.7) / 0.2.
    count = int((high - low) / scale_step + 1e-6) + 1
    return low + scale_step * int(rng.integers(count))


def sample_size(rng: np.random.Generator, size: Size, *, scale_range: tuple[float, float], scale_step: float) -> Size:
    """Return a size times one random factor, see `sample_scale`; sizes are rounded and at least 1.

    The authors' code cuts the fraction off instead; see `augment`.
    """
    scale = sample_scale(rng, scale_range=scale_range, scale_step=scale_step)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_pair(
    image: np.ndarray, label: np.ndarray, size: Size, *, window: tuple[int, int, int, int] | None = None
) -> Arrays:
    """Resize an image bilinearly and its label to the nearest pixel, in the same geometry.

    Pixel centres lie at half integers; outside the image its edge pixels are repeated. The authors' code aligns the
    corners instead; see `augment`.

    Args:
      image: `[H, W, C]`.
      label: integer `[H, W]`.
      size: (height, width) to resize to.
      window: (top, left, height, width) inside `size`: only this part is computed. It equals a crop of the whole
        result, except that rounding changes a rare image pixel by one level.

    Returns:
      The two arrays at the window's size.
    """
    _check_pair(image, label)
    top, left, height, width = window or (0, 0, *size)
    if tuple(size) == label.shape[:2]:
        part = np.s_[top : top + height, left : left + width]
        return image[part], label[part]
    step_y, step_x = label.shape[0] / size[0], label.shape[1] / size[1]
    # An affine map does the work, because cv2.resize cannot start at an offset.
    to_source = np.array([[step_x, 0, (left + 0.5) * step_x - 0.5], [0, step_y, (top + 0.5) * step_y - 0.5]])
    return _warped(image, to_source, (height, width)), resize_label(label, size, window=(top, left, height, width))


def resize_label(label: np.ndarray, size: Size, *, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the label of `resize_pair`: integers `[height, width]` of the window."""
    top, left, height, width = window
    # The nearest pixel to (i + 0.5) * n / m - 0.5 is floor((i + 0.5) * n / m), here in integers so that it is exact.
    rows = (2 * np.arange(top, top + height) + 1) * label.shape[0] // (2 * size[0])
    columns = (2 * np.arange(left, left + width) + 1) * label.shape[1] // (2 * size[1])
    return label[rows][:, columns]


def _warped(image: np.ndarray, to_source: np.ndarray, size: Size) -> np.ndarray:
    def warped(bands: np.ndarray) -> np.ndarray:
        read = cv2.warpAffine(
            bands,
            to_source,
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return read.reshape(*size, bands.shape[2])  # OpenCV drops the axis of a single channel.

    return each_band(warped, image)


def pad_to(image: np.ndarray, label: np.ndarray, size: Size, *, fill: Sequence[float]) -> Arrays:
    """Pad below and to the right up to at least `size`, the image with `fill` and the label with the ignore label."""
    _check_pair(image, label)
    height, width = max(size[0], label.shape[0]), max(size[1], label.shape[1])
    if (height, width) == label.shape[:2]:
        return image, label
    padded_image = np.empty((height, width, image.shape[2]), image.dtype)
    padded_label = np.empty((height, width, *label.shape[2:]), label.dtype)
    inside = np.s_[: label.shape[0], : label.shape[1]]
    padded_image[inside], padded_label[inside] = image, label
    for part in padding_of(label.shape):
        padded_image[part], padded_label[part] = fill, IGNORE_LABEL
    return padded_image, padded_label


def padding_of(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the indices of what `pad_to` adds to arrays of a shape: the rows below, and the columns to the right."""
    return np.s_[shape[0] :], np.s_[: shape[0], shape[1] :]


def random_flip(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Arrays:
    """Mirror both left to right with probability one half."""
    _check_pair(image, label)
    if rng.random() < 0.5:
        return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])
    return image, label


def sample_window(rng: np.random.Generator, size: Size, crop_size: Size) -> tuple[int, int, int, int]:
    """Return the part (top, left, height, width) of a resized image that a random crop holds: all of it along a side
    that is shorter than the crop.
    """
    _check_size(crop_size)
    top, left = (int(rng.integers(max(0, side - kept) + 1)) for side, kept in zip(size, crop_size, strict=True))
    return top, left, min(crop_size[0], size[0]), min(crop_size[1], size[1])


def _check_pair(image: np.ndarray, label: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] < 1 or label.ndim > 3 or image.shape[:2] != label.shape[:2]:
        raise ValueError(f"image {image.shape} and label {label.shape} are not [H, W, C] and [H, W] of one size")


def _check_size(crop_size: Size) -> None:
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise UserError(f"crop_size {crop_size}: give (height, width), both at least 1")
