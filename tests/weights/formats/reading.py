"""What the tests of the readers ask of every file: arrays, or one line that names the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from tests.support.tensors import read_tensors


def saved(folder: Path, content: bytes) -> Path:
    path = folder / "weights.pth"
    path.write_bytes(content)
    return path


def refusal(source: Any, *, name: str = "") -> str:
    """Return the one line that refuses a file, or another source of that name."""
    with pytest.raises(UserError) as caught:
        read_tensors(source)
    line = str(caught.value)
    assert line.isprintable() and (name or str(source)) in line
    return line


def is_read_or_refused(path: Path) -> bool:
    """Return whether a damaged file is still read; its tensors are then arrays, and otherwise one line refuses it."""
    try:
        tensors = read_tensors(path)
    except UserError as error:
        assert str(error).isprintable() and str(path) in str(error), error
        return False
    assert all(type(name) is str and type(value) is np.ndarray for name, value in tensors.items())
    return True
