"""Weights that Keras 3 saves (`*.weights.h5`), and KerasHub's preset folders, through the package h5py."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.errors import DamagedFile, UserError, in_one_line, optional

PRESET_FILE, TASK_FILE = "model.weights.h5", "task.weights.h5"
"""A preset's files: of the backbone, which for DeepLab is all but the classifier, and of the task around it."""
CONFIG_FILES = {"task": "task.json", "image_converter": "image_converter.json"}
TASK = "task/"
"""What the names of the task's tensors begin with here."""
MAGIC = b"\x89HDF\r\n\x1a\n"
# What a layer's variables are, in the order of their numbers.
VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
MOST_TENSORS = 100_000


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a preset folder, or of one of its files.

    Args:
      path: the folder, its `model.weights.h5`, which stands for it, or another `.weights.h5` file.

    Returns:
      Name to array. A name is the layer's path in the file and the variable's name, such as
      "layers/spatial_pyramid_pooling/projection/layers/conv2d/kernel". Those of a folder's `task.weights.h5` begin with
      "task/"; optimizers' variables are left out.

    Raises:
      UserError: a damaged file, or h5py is missing.
    """
    file = path / PRESET_FILE if path.is_dir() else path
    tensors, task = dict(_tensors(file)), file.with_name(TASK_FILE)
    if file.name == PRESET_FILE and task.is_file():
        tensors |= {TASK + name: value for name, value in _tensors(task)}
    return tensors


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    (h5py,) = optional(str(path), "h5py", install="h5py")
    try:
        with h5py.File(path, "r") as file:
            found: list[tuple[str, Any]] = []
            # It follows no link out of the file.
            file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
            if len(found) > MOST_TENSORS:
                raise UserError(f"{path}: {len(found)} tensors, more than any network here has")
            wanted = [(name, item) for name, item in found if not name.startswith("optimizer/")]
            for name, item in wanted:
                _check(item, f"{path}: {name[:200]!a}")
            # Keras compresses none. A tensor that nobody has written takes no space, and would be read as zeros.
            if sum(item.nbytes for _, item in wanted) > path.stat().st_size:
                raise DamagedFile(f"{path}: its tensors are larger than the file, as Keras's never are; fetch it again")
            for name, item in wanted:
                yield _named(name), np.asarray(item[()])
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path}: not a readable HDF5 file ({in_one_line(error)}); fetch it again") from None


def _check(item: Any, where: str) -> None:
    """Refuse a dataset that Keras does not write: of other files, without a shape, or of no numbers."""
    if item.shape is None or item.is_virtual or item.external:
        raise UserError(f"{where} is not stored as Keras does; save the weights again")
    if item.dtype.kind not in "fiu":
        raise UserError(f"{where} holds {item.dtype}, not numbers; save the weights again")


def _named(name: str) -> str:
    """Return the name of a variable, which in the file is a number."""
    match = re.fullmatch(r"(.*?)/?vars/(\d+)", name)
    if not match:
        return name
    layer, index = match[1], int(match[2])
    names = VARIABLES.get(re.sub(r"_\d+$", "", layer.rpartition("/")[2]), ())
    return f"{layer}/{names[index] if index < len(names) else index}"
