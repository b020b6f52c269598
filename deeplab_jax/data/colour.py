"""Changes of an image's values, as functions of the image, a generator and a strength.

Images are uint8 `[H, W, C]`, or float32 in the same units, 0 to 255. The result has the same dtype: uint8 is rounded,
float32 keeps its fractions, and both are clipped. `transforms.jitter` has brightness, contrast, saturation and hue.
"""

import cv2
import numpy as np


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
    # OpenCV finds the kernel's size from sigma, and drops the axis of a single channel.
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma, 1e-3))).reshape(image.shape)


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
