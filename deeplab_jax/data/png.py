"""PNGs that are written row by row, so that memory does not grow with the image. No library here does that."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_GREY, _PALETTE = 0, 3  # Colour types.


def write_rows(
    path: Path, parts: Iterable[np.ndarray], *, size: tuple[int, ...], palette: np.ndarray | None = None
) -> None:
    """Write a grey or palette PNG of 8 bits, or a grey one of 16 (PNG, third edition, sections 5, 9 and 11).

    Lines are not filtered, which suits class ids.

    Args:
      path: the file.
      parts: the rows from top to bottom, uint8 or uint16 `[h, W]`, as many at a time as one likes, at least one.
      size: (height, width).
      palette: uint8 `[256, 3]`; None: grey.

    Raises:
      OSError: it cannot be written.
    """
    height, width = size
    packer = zlib.compressobj()
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for index, part in enumerate(parts):
            if not index:
                kind = _GREY if palette is None else _PALETTE
                depth = 8 * part.dtype.itemsize
                file.write(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)))
                if palette is not None:
                    file.write(_chunk(b"PLTE", palette.tobytes()))
            stored = np.ascontiguousarray(part, part.dtype.newbyteorder(">")).view(np.uint8).reshape(len(part), -1)
            lines = np.pad(stored, ((0, 0), (1, 0)))  # Each line begins with its filter: none.
            if packed := packer.compress(lines):
                file.write(_chunk(b"IDAT", packed))
        file.write(_chunk(b"IDAT", packer.flush()))
        file.write(_chunk(b"IEND", b""))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
