"""A file that is there whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from deeplab_jax.errors import UserError


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a new file beside `path`, then put it there at once; its folder is made where missing.

    Raises:
      UserError: it cannot be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as work:
            fresh = Path(work, file.name)
            write(fresh)
            os.replace(fresh, file)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror or error}); free space or choose another"
        ) from None
    return file
