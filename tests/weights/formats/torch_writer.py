"""Files as `torch.save` writes them, made without PyTorch, so that every byte can be chosen."""

import io
import struct
import zipfile
from typing import Any

import numpy as np

STORAGES = {
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
}
PREAMBLE = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",  # The magic number.
    b"\x80\x02M\xe9\x03.",  # The protocol, 1001.
    b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.",
)


class Opcodes(bytes):
    """Opcodes that push one value; they stand in the pickle as they are."""


def opcodes(value: Any, storages: list[bytes]) -> bytes:
    """Return the opcodes that push a value; the bytes of its arrays are appended to `storages`."""
    match value:
        case Opcodes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case dict():
            items = b"".join(opcodes(item, storages) for pair in value.items() for item in pair)
            return b"}(" + items + b"u"
        case tuple():
            return b"(" + b"".join(opcodes(item, storages) for item in value) + b"t"
        case list():
            return b"](" + b"".join(opcodes(item, storages) for item in value) + b"e"
        case np.ndarray():
            storages.append(value.tobytes())
            key = str(len(storages) - 1)
            strides = tuple(stride // value.itemsize for stride in np.empty(value.shape, value.dtype).strides)
            return tensor(key, STORAGES[value.dtype.name], value.size, 0, value.shape, strides)
    raise TypeError(value)


def tensor(
    key: Any, storage: str, count: Any, offset: Any, shape: Any, strides: Any, *, view: Any = ..., metadata: Any = ...
) -> Opcodes:
    """Return the opcodes of one tensor; none of the arguments need make sense."""
    identity = ["storage", Opcodes(b"ctorch\n" + storage.encode() + b"\n"), key, "cpu", count]
    arguments = [offset, shape, strides, False, Opcodes(b"ccollections\nOrderedDict\n)R")]
    pid = opcodes(tuple(identity + ([] if view is ... else [view])), []) + b"Q"
    more = [] if metadata is ... else [metadata]
    return Opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n" + opcodes((Opcodes(pid), *arguments, *more), []) + b"R")


def archive(value: Any, *, extra: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file of PyTorch 1.6 or later.

    Args:
      value: what to save; `Opcodes` and arrays among the leaves.
      extra: entries to add, or to put in place of others; names without the folder.
      compression: of all entries; `torch.save` never compresses.
    """
    storages: list[bytes] = []
    entries = {"data.pkl": b"\x80\x02" + opcodes(value, storages) + b".", "byteorder": b"little"}
    entries |= {f"data/{key}": content for key, content in enumerate(storages)}
    entries |= {"version": b"3\n"} | (extra or {})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, content in entries.items():
            zipped.writestr(f"saved/{name}", content)
    return file.getvalue()


def legacy(value: Any, *, sizes: dict[str, int] | None = None, keys: list[Any] | None = None) -> bytes:
    """Return a file of the layout before PyTorch 1.6.

    Args:
      value: what to save; `Opcodes` and arrays (of items of four bytes) among the leaves.
      sizes: numbers of items to write in place of the right ones, by key.
      keys: of the storages, in place of the right ones.
    """
    storages: list[bytes] = []
    pickled = b"\x80\x02" + opcodes(value, storages) + b"."
    names = [str(key) for key in range(len(storages))] if keys is None else keys
    content = [*PREAMBLE, pickled, b"\x80\x02" + opcodes(names, []) + b"."]
    for key, storage in enumerate(storages):
        content += [struct.pack("<q", (sizes or {}).get(str(key), len(storage) // 4)), storage]
    return b"".join(content)
