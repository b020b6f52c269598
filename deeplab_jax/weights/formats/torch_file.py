"""PyTorch's files, read without PyTorch and without running anything in them.

Since PyTorch 1.6 the pickle and the storages are entries of an uncompressed zip archive (`NAME/data.pkl`,
`NAME/data/KEY`). Older files, and files with `_use_new_zipfile_serialization=False`, are five pickles (magic number,
protocol, machine, object, keys of the storages) and then the storages in the order of the keys, each after its number
of items. torch/serialization.py defines both layouts.
"""

import io
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeplab_jax.errors import DamagedFile, UserError, in_one_line, printable
from deeplab_jax.weights.formats.inert_pickle import Global, PickleError, Placeholder
from deeplab_jax.weights.formats.torch_pickle import Block, Damaged, TorchPickle, item_size

MAGIC = 0x1950A86A20F9469CFC6C  # The first pickle of a legacy file.
PROTOCOL = 1001
PICKLE = "data.pkl"
# Most bytes of a pickle or of an archive's directory; a thousand tensors and their optimizer's state take 500,000.
MAX_READ = 16 * 2**20
LOCAL_HEADER = struct.Struct("<26xHH")  # It ends with the lengths of an entry's name and of its extra field.


def read_torch(path: str | Path) -> dict[str, Any]:
    """Return the object that `torch.save` wrote.

    Args:
      path: the file, an archive or in the legacy layout.

    Returns:
      The saved dict, usually nested: None, bool, int, float, str, bytes, list, tuple and dict, and for each tensor and
      parameter a `Tensor`, which `numpy.asarray` reads. Objects of all other classes (a scheduler, an
      argparse.Namespace, a numpy number) are `Placeholder`s without content.

    Raises:
      OSError: it cannot be read.
      UserError: a damaged or hostile file, one that `torch.save` did not write, or one without a dict. A storage with a
        wrong checksum raises it later, when a tensor is read.
    """
    path = Path(path)
    try:
        with _BoundedReader(io.FileIO(path)) as file:
            size = os.fstat(file.fileno()).st_size
            read = _read_archive if file.read(2) == b"PK" else _read_legacy
            saved = read(path, file, size)
    except (Damaged, PickleError) as error:
        raise DamagedFile(f"{path}: not a whole file of torch.save ({error}); fetch it again") from None
    if isinstance(saved, dict):
        return saved
    raise not_a_state_dict(path, saved)


def not_a_state_dict(path: str | Path, saved: Any) -> UserError:
    """Return the error for a file that holds something else, such as a whole module."""
    what = saved.name if isinstance(saved, Placeholder | Global) else type(saved).__name__
    return UserError(
        f"{path}: holds a pickled {printable(what[:100])}, not a state dict; in the program that wrote it, "
        "torch.save(model.state_dict(), ...)"
    )


class _BoundedReader(io.BufferedReader):
    """A file that never allocates a length that it announces."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(MAX_READ if size is None or not 0 <= size <= MAX_READ else size)


def _read_archive(path: Path, file: _BoundedReader, size: int) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, IndexError) as error:
        raise Damaged(in_one_line(error)) from None
    names = [entry.filename for entry in entries]
    prefix = min((name[: -len(PICKLE)] for name in names if name.endswith(f"/{PICKLE}")), key=len, default=None)
    if prefix is None:
        raise UserError(f"{path}: a zip archive, but not of torch.save; unpack it first")
    used = (f"{prefix}{PICKLE}", f"{prefix}byteorder", f"{prefix}data/")
    blocks = {entry.filename: _stored(path, file, entry, size) for entry in entries if entry.filename.startswith(used)}
    if sum(entry.file_size for entry in entries if entry.filename.startswith(used)) > size:
        raise Damaged("its entries overlap")
    order = blocks[f"{prefix}byteorder"].bytes(limit=16) if f"{prefix}byteorder" in blocks else b"little"
    if order not in (b"little", b"big"):
        raise Damaged("an unknown byte order")
    pickle = TorchPickle(io.BytesIO(blocks[f"{prefix}{PICKLE}"].bytes(limit=MAX_READ)))
    saved = pickle.load()
    storages = {
        name.removeprefix(f"{prefix}data/"): replace(block, big_endian=order == b"big")
        for name, block in blocks.items()
        if name.startswith(f"{prefix}data/")
    }
    pickle.place(storages, file_size=size)
    return saved


def _stored(path: Path, file: _BoundedReader, entry: zipfile.ZipInfo, size: int) -> Block:
    """Return the position of an entry's bytes."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise Damaged("a compressed or encrypted archive, which torch.save never writes")
    if not 0 <= entry.header_offset < size:
        raise Damaged("an entry of the archive begins outside the file")
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) != LOCAL_HEADER.size or header[:4] != b"PK\3\4":
        raise Damaged("an entry of the archive is not where it should be")
    start = entry.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))
    if start + entry.file_size > size:
        raise Damaged("an entry of the archive ends beyond the file")
    return Block(path, start, entry.file_size, checksum=entry.CRC)


def _read_legacy(path: Path, file: _BoundedReader, size: int) -> Any:
    file.seek(0)
    stream = io.BytesIO(file.read())
    head = TorchPickle(stream)
    if head.load() != MAGIC:
        raise UserError(
            f"{path}: a pickle that torch.save did not write; load it where it was written, and torch.save its weights"
        )
    if head.load() != PROTOCOL:
        raise Damaged("an unknown protocol")
    head.load()  # About the machine; the storages are little-endian in any case.
    pickle = TorchPickle(stream)
    saved, keys = pickle.load(), head.load()
    item_sizes = {storage.key: item_size(storage.dtype) for storage in pickle.storages}
    blocks, start = {}, stream.tell()
    for key in keys if type(keys) is list else [None]:
        file.seek(start)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if type(key) is not str or key not in item_sizes or count < 0:
            raise Damaged("its storages do not match its tensors")
        blocks[key] = Block(path, start + 8, count * item_sizes[key])
        start += 8 + blocks[key].size
        if start > size:
            raise Damaged("it ends within a storage")
    pickle.place(blocks, file_size=size)
    return saved
