"""Changes of an image's values, as functions of the image, a generator and a strength.

Images are uint8 `[H, W, C]`, or float32 in the same units, 0 to 255. The result has the same dtype: uint8 is rounded,
float32 keeps its fractions, and both are clipped.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from deeplab_jax.errors import UserError

_JITTER_PIVOT = 127.5
_LUMA = (0.299, 0.587, 0.114)
_CHROMA = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # The axes I and Q of YIQ; each sums to 0.


def sample_jitter(
    rng: np.random.Generator, strength: float | Sequence[float], *, channels: int = 3, hue: float = 0.0
) -> np.ndarray:
    """Return a random change of colour as a float `[C, C + 1]` affine map of (r, g, b, 1), values 0 to 255.

    Brightness, contrast and saturation change by factors of their own, each from `[1 - strength, 1 + strength]`.
    Contrast pivots on mid-grey and not on the image's mean. So a pixel's new colour depends only on its old one, and a
    crop may come before or after.

    Args:
      rng: the only source of randomness.
      strength: of brightness, contrast and saturation: one for each, or one for all.
      channels: number of channels; only three have saturation and hue.
      hue: largest angle in degrees, either way, by which colours turn around the greys. Their luma stays.

    Raises:
      UserError: a strength is outside `[0, 1)`.
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
    return to_dtype(image @ colours[:, :-1].T + colours[:, -1], image.dtype)


def gamma(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return 255 * (value / 255) ** g; log g is uniform, and g lies between 1 / (1 + strength) and 1 + strength."""
    most = np.log1p(strength)
    return apply_gamma(image, float(np.exp(rng.uniform(-most, most))))


def apply_gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Return 255 * (value / 255) ** exponent."""
    if image.dtype == np.uint8:
        return np.asarray(
            cv2.LUT(image, to_dtype(255 * (np.arange(256) / 255) ** exponent, np.uint8)).reshape(image.shape)
        )
    return to_dtype(255 * (image / 255) ** exponent, image.dtype)


def blur(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return an image under a Gaussian blur; its standard deviation is uniform up to `strength` pixels."""
    sigma = rng.uniform(0, strength)

    def blurred(bands: np.ndarray) -> np.ndarray:
        # OpenCV finds the kernel's size from sigma, and drops the axis of a single channel.
        return np.asarray(cv2.GaussianBlur(bands, (0, 0), max(sigma, 1e-3))).reshape(bands.shape)

    return each_band(blurred, image)


def noise(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return an image with normal noise, apart for each value; its standard deviation is uniform up to `strength`."""
    deviation = rng.uniform(0, strength)
    added = deviation * rng.standard_normal(image.shape, np.float32)
    return to_dtype(image + added, image.dtype)


def jpeg(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """Return a uint8 image of one channel or RGB after JPEG compression, at a quality from `strength` to 100."""
    quality = int(rng.integers(strength, 101))
    _, data = cv2.imencode(".jpg", _swapped(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _swapped(np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)).reshape(image.shape))


def _swapped(image: np.ndarray) -> np.ndarray:
    """OpenCV's order of colours is blue, green, red."""
    return np.ascontiguousarray(image[..., ::-1])


def to_dtype(values: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Return values clipped to 0..255, and rounded if they become uint8."""
    values = np.clip(values, 0, 255)
    return (np.rint(values) if dtype == np.uint8 else values).astype(dtype)


def each_band(change: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Return what a function of OpenCV makes of an image `[H, W, C]`: of all channels at once, or of one by one.

    For other numbers of channels than 1, 3 and 4 OpenCV rounds positions to 1/32 pixel, which changes values by up to 5
    levels. It takes no more than 128 channels.
    """
    if image.shape[2] in (1, 3, 4):
        return change(image)
    return np.concatenate([change(np.ascontiguousarray(image[..., k, None])) for k in range(image.shape[2])], axis=2)
