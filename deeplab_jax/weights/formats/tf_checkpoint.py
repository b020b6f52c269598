"""TensorFlow's checkpoints, read without TensorFlow, which has the only reader of them and takes 500 MB.

A checkpoint PREFIX consists of an index, PREFIX.index, and the values of its tensors, PREFIX.data-00000-of-0000N. The
index is a table of LevelDB. Its keys are the tensors' names and its values are protocol buffers: `BundleHeaderProto`
for the empty key, `BundleEntryProto` for the others (TensorFlow, `core/protobuf/tensor_bundle.proto`).
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from deeplab_jax.errors import DamagedFile, UserError
from deeplab_jax.weights.formats.leveldb import MAGIC, masked_crc32c, read_table, varint

CHECKPOINT_INDEX = ".index"
STATE = "checkpoint"
# The types of `DataType` in TensorFlow's types.proto that are arrays of numbers; strings and others are left out.
DTYPES: dict[int, type] = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    14: ml_dtypes.bfloat16,
    17: np.uint16,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}
LARGEST_RANK = 32
# The errors of reading a damaged index.
DAMAGE = (ValueError, IndexError, struct.error)

Message = dict[int, list[int | bytes]]


@dataclass(frozen=True)
class Entry:
    """The place of one tensor, from its `BundleEntryProto`."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


