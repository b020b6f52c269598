"""Images as a model reads them from files, and as people see them."""

import os

import numpy as np

from deeplab_jax.data.images import read_image
from deeplab_jax.data.large import Image, open_large, row_parts
from deeplab_jax.models.preprocessing import Preprocessing


def read_for(preprocessing: Preprocessing, path: str | os.PathLike[str]) -> np.ndarray:
    """Return an image file as a model reads it: uint8 or float32 `[H, W, C]`, 0 to 255.

    Raises:
      UserError: a file that cannot be read, or that has not the model's channels.
    """
    image = read_image(path, channels=preprocessing.bands, value_range=preprocessing.stored_range)
    preprocessing.check(image, name=os.fspath(path))
    return image


def open_for(preprocessing: Preprocessing, path: str | os.PathLike[str]) -> Image:
    """Return the image of `read_for`, which reads its file a part at a time where the format allows it.

    Raises:
      UserError: as `read_for`.
    """
    image = open_large(path, channels=preprocessing.bands, value_range=preprocessing.stored_range)
    if image is None:
        return read_for(preprocessing, path)
    preprocessing.check(image, name=os.fspath(path))
    return image


def shown_fewer(image: Image, step: int) -> np.ndarray:
    """Return every `step`-th row and column of an image as people see it, uint8 `[h, w, 3]`."""
    if step == 1 and isinstance(image, np.ndarray):
        return shown(image)
    fewer = np.empty((-(-image.shape[0] // step), -(-image.shape[1] // step), 3), np.uint8)
    for rows in row_parts(image.shape, multiple=step):
        part = shown(image[rows])[::step, ::step]
        fewer[rows.start // step : rows.start // step + len(part)] = part
    return fewer


def shown(image: np.ndarray) -> np.ndarray:
    """Return an image `[H, W, C]`, uint8 or floats of 0 to 255, as people see it: uint8 `[H, W, 3]`.

    The first three channels are red, green and blue. A single one is grey. If there are two, the second is green
    and blue.
    """
    bands = image if image.shape[2] == 3 else image[..., np.minimum((0, 1, 2), image.shape[2] - 1)]
    return bands if bands.dtype == np.uint8 else np.rint(bands.clip(0, 255)).astype(np.uint8)
