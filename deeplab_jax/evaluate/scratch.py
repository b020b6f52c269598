"""Room on the disk for arrays of the size of an image, which need not stay in memory."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np

from deeplab_jax.errors import UserError


def scratch(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, uint8 of a shape, in a file that has no name and vanishes with the array, also after a kill.

    The system may drop its pages from memory, and reads them again when they are needed.

    Args:
      folder: any folder of the file system that has the room.

    Raises:
      UserError: there is not so much room.
    """
    size = math.prod(shape)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # A page without room on the disk would end the process when it is written.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot hold {size} bytes of class ids ({error.strerror}); free space, or give another --out"
        ) from None
