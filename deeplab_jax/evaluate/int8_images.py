"""Images that show the range of a network's activations, for an export in whole numbers."""

from pathlib import Path

import cv2
import numpy as np

from deeplab_jax.data.colour import each_band
from deeplab_jax.evaluate.image_list import find_images
from deeplab_jax.evaluate.reading import read_for
from deeplab_jax.models.segmenter import Segmenter

MOST = 100  # More images hardly change the ranges.


def int8_images(folder: str | Path, *, size: tuple[int, int], model: Segmenter) -> list[np.ndarray]:
    """Return images of a folder, read as the model reads them and scaled to one size, without keeping their shape.

    Args:
      folder: images of the kind that the exported network will see; of many, `MOST` are taken, evenly spread.
      size: height and width.
      model: its preprocessing says which bands are read, and how.

    Returns:
      `float32 [height, width, channels]` each, with levels 0 to 255.

    Raises:
      UserError: no such folder, none in it, or an image that cannot be read.
    """
    found = find_images([folder])
    chosen = [found[index] for index in np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int)]
    images = [np.asarray(read_for(model.preprocessing, each.path), np.float32) for each in chosen]

    def scaled(bands: np.ndarray) -> np.ndarray:
        read = cv2.resize(bands, size[::-1], interpolation=cv2.INTER_AREA)
        return read.reshape(*size, bands.shape[2])  # OpenCV drops the axis of a single channel.

    return [each_band(scaled, image) for image in images]
