"""Tensors from files of any known format, which is found from their first bytes, never from their names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.weights.formats.inert_pickle import Placeholder
from deeplab_jax.weights.formats.tf_checkpoint import find_checkpoint, read_checkpoint
from deeplab_jax.weights.formats.tflite import is_tflite, read_tflite
from deeplab_jax.weights.formats.torch_file import not_a_state_dict, read_torch

# Keys under which training scripts save the state dict; the first one that exists applies.
NESTED = ("state_dict", "model_state", "model_state_dict", "model", "net")
PARALLEL = "module."
# Files of a Hugging Face folder, in order of preference.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG_FILE = "config.json"
DEEPEST = 4  # Levels of mappings in which a state dict is searched; a hostile file's mapping may contain itself.
LONGEST_NAME = 500


def read_tensors(source: str | Path | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict by name.

    Args:
      source: a PyTorch or safetensors file, a TensorFlow checkpoint (its prefix, `.index` file or folder), a `.tflite`
        file, a folder that holds one of them, or a mapping of names to arrays.

    Returns:
      Name to array. The prefix that `torch.nn.DataParallel` adds to every name is removed.

    Raises:
      UserError: nothing to read there, or a damaged file.
    """
    return read_network(source)[0]


def read_network(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int | None]:
    """Return the result of `read_tensors`, and the output stride if the format stores it (`.tflite`)."""
    if isinstance(source, Mapping):
        return state_dict(source, name="state dict"), None
    path = Path(source)
    try:
        tree, output_stride = _read(path)
        return state_dict(tree, name=str(path)), output_stride
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def read_config(path: Path) -> dict[str, Any]:
    """Return the `config.json` of a Hugging Face folder, given by its own path or by that of its weights; {} if there
    is none.

    Raises:
      UserError: it cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_FILE
    if not file.is_file() or not any((folder / name).is_file() for name in FOLDER_FILES):
        return {}
    if path != folder and path.name not in FOLDER_FILES:
        return {}
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a readable configuration ({error}); fetch it again") from None


def _read(path: Path) -> tuple[Mapping[str, Any], int | None]:
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return _read(path / name)
    if checkpoint := find_checkpoint(path):
        return read_checkpoint(checkpoint), None
    if path.is_dir():
        raise UserError(
            f"{path}: no weights in this folder; it should hold {', '.join(FOLDER_FILES)} or a *.index file"
        )
    if not path.is_file():  # A pipe would wait for ever, and a device has no end.
        raise UserError(f"{path}: no such file; check the path")
    with path.open("rb") as stream:
        head = stream.read(512)
    if is_tflite(path):
        graph = read_tflite(path)
        return graph.tensors, graph.output_stride
    if head[8:9] == b"{":
        return _read_safetensors(path), None
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return read_torch(path), None
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path}: a tar archive; unpack it first, or, if PyTorch 0.1 wrote it, save it again with a newer one"
        )
    raise UserError(
        f"{path}: neither a PyTorch, safetensors or .tflite file nor a TensorFlow checkpoint (it begins with "
        f"{head[:4]!r}); unpack archives first"
    )


def state_dict(tree: Mapping[str, Any], *, name: str) -> dict[str, np.ndarray]:
    """Return the state dict in a saved object, without the prefix of DataParallel.

    Args:
      tree: nested mappings; among the leaves are arrays, or anything that numpy turns into arrays.
      name: name for messages.
    """
    for _ in range(DEEPEST):
        inner = [tree[key] for key in NESTED if isinstance(tree.get(key), Mapping)]
        tree = inner[0] if inner else tree
    tensors = {_checked(key, name): _array(value, key, name) for key, value in tree.items() if hasattr(value, "shape")}
    if not tensors:
        for key in NESTED:
            if isinstance(tree.get(key), Placeholder):
                raise not_a_state_dict(name, tree[key])
        raise UserError(
            f"{name}: holds no tensors ({json.dumps([str(key)[:50] for key in list(tree)[:5]])}); save a state dict"
        )
    if all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    return tensors


def _checked(key: object, name: str) -> str:
    """Return a tensor's name, which later messages repeat on their one line."""
    text = str(key)
    if len(text) > LONGEST_NAME or not text.isprintable():
        raise UserError(f"{name}: a tensor's name is {text[:50]!a}, no name that a framework writes; fetch it again")
    return text


def _array(value: Any, key: object, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: {key} does not become an array ({_line(error)}); save plain float32 tensors of the CPU"
        ) from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file; the library compares sizes with the file before it allocates."""
    try:
        return load_file(str(path))
    except AttributeError as error:
        raise UserError(f"{path}: holds tensors of {error.name}, which are not read; save them as float32") from None
    except (SafetensorError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({_line(error)}); fetch it again") from None


def _line(error: Exception) -> str:
    """Return another library's message on one line."""
    text = " ".join(str(error).split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