def find_checkpoint(path: Path) -> Path | None:
    """Return the prefix of the checkpoint that a path names.

    Args:
      path: the prefix, the `.index` file, or a folder with one checkpoint, or with several and the file `checkpoint`,
        which names the newest.

    Returns:
      The prefix, or None if there is no checkpoint.

    Raises:
      UserError: a folder with several checkpoints, none of them named; a checkpoint in the format before 2016.
    """
    if path.is_dir():
        return _find_in_folder(path)
    if path.name.endswith(CHECKPOINT_INDEX) and path.is_file():
        return path.with_name(path.name.removesuffix(CHECKPOINT_INDEX))
    if path.with_name(path.name + CHECKPOINT_INDEX).is_file():
        return path
    if path.is_file() and _ends_with_magic(path):
        raise UserError(
            f"{path}: a TensorFlow checkpoint in the format of one file, from before 2016; save it again with "
            "tf.compat.v1.train.Saver, which writes an .index and .data files"
        )
    return None


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint by name.

    Memory for a tensor is taken only after its declared size has been compared with its shape and with the size of its
    file. The checksums of the index and of every tensor are verified.

    Args:
      prefix: from `find_checkpoint`.

    Returns:
      Name to array, in the order of the index. Entries that are not arrays of numbers (strings, resources) are left
      out.

    Raises:
      OSError: the index cannot be read.
      UserError: a data file that cannot be read, a damaged file, or one with what no release of DeepLab uses
        (compressed blocks, partitioned variables, big-endian numbers).
    """
    index = prefix.with_name(prefix.name + CHECKPOINT_INDEX)
    try:
        shards, entries = _read_index(index.read_bytes())
    except UserError as error:
        raise UserError(f"{index}: {error}") from None
    except DAMAGE as error:
        raise DamagedFile(
            f"{index}: not a readable index of a TensorFlow checkpoint ({error}); fetch it again"
        ) from None
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted({entry.shard for entry in entries}):
        file = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        try:
            tensors |= _read_shard(file, [entry for entry in entries if entry.shard == shard])
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror or error}); it belongs beside {index.name}"
            ) from None
        except ValueError as error:
            raise DamagedFile(f"{file}: {error}; fetch the checkpoint again") from None
    return {entry.name: tensors[entry.name] for entry in entries}


def _find_in_folder(folder: Path) -> Path | None:
    prefixes = sorted(
        file.with_name(file.name.removesuffix(CHECKPOINT_INDEX)) for file in folder.glob(f"*{CHECKPOINT_INDEX}")
    )
    if len(prefixes) < 2:
        return prefixes[0] if prefixes else None
    try:
        state = (folder / STATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        state = ""
    newest = re.search(r'^model_checkpoint_path: "(.+)"', state, re.MULTILINE)
    # The path is of the machine that trained; the file is here.
    named = newest and folder / Path(newest[1]).name
    if named in prefixes:
        return named
    raise UserError(
        f"{folder}: {len(prefixes)} checkpoints ({', '.join(prefix.name for prefix in prefixes[:5])}) and no file "
        f"{STATE!r} that names one of them; give the one that you want"
    )


def _ends_with_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - len(MAGIC), 0))
            return file.read() == MAGIC
    except OSError:
        return False


def _read_shard(file: Path, entries: list[Entry]) -> dict[str, np.ndarray]:
    size = file.stat().st_size
    declared = sum(entry.size for entry in entries)
    if declared > size:
        raise ValueError(f"has {size} bytes, its tensors {declared}")
    tensors = {}
    with file.open("rb") as stream:
        for entry in entries:
            if entry.offset + entry.size > size:
                raise ValueError(f"{entry.name} would end at byte {entry.offset + entry.size} of {size}")
            stream.seek(entry.offset)
            data = stream.read(entry.size)
            if len(data) != entry.size or masked_crc32c(data) != entry.checksum:
                raise ValueError(f"the checksum of {entry.name} is not that of its bytes")
            dtype = np.dtype(DTYPES[entry.dtype])
            # numpy knows no truth value other than 0 and 1.
            values = np.frombuffer(data, np.uint8) != 0 if dtype == np.bool_ else np.frombuffer(data, dtype)
            tensors[entry.name] = values.reshape(entry.shape)
    return tensors


def _read_index(data: bytes) -> tuple[int, list[Entry]]:
    """Return the number of data files, and the entries of the tensors that are arrays of numbers."""
    table = read_table(data)
    key, value = next(table, (b"x", b""))
    if key:
        raise ValueError("no header")
    header = _message(value)
    shards = _number(header, 1)
    if _number(header, 2):
        raise UserError("its numbers are big-endian, which this package does not read; save it on another machine")
    entries = []
    for key, value in table:
        if key.startswith(b"\0"):
            continue  # A slice of a variable that is refused at its own name.
        name = key.decode("utf-8")
        if not name.isprintable():
            raise ValueError(f"a name that cannot be shown, {name[:40]!r}")
        entry = _message(value)
        if 7 in entry:
            raise UserError(
                f"the variable {name} is partitioned, which this package does not read; save it in one piece"
            )
        dtype = _number(entry, 1)
        if dtype in DTYPES:
            entries.append(_entry(name, entry, shards))
    return shards, entries


def _entry(name: str, message: Message, shards: int) -> Entry:
    dimensions = _message(_bytes(message, 2)).get(2, [])
    shape = tuple(_number(_message(dimension), 1) for dimension in dimensions if isinstance(dimension, bytes))
    entry = Entry(
        name=name,
        dtype=_number(message, 1),
        shape=shape,
        shard=_number(message, 3),
        offset=_number(message, 4),
        size=_number(message, 5),
        checksum=_number(message, 6),
    )
    if len(shape) > LARGEST_RANK or max((*shape, entry.offset, entry.size)) >= 2**63:
        raise ValueError(f"{name} has shape {shape[:LARGEST_RANK]} at byte {entry.offset}")
    if math.prod(shape) * np.dtype(DTYPES[entry.dtype]).itemsize != entry.size:
        raise ValueError(f"{name} of shape {shape} would have {entry.size} bytes")
    if entry.shard >= shards:
        raise ValueError(f"{name} is in data file {entry.shard + 1} of {shards}")
    return entry


def _message(data: bytes) -> Message:
    """Return the values of each field of a protocol buffer, by its number."""
    fields: Message = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            length, at = (8, at) if tag & 7 == 1 else (4, at) if tag & 7 == 5 else _length(data, at, tag)
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("a field reaches beyond its message")
            value = value if tag & 7 == 2 else int.from_bytes(value, "little")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _length(data: bytes, at: int, tag: int) -> tuple[int, int]:
    if tag & 7 != 2:
        raise ValueError(f"a field of type {tag & 7}")
    return varint(data, at)


def _number(message: Message, field: int) -> int:
    value = message.get(field, [0])[-1]
    if isinstance(value, bytes):
        raise ValueError(f"field {field} is no number")
    return value


def _bytes(message: Message, field: int) -> bytes:
    value = message.get(field, [b""])[-1]
    if isinstance(value, int):
        raise ValueError(f"field {field} is no message")
    return value
