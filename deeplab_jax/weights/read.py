"""Tensors out of files of any of the known formats, told apart by their first bytes, never by their names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from deeplab_jax.errors import UserError
from deeplab_jax.weights.tf_checkpoint import find_checkpoint, read_checkpoint
from deeplab_jax.weights.tflite import read_tflite
from deeplab_jax.weights.torch_file import read_torch

# Keys under which training scripts keep the state dict in what they save, the first that is there counts.
NESTED = ("state_dict", "model_state", "model_state_dict", "model", "net")
PARALLEL = "module."
# Files of a Hugging Face folder, in the order of preference.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


def read_tensors(source: str | Path | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read a state dict.

    Args:
      source: a PyTorch or safetensors file, a TensorFlow checkpoint (its prefix, `.index` file or folder), a `.tflite`
        file, a folder that holds one of them, or a mapping of names to arrays.

    Returns:
      Name to array. What `torch.nn.DataParallel` puts before every name is taken off.

    Raises:
      UserError: nothing to read there, or a damaged file.
    """
    if isinstance(source, Mapping):
        return state_dict(source, name="state dict")
    path = Path(source)
    if path.is_dir():
        for file in FOLDER_FILES:
            if (path / file).is_file():
                return read_tensors(path / file)
    if checkpoint := find_checkpoint(path):
        return read_checkpoint(checkpoint)
    if path.is_dir():
        raise UserError(
            f"{path}: no weights in this folder; it should hold {', '.join(FOLDER_FILES)} or a *.index file"
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if head[4:8] == b"TFL3":
        return read_tflite(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return state_dict(read_torch(path), name=str(path))
    raise UserError(
        f"{path}: neither a PyTorch, safetensors or .tflite file nor a TensorFlow checkpoint (it begins with "
        f"{head[:4]!r}); unpack archives first"
    )


def state_dict(tree: Mapping[str, Any], *, name: str) -> dict[str, np.ndarray]:
    """Find the state dict in what was saved, and take off the prefix of DataParallel.

    Args:
      tree: nested mappings with arrays, or anything that numpy turns into arrays, among the leaves.
      name: for messages.
    """
    for key in NESTED:
        if isinstance(tree.get(key), Mapping):
            return state_dict(tree[key], name=name)
    tensors = {str(key): np.asarray(value) for key, value in tree.items() if hasattr(value, "shape")}
    if not tensors:
        raise UserError(
            f"{name}: holds no tensors ({json.dumps([str(key) for key in list(tree)[:5]])}); save a state dict"
        )
    if all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
