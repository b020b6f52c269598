"""Safetensors files from anybody."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from deeplab_jax.errors import DamagedFile, UserError, in_one_line


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file; the library compares sizes with the file before it allocates.

    Raises:
      UserError: it cannot be read, is damaged, or holds tensors of a type that numpy does not have.
    """
    try:
        return load_file(str(path))
    except AttributeError as error:
        raise UserError(f"{path}: holds tensors of {error.name}, which are not read; save them as float32") from None
    except (SafetensorError, OSError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFile(
            f"{path}: not a readable safetensors file ({in_one_line(error)}); fetch or write it again"
        ) from None
