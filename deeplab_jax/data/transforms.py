"""Augmentation of an image together with its label, as pure functions of both and of a numpy `Generator`.

The protocol is that of DeepLabv3 (Chen et al. 2017, section 4.1) and of the authors' TensorFlow code: scale by a factor
between 0.5 and 2.0 (in steps of 0.25, or continuous), pad with the mean colour and the ignore label up to the crop
size, take a random crop, mirror with probability one half.

Geometry always changes both. Pixel centres lie at half integers: if a map of size `n` becomes size `m`, its pixel i
reads the source at `(i + 0.5) * n / m - 0.5`. The image is read bilinearly (without low-pass filter, as in the papers),
the label at the nearest pixel (of two equally near ones, the right or lower one).

Images are uint8 `[H, W, C]`, or float32 in the same units, 0 to 255, which are never rounded. C is 3 (RGB) or any other
number of bands. Labels are uint8 `[H, W]` class ids, or `[H, W, K]` where a pixel can have several labels. No function
writes into its arguments; a result may be a view of them.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

Size = tuple[int, int]
Pair = tuple[np.ndarray, np.ndarray]

# The mean colour of ImageNet, rounded. Normalised by the model, the padding is close to zero.
MEAN_COLOR = (124, 116, 104)
_JITTER_PIVOT = 127.5
_LUMA = (0.299, 0.587, 0.114)
_CHROMA = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # The axes I and Q of YIQ; each sums to 0.


def augment(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_step: float = 0.25,
    flip: bool = True,
    color_jitter: float = 0.0,
    fill: Sequence[float] = MEAN_COLOR,
    ignore_label: int = IGNORE_LABEL,
) -> Pair:
    """Scale, jitter, pad, crop and mirror one example.

    The result equals that of `random_scale`, `jitter`, `pad_to`, `random_crop` and `random_flip` in this order with the
    same generator, but only pixels inside the crop are resampled. The label is the same bit for bit. In the image,
    rounding changes a rare pixel by one level.

    Args:
      image: `[H, W, C]`.
      label: uint8 `[H, W]`.
      rng: the only source of randomness.
      crop_size: (height, width) of the result.
      scale_range: smallest and largest scale factor; `(1, 1)` keeps the size.
      scale_step: distance between the factors; 0 draws them from the whole interval.
      flip: mirror left to right with probability one half.
      color_jitter: strength in `[0, 1)`, see `jitter`; 0 leaves the colours alone.
      fill: value of each channel in the padding.
      ignore_label: label of the padding.

    Returns:
      `[h, w, C]` of the image's dtype, and uint8 `[h, w]`, of `crop_size`.

    Raises:
      UserError: a scale range, step, strength or crop size that makes no sense.
    """
    _check_pair(image, label)
    _check_size(crop_size)
    size = _scaled(label.shape[:2], sample_scale(rng, scale_range=scale_range, scale_step=scale_step))
    colours = sample_jitter(rng, color_jitter, channels=image.shape[2]) if color_jitter else None
    window = sample_window(rng, size, crop_size)
    image, label = resize_pair(image, label, size, window=window)
    if colours is not None:
        image = apply_jitter(image, colours)
    image, label = pad_to(image, label, crop_size, fill=fill, ignore_label=ignore_label)
    return random_flip(image, label, rng) if flip else (image, label)


def random_scale(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_step: float = 0.25,
) -> Pair:
    """Resize the pair by one random factor, see `sample_scale`; sizes are rounded and at least 1."""
    scale = sample_scale(rng, scale_range=scale_range, scale_step=scale_step)
    return resize_pair(image, label, _scaled(label.shape[:2], scale))


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
    """Return a size times one random factor, see `sample_scale`; sizes are rounded and at least 1."""
    return _scaled(size, sample_scale(rng, scale_range=scale_range, scale_step=scale_step))


def resize_pair(
    image: np.ndarray, label: np.ndarray, size: Size, *, window: tuple[int, int, int, int] | None = None
) -> Pair:
    """Resize an image bilinearly and its label to the nearest pixel, in the same geometry.

    Pixel centres lie at half integers; outside the image its edge pixels are repeated.

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

    return sample_bands(warped, image)


