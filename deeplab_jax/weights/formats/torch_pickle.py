"""Tensors in the pickles of `torch.save`: the meaning of the calls and persistent ids in them.

A tensor is a call, `_rebuild_tensor_v2(storage, offset, size, stride, ...)`, and a storage is a persistent id, as in
torch/_utils.py and torch/serialization.py.
"""

import io
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from deeplab_jax.errors import DamagedFile, UserError
from deeplab_jax.weights.formats.inert_pickle import Global, PickleError, is_key, loads

MAX_DIMENSIONS = 32
# Tensors may share a storage or repeat one value by a stride of 0. All of them together take at most so many times the
# file, and some more for small files.
MAX_EXPANSION = 4
MAX_SMALL = 16 * 2**20


BITS = (8, 16, 32, 64)
DTYPES = {
    "bool": np.dtype(bool),
    **{f"uint{bits}": np.dtype(f"uint{bits}") for bits in BITS},
    **{f"int{bits}": np.dtype(f"int{bits}") for bits in BITS},
    **{f"float{bits}": np.dtype(f"float{bits}") for bits in BITS[1:]},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Types that are known but not read: their sizes in bytes, to find the next storage.
UNREAD = {"complex64": 8, "complex128": 16, "quint8": 1, "qint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}


class Damaged(ValueError):
    """The fault of a file, without its name."""


@dataclass
class Block:
    """The place of a storage in the file, and its bytes once they are needed."""

    path: Path
    start: int
    size: int
    checksum: int | None = None
    big_endian: bool = False
    data: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """Return the bytes, uint8."""
        if self.data is None:
            data = np.empty(self.size, np.uint8)
            try:
                with self.path.open("rb") as file:
                    file.seek(self.start)
                    count = file.readinto(data.data)
            except OSError as error:
                raise UserError(f"{self.path}: cannot be read ({error.strerror or error}); check the path") from None
            if count != self.size or (self.checksum is not None and zlib.crc32(data.data) != self.checksum):
                raise DamagedFile(f"{self.path}: not a whole file of torch.save (a checksum is wrong); fetch it again")
            self.data = data
        return self.data

    def bytes(self, *, limit: int) -> bytes:
        """Return the bytes of a small block."""
        if self.size > limit:
            raise Damaged(f"an entry of {self.size} bytes where at most {limit} are expected")
        return self.read().tobytes()


class Storage(NamedTuple):
    """The meaning of a persistent id: a key of the file, the type of its items, and the first byte of a view."""

    key: str
    dtype: str
    start: int = 0


@dataclass
class Tensor:
    """A tensor in a file; `numpy.asarray` reads it.

    Attributes:
      shape: its sizes.
      dtype: PyTorch's name of the items' type.
      stride: number of items for each axis.
      start: position of its first item in the storage, in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...] = ()
    start: int = 0
    storage: Storage | None = None
    block: Block | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of items."""
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.dtype not in DTYPES or self.block is None:
            raise TypeError(f"tensors of {self.dtype} are not read")
        array = self._items(DTYPES[self.dtype], self.block) if self.size else np.empty(self.shape, DTYPES[self.dtype])
        return array if dtype is None else array.astype(dtype)

    def _items(self, kind: np.dtype, block: Block) -> np.ndarray:
        raw = block.read()
        bits = np.dtype(f"u{kind.itemsize}")  # The same for all types, and it changes no NaN.
        array = np.ndarray(self.shape, bits, raw, self.start, [stride * kind.itemsize for stride in self.stride])
        if block.big_endian:
            array = array.byteswap()
        if array.nbytes != raw.nbytes or not array.flags.c_contiguous:
            array = np.array(array, order="C")
        return array.view(kind)


class TorchPickle:
    """The pickles of a file, and the tensors and storages in them."""

    def __init__(self, stream: io.BytesIO) -> None:
        self.stream = stream
        self.tensors: list[Tensor] = []
        self.storages: list[Storage] = []
        self.functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": _ordered_dict,
            "collections.defaultdict": lambda *_: {},
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.tensor_with_dtype,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": self.subclass,
            "torch._utils._rebuild_qtensor": lambda *_: Tensor((), "quantised numbers"),
            "torch._utils._rebuild_sparse_tensor": lambda *_: Tensor((), "sparse layout"),
            "torch._utils._rebuild_nested_tensor": lambda *_: Tensor((), "nested layout"),
            "torch._utils._rebuild_device_tensor_from_numpy": lambda *_: Tensor((), "another device"),
            "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: Tensor((), "the meta device"),
        }

    def load(self) -> Any:
        """Return the content of the next pickle."""
        return loads(self.stream, functions=self.functions, persistent=self.storage)

    def storage(self, identity: Any) -> Any:
        """Return the object for a persistent id."""
        match identity:
            case ("module", module, *_):  # A class with its source code; PyTorch until 1.5.
                return module
            case ("storage", Global(name=name), str(key), _, _, *view):
                kind = STORAGES.get(name.rpartition(".")[2])
                if kind is None:
                    raise PickleError(f"a storage of the unknown type {name[:50]!a}")
                start = _natural(view[0][1]) * item_size(kind) if view and view[0] is not None else 0
                self.storages.append(Storage(key, kind, start))
                return self.storages[-1]
        raise PickleError("a persistent id that torch.save never writes")

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
        """Replaces `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)`."""
        kind = storage.dtype if isinstance(storage, Storage) else ""
        return self._tensor(storage, offset, shape, stride, kind=kind, metadata=rest[2:])

    def tensor_with_dtype(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
        """Replaces `_rebuild_tensor_v3`, which names the type after the hooks."""
        kind = rest[2].name.rpartition(".")[2] if isinstance(rest[2], Global) else ""
        return self._tensor(storage, offset, shape, stride, kind=kind, metadata=rest[3:])

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *, kind: str, metadata: tuple) -> Tensor:
        if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
            raise TypeError
        if any(metadata):
            return Tensor((), f"{kind} with a pending negation or conjugation")
        if kind not in DTYPES:
            return Tensor((), kind if kind.isidentifier() else "an unknown type")
        shape = tuple(map(_natural, shape))
        stride = tuple(_natural(step) if size > 1 else 0 for size, step in zip(shape, stride, strict=True))
        start = storage.start + _natural(offset) * item_size(kind)
        self.tensors.append(Tensor(shape, kind, stride, start, storage))
        return self.tensors[-1]

    def subclass(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """Replaces `_rebuild_from_type_v2`: a tensor of a subclass, or with attributes."""
        match function:
            case Global(name="torch._utils._rebuild_tensor_v2"):
                return self.tensor(*arguments)
            case Global(name="torch._utils._rebuild_tensor_v3"):
                return self.tensor_with_dtype(*arguments)
        return Tensor((), "a subclass of torch.Tensor")

    def place(self, blocks: Mapping[str, Block], *, file_size: int) -> None:
        """Give the tensors their bytes; none may end beyond its storage, and all together may not far
        exceed the file.
        """
        total = 0
        for tensor in self.tensors:
            block = blocks.get(tensor.storage.key) if tensor.storage else None
            if block is None:
                raise Damaged("a storage is missing")
            item = DTYPES[tensor.dtype].itemsize
            last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
            if tensor.size and tensor.start + (last + 1) * item > block.size:
                raise Damaged(f"a tensor of shape {tensor.shape} does not fit into its storage of {block.size} bytes")
            total += math.prod(max(size, 1) for size in tensor.shape) * item
            if total > MAX_EXPANSION * file_size + MAX_SMALL:
                raise Damaged(f"its tensors would take more than {MAX_EXPANSION} times the file")
            tensor.block = block


def _ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    return {key: value for key, value in items if is_key(key)}


def item_size(kind: str) -> int:
    """Return the bytes of one item of a type, which may be known but not read."""
    return UNREAD[kind] if kind in UNREAD else DTYPES[kind].itemsize


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError
    return value
