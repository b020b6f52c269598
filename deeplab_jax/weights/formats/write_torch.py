"""A state dict as `torch.save` writes one, without PyTorch: a zip archive of a pickle and one file per tensor."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "archive"
STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}
EARLIEST = (1980, 1, 1, 0, 0, 0)  # The earliest date of a zip archive; so the same tensors give the same bytes.


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors of float32 and int64 so that `torch.load(path, weights_only=True)` returns them by name."""
    arrays = {name: np.asarray(tensor, tensor.dtype.newbyteorder("<"), order="C") for name, tensor in tensors.items()}
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "data.pkl", _pickle(arrays))
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            _add(archive, f"data/{key}", array.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}", EARLIEST), content)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    items = [_literal(name) + _tensor(key, array) for key, (name, array) in enumerate(arrays.items())]
    return pickle.PROTO + b"\x02" + _ordered_dict(items) + pickle.STOP


def _tensor(key: int, array: np.ndarray) -> bytes:
    """Write PyTorch's call for a tensor: a view of a storage, which is in the file of that key."""
    storage = _tuple(
        _literal("storage"),
        _global("torch", STORAGES[array.dtype.name]),
        _literal(str(key)),
        _literal("cpu"),
        _literal(array.size),
    )
    strides = tuple(stride // array.itemsize for stride in array.strides)
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _literal(0),
        _literal(array.shape),
        _literal(strides),
        _literal(False),  # requires_grad
        _ordered_dict([]),  # hooks
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _ordered_dict(items: list[bytes]) -> bytes:
    made = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    return made + pickle.MARK + b"".join(items) + pickle.SETITEMS if items else made


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _literal(value: Any) -> bytes:
    """Write a text, a number or a tuple of numbers."""
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return _tuple(*(_literal(item) for item in value))
    if isinstance(value, bool):
        return pickle.NEWTRUE if value else pickle.NEWFALSE
    # Eight bytes, even if the number needs fewer.
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