def sample_bands(sample: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Return what `sample` reads of an image `[H, W, C]`: of all channels at once, or one by one.

    For other numbers of channels than 1, 3 and 4 OpenCV rounds positions to 1/32 pixel, which changes values by up to
    5 levels.
    """
    if image.shape[2] in (1, 3, 4):
        return sample(image)
    return np.concatenate([sample(np.ascontiguousarray(image[..., k, None])) for k in range(image.shape[2])], axis=2)


def pad_to(
    image: np.ndarray,
    label: np.ndarray,
    size: Size,
    *,
    fill: Sequence[float] = MEAN_COLOR,
    ignore_label: int = IGNORE_LABEL,
) -> Pair:
    """Pad below and to the right up to at least `size`, the image with `fill` and the label with `ignore_label`."""
    _check_pair(image, label)
    height, width = max(size[0], label.shape[0]), max(size[1], label.shape[1])
    if (height, width) == label.shape[:2]:
        return image, label
    padded_image = np.empty((height, width, image.shape[2]), image.dtype)
    padded_image[:] = fill
    padded_label = np.full((height, width, *label.shape[2:]), ignore_label, label.dtype)
    inside = np.s_[: label.shape[0], : label.shape[1]]
    padded_image[inside], padded_label[inside] = image, label
    return padded_image, padded_label


def random_crop(image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, size: Size) -> Pair:
    """Cut the same window out of both, every position equally likely.

    Raises:
      ValueError: the pair is smaller than the window; pad it first.
    """
    _check_pair(image, label)
    top, left = _sample_offset(rng, label.shape[:2], size)
    part = np.s_[top : top + size[0], left : left + size[1]]
    return image[part], label[part]


def random_flip(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
    """Mirror both left to right with probability one half."""
    _check_pair(image, label)
    if rng.random() < 0.5:
        return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])
    return image, label


def jitter(image: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """Change brightness, contrast and saturation, each by its own factor from `[1 - strength, 1 + strength]`. Images of
    other than three channels have no saturation: it stays.

    Contrast pivots on mid-grey and not on the image's mean. So a pixel's new colour depends only on its old one, and
    jitter and crop may change their order.

    Raises:
      UserError: `strength` is outside `[0, 1)`.
    """
    return apply_jitter(image, sample_jitter(rng, strength, channels=image.shape[2])) if strength else image


def sample_jitter(
    rng: np.random.Generator, strength: float | Sequence[float], *, channels: int = 3, hue: float = 0.0
) -> np.ndarray:
    """Return a random change of colour as a float `[C, C + 1]` affine map of (r, g, b, 1), values 0 to 255.

    Args:
      rng: the only source of randomness.
      strength: of brightness, contrast and saturation: one for each, or one for all.
      channels: number of channels; only three have saturation and hue.
      hue: largest angle in degrees, either way, by which colours turn around the greys. Their luma stays.
    """
    strengths = np.broadcast_to(np.asarray(strength, float), 3)
    if not ((strengths >= 0) & (strengths < 1)).all():
        raise UserError(f"color_jitter {strength}: give a number from 0 (off) to below 1")
    brightness, contrast, saturation = rng.uniform(1 - strengths, 1 + strengths)
    colour = np.eye(channels)
    if channels == 3:
        colour = saturation * colour + (1 - saturation) * np.tile(np.array(_LUMA), (3, 1))
        if hue:
            colour = colour @ hue_matrix(float(rng.uniform(-hue, hue)))
    shift = np.full((channels, 1), _JITTER_PIVOT * (1 - contrast))
    # Saturation and hue keep greys, and the shift is grey, so it can stay outside the product.
    return np.hstack([brightness * contrast * colour, shift])


def hue_matrix(degrees: float) -> np.ndarray:
    """Return the `[3, 3]` map of (r, g, b) that turns colours around the greys, and keeps greys and luma.

    In the YIQ colours of television, it is a rotation of the two axes beside luma. Red turns to yellow, and then to
    green.
    """
    turn = math.radians(degrees)
    rotation = np.array([[1, 0, 0], [0, math.cos(turn), math.sin(turn)], [0, -math.sin(turn), math.cos(turn)]])
    to_yiq = np.array([_LUMA, *_CHROMA])
    return np.linalg.inv(to_yiq) @ rotation @ to_yiq


def apply_jitter(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return an image with its colours mapped by a matrix of `sample_jitter`, clipped to 0..255; uint8 is rounded."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return cv2.transform(image, colours)
    mapped = np.clip(image @ colours[:, :-1].T + colours[:, -1], 0, 255)
    return (np.rint(mapped) if image.dtype == np.uint8 else mapped).astype(image.dtype)


def sample_window(rng: np.random.Generator, size: Size, crop_size: Size) -> tuple[int, int, int, int]:
    """Return the part (top, left, height, width) of a resized image that a random crop holds: all of it along a side
    that is shorter than the crop.
    """
    _check_size(crop_size)
    top, left = _sample_offset(rng, (max(size[0], crop_size[0]), max(size[1], crop_size[1])), crop_size)
    return top, left, min(crop_size[0], size[0] - top), min(crop_size[1], size[1] - left)


def _sample_offset(rng: np.random.Generator, size: Size, crop_size: Size) -> Size:
    spare = (size[0] - crop_size[0], size[1] - crop_size[1])
    if min(spare) < 0:
        raise ValueError(f"a crop of {crop_size} does not fit into {size}; pad first")
    return int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))


def _scaled(size: tuple[int, ...], scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _check_pair(image: np.ndarray, label: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] < 1 or label.ndim > 3 or image.shape[:2] != label.shape[:2]:
        raise ValueError(f"image {image.shape} and label {label.shape} are not [H, W, C] and [H, W] of one size")


def _check_size(crop_size: Size) -> None:
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise UserError(f"crop_size {crop_size}: give (height, width), both at least 1")
