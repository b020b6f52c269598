"""A state dict as `torch.save` writes one, without PyTorch: a zip archive of a pickle and one file per tensor."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors of float32 and int64 so that `torch.load(path, weights_only=True)` returns them by name."""
    arrays = {name: np.asarray(tensor, tensor.dtype.newbyteorder("<"), order="C") for name, tensor in tensors.items()}
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(
        OrderedDict((name, _Tensor(str(key), array)) for key, (name, array) in enumerate(arrays.items()))
    )
    entries = {"data.pkl": pickled.getvalue(), "byteorder": b"little", "version": b"3\n"}
    storages = ((f"data/{key}", array.tobytes()) for key, array in enumerate(arrays.values()))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in chain(entries.items(), storages):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)  # Dated alike: the same bytes each time.


class _Name(NamedTuple):
    """A class or function of PyTorch, which need not be installed."""

    module: str
    name: str

    def __call__(self) -> None:
        """Pickle calls nothing, but asks whether it could."""


class _Storage(NamedTuple):
    """What stands in the pickle for the bytes of a tensor."""

    identity: tuple[Any, ...]


class _Tensor(NamedTuple):
    """A tensor whose bytes are the entry of that key."""

    key: str
    array: np.ndarray


class _Pickler(pickle._Pickler):
    write: Callable[[bytes], object]  # The standard library's class has it; its type stubs lack it.

    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, _Storage) else None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Tensor):
            return NotImplemented
        array = value.array
        storage = _Storage(("storage", _Name("torch", STORAGES[array.dtype.name]), value.key, "cpu", array.size))
        strides = tuple(stride // array.itemsize for stride in array.strides)
        arguments: tuple[Any, ...] = (storage, 0, array.shape, strides, False, OrderedDict())  # requires_grad, hooks
        return _Name("torch._utils", "_rebuild_tensor_v2"), arguments

    def save_name(self, value: _Name) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, _Name: save_name}
