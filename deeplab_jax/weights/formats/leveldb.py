"""Tables of LevelDB, the format of the index of TensorFlow's checkpoints (LevelDB's `doc/table_format.md`)."""

import struct
from collections.abc import Iterator

import google_crc32c

from deeplab_jax.errors import UserError

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER = 48
TRAILER = 5  # At the end of a block: its compression and its checksum.
COMPRESSIONS = {1: "snappy", 2: "zlib"}
# Keys share their first bytes, so a small table could contain enormous ones. This limits the bytes of all keys
# together.
LONGEST_KEYS = 2**26


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in the strictly ascending order of its keys.

    Args:
      data: the whole file.

    Raises:
      ValueError, IndexError, struct.error: the table is damaged.
      UserError: the table is compressed.
    """
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise ValueError("it does not end as one")
    _, at = _handle(data, len(data) - FOOTER)
    handle, _ = _handle(data, at)
    reached, length = 0, 0
    previous: bytes | None = None
    for separator, value in _read_block(data, handle):
        length += len(separator)
        (offset, size), _ = _handle(value, 0)
        if offset < reached:
            raise ValueError("its blocks overlap")
        reached = offset + size
        for key, entry in _read_block(data, (offset, size)):
            length += len(key)
            if length > LONGEST_KEYS or (previous is not None and key <= previous):
                raise ValueError("its keys are not in order, or too long")
            previous = key
            yield key, entry


def _read_block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    offset, size = handle
    if offset + size + TRAILER > len(data) - FOOTER:
        raise ValueError("a block reaches beyond its end")
    block = data[offset : offset + size]
    compression, checksum = struct.unpack_from("<BI", data, offset + size)
    if masked_crc32c(data[offset : offset + size + 1]) != checksum:
        raise ValueError("the checksum of a block is not that of its bytes")
    if compression:
        method = COMPRESSIONS.get(compression, f"method {compression}")
        raise UserError(f"compressed with {method}, which this package does not read; save it uncompressed")
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end = size - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block is too short")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > end or shared + own > LONGEST_KEYS:
            raise ValueError("an entry reaches beyond its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def masked_crc32c(data: bytes) -> int:
    """Return the checksum that both formats store, rotated and offset because the bytes may hold checksums too."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return a block's offset and size, and the position of the number after it."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, stored in groups of 7 with the lowest first, and its end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
