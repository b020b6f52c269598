"""Tensors from files of any known format, which is found from their first bytes, never from their names."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.errors import DamagedFile, UserError, in_one_line
from deeplab_jax.files import read_json
from deeplab_jax.weights.formats import keras_weights
from deeplab_jax.weights.formats.archive import is_tar_gz, unpack_weights
from deeplab_jax.weights.formats.inert_pickle import Placeholder
from deeplab_jax.weights.formats.safetensors_file import read_safetensors
from deeplab_jax.weights.formats.tf_checkpoint import find_checkpoint, read_checkpoint
from deeplab_jax.weights.formats.tflite import IDENTIFIER, read_tflite
from deeplab_jax.weights.formats.torch_file import not_a_state_dict, read_torch

# Files of a saved folder, in order of preference; an index names the files that hold the parts.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    keras_weights.PRESET_FILE,
)
PARTS_INDEX = ".index.json"
SAVED_CONFIG = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"


def read_tree(path: Path) -> tuple[Mapping[str, Any], int | None]:
    """Return what a file of weights holds, and the output stride if its format stores it (`.tflite`).

    Args:
      path: a PyTorch or safetensors file, an index of several, a TensorFlow checkpoint (its prefix, `.index` file or
        folder), a `.tflite` file, weights of Keras 3, or a folder that holds one of them. `unpacked` makes such a
        folder from an archive.

    Returns:
      A mapping; of PyTorch files nested ones. Among the leaves are arrays, or what `arrays` turns into arrays.

    Raises:
      UserError: nothing to read there, or a damaged file.
    """
    with _readable(path):
        return _read(path)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a folder with the files of a `.tar.gz` that are read here, for as long as it is needed; or the path itself.

    A `UserError` about the folder, which nobody finds afterwards, becomes one about the archive.

    Raises:
      UserError: a damaged archive, one without weights, or one that cannot be read or unpacked.
    """
    with _readable(path):
        head = _head(path) if path.is_file() else b""
    if not is_tar_gz(head):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack_weights(path, Path(folder))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be unpacked into {folder} ({error.strerror or error}); free space"
            ) from None
        try:
            yield Path(folder)
        except UserError as error:
            raise type(error)(str(error).replace(folder, str(path))) from None


def read_config(path: Path) -> dict[str, Any]:
    """Return the `config.json` of a saved folder, given by its own path or by that of its weights; {} if there is none.
    It also holds a KerasHub preset's `task.json` and `image_converter.json`, under "task" and "image_converter", and
    the `preprocessor_config.json` of transformers, under "preprocessor".

    Raises:
      UserError: it cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / SAVED_CONFIG
    if not file.is_file() or not any((folder / name).is_file() for name in FOLDER_FILES):
        return {}
    if path != folder and path.name not in FOLDER_FILES:
        return {}
    beside = {"preprocessor": PROCESSOR_FILE}
    if (folder / keras_weights.PRESET_FILE).is_file():
        beside |= keras_weights.CONFIG_FILES
    more = {key: _config(folder / name) for key, name in beside.items() if (folder / name).is_file()}
    return {**_config(file), **more}


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return a part of content from outside if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _config(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedFile(f"{file}: not a readable configuration ({error}); fetch it again") from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file that the system does not let us read."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); check the path") from None


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(512)


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
    if path.name.endswith(PARTS_INDEX):
        return _read_parts(path), None
    head = _head(path)
    if head[4:8] == IDENTIFIER:
        graph = read_tflite(path)
        return graph.tensors, graph.output_stride
    if head[8:9] == b"{":
        return read_safetensors(path), None
    if head.startswith(keras_weights.MAGIC):
        return keras_weights.read_keras(path), None
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return read_torch(path), None
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path}: a tar archive; unpack it first, or, if PyTorch 0.1 wrote it, save it again with a newer one"
        )
    raise DamagedFile(
        f"{path}: neither a PyTorch, safetensors, Keras 3 or .tflite file nor a TensorFlow checkpoint (it begins with "
        f"{head[:4]!r}); fetch it again, or unpack archives first"
    )


def arrays(tensors: Mapping[str, Any], *, name: str) -> dict[str, np.ndarray]:
    """Return tensors as numpy arrays.

    Args:
      tensors: anything that numpy turns into arrays.
      name: name of the file, for messages.

    Raises:
      UserError: a tensor that no framework writes, or one that is not on the CPU.
    """
    return {key: _array(value, key, name) for key, value in tensors.items()}


def no_tensors(tree: Mapping[str, Any], *, name: str) -> UserError:
    """Return the error for a file without tensors."""
    for value in tree.values():
        if isinstance(value, Placeholder):
            return not_a_state_dict(name, value)
    return UserError(
        f"{name}: holds no tensors ({json.dumps([str(key)[:50] for key in list(tree)[:5]])}); save a state dict"
    )


def _read_parts(index: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index names, which stand beside it."""
    try:
        names = sorted({str(file) for file in read_json(index)["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedFile(f"{index}: not a readable index of weights ({error}); fetch it again") from None
    tensors: dict[str, Any] = {}
    for name in names:
        if not name or not name.isprintable() or Path(name).name != name:
            raise DamagedFile(f"{index}: names {name!r:.100}, which is not beside it; fetch it again")
        if name.endswith(PARTS_INDEX):  # It might name this one.
            raise DamagedFile(f"{index}: names {name!r:.100}, which is an index and holds no tensors; fetch it again")
        if not index.with_name(name).is_file():
            raise UserError(f"{index}: names {name}, which is not beside it; fetch it as well")
        tensors.update(_read(index.with_name(name))[0])
    return tensors


def _array(value: Any, key: str, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: {key} does not become an array ({in_one_line(error)}); save plain float32 tensors of the CPU"
        ) from None
