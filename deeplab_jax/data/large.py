"""Images that are read a part at a time, so that a large one is never in memory as a whole.

A TIFF stores tiles, strips or plain rows. A part of the image decodes only those that it touches, through tifffile, the
extra `tiff`. Other formats, and TIFFs that are turned, have colours of a palette or several pages, are decoded whole.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deeplab_jax.data import tiff
from deeplab_jax.data.image_files import MAX_BYTES, damage
from deeplab_jax.data.levels import to_levels
from deeplab_jax.data.stored import Stored, described
from deeplab_jax.errors import UserError

LARGEST_SEGMENT = 2**26
"""Bytes of a tile or strip, decoded. A TIFF with larger ones is decoded whole."""
PLAIN_ROWS = 64
"""Rows that are read at once of a file without compression, which may be a single strip."""
PIXELS_AT_ONCE = 2**22

Segment = tuple[int, int, int]


class LargeImage:
    """An image `[H, W, C]` in a file, with the values that `images.read_image` returns for the whole.

    A slice of rows and columns, without steps, reads that part: `image[top:bottom, left:right]`. The tiles of these
    rows stay in memory until other rows are read. So one thread reads at a time, from top to bottom.

    Args:
      file: its samples.
      stored: what they are.
      channels, value_range: see `read_image`.
      name: of the file, in messages.

    Raises:
      UserError: see `read_image`; also from a slice.
    """

    def __init__(
        self, file: "Segments", stored: Stored, *, channels: Sequence[int], value_range: Sequence[float], name: str
    ) -> None:
        self._file, self._stored, self._name = file, stored, name
        self._channels, self._value_range = tuple(channels), tuple(value_range)
        corner = self._part(slice(0, 1), slice(0, 1))
        self.dtype: np.dtype = corner.dtype
        self.shape: tuple[int, int, int] = (*file.size, corner.shape[2])

    def __getitem__(self, place: slice | tuple[slice, slice]) -> np.ndarray:
        rows, columns = place if isinstance(place, tuple) else (place, slice(None))
        ends = [part.indices(side) for part, side in zip((rows, columns), self.shape, strict=False)]
        if any(step != 1 for _, _, step in ends):
            raise ValueError(f"{place}: a part of a large image has no steps")
        (top, bottom, _), (left, right, _) = ends
        if top >= bottom or left >= right:
            return np.zeros((max(0, bottom - top), max(0, right - left), self.shape[2]), self.dtype)
        return self._part(slice(top, bottom), slice(left, right))

    def _part(self, rows: slice, columns: slice) -> np.ndarray:
        try:
            samples = self._file.read(rows, columns)
        except Exception as error:  # Decoders raise almost every built-in exception on damaged files.
            raise UserError(f"{self._name}: {damage(tiff.SIGNATURES[0], error)}") from error
        part = replace(self._stored, samples=samples)
        return to_levels(part, channels=self._channels, value_range=self._value_range, name=self._name)


Image = np.ndarray | LargeImage


class Segments:
    """The samples of a TIFF's first page, of which any part can be read. The file is open only while it is read.

    Args:
      path: the file.
      page: tifffile's page, of an open file.

    Raises:
      Exception: of many types, if the page cannot be read in parts.
    """

    def __init__(self, path: Path, page: Any) -> None:
        planes, depth, height, width, samples = page.shaped
        self._path, self._decode, self._tables = path, page.decode, page.jpegtables
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        self.size = height, width
        self._planes, self._samples, self.dtype = planes, samples, np.dtype(page.dtype)
        self._plain = np.dtype(page.parent.byteorder + self.dtype.char) if page.is_memmappable else None
        row_bytes = width * samples * self.dtype.itemsize
        self._rows, self._columns = max(1, min(PLAIN_ROWS, LARGEST_SEGMENT // row_bytes)), width
        if self._plain is None:
            self._rows, self._columns = page.chunks[:2]
        self._kept: dict[Segment, np.ndarray] = {}
        ends = [offset + count for offset, count in zip(self._offsets, self._counts, strict=True)]
        if depth != 1 or 0 in self._counts or max(ends) > os.path.getsize(path):
            raise OSError("parts without data")
        if self._rows * self._columns * samples * self.dtype.itemsize > LARGEST_SEGMENT:
            raise OSError("parts that are too large")

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the samples `[h, w, bands]` of some rows and columns, given by their start and stop."""
        found = np.empty(
            (rows.stop - rows.start, columns.stop - columns.start, self._planes * self._samples), self.dtype
        )
        down, across = (
            range(part.start // side, -(-part.stop // side))
            for part, side in ((rows, self._rows), (columns, self._columns))
        )
        self._kept = {at: segment for at, segment in self._kept.items() if at[1] in down}
        wanted = [(plane, row, column) for row in down for column in across for plane in range(self._planes)]
        with self._path.open("rb") as file:
            for at in wanted:
                if at not in self._kept:
                    self._kept[at] = self._load(file, *at)
        for at in wanted:
            plane, top, left = at[0], at[1] * self._rows, at[2] * self._columns
            segment = self._kept[at]
            a, b = max(rows.start, top), min(rows.stop, top + len(segment))
            c, d = max(columns.start, left), min(columns.stop, left + segment.shape[1])
            bands = slice(plane * self._samples, (plane + 1) * self._samples)
            found[a - rows.start : b - rows.start, c - columns.start : d - columns.start, bands] = segment[
                a - top : b - top, c - left : d - left
            ]
        return found

    def _load(self, file: BinaryIO, plane: int, row: int, column: int) -> np.ndarray:
        """Return a segment `[h, w, samples]`, cut to the image."""
        height, width = self.size
        if self._plain is not None:
            count = min(self._rows, height - row * self._rows)
            line = width * self._samples
            file.seek(self._offsets[0] + (plane * height + row * self._rows) * line * self.dtype.itemsize)
            values = np.frombuffer(file.read(count * line * self.dtype.itemsize), self._plain)
            return values.reshape(count, width, self._samples).astype(self.dtype, copy=False)
        index = (plane * -(-height // self._rows) + row) * -(-width // self._columns) + column
        file.seek(self._offsets[index])
        data = file.read(self._counts[index])
        segment, _, (_, rows, columns, samples) = self._decode(data, index, jpegtables=self._tables)
        cut: np.ndarray = segment[0, :rows, :columns]
        if cut.shape != (rows, columns, samples):
            raise OSError(f"a part of shape {cut.shape}")
        return cut


def open_large(
    path: str | os.PathLike[str], *, channels: Sequence[int] = (), value_range: Sequence[float] = ()
) -> LargeImage | None:
    """Return an image that is read a part at a time. Return None where that cannot be done, or the file has a fault:
    `images.read_image` then reads it whole, or says what is wrong. See there for the arguments.

    Raises:
      UserError: bands that would be lost or do not exist, or values that are not finite.
    """
    try:
        if (found := _segments(Path(path))) is None:
            return None
        file, stored = found
        file.read(slice(0, 1), slice(0, 1))  # A codec may be missing, which Pillow has.
    except Exception:
        return None
    if stored.top is None and not value_range:
        return None
    image = LargeImage(file, stored, channels=channels, value_range=value_range, name=os.fspath(path))
    if stored.has_alpha and not channels:
        # An alpha that is not opaque everywhere is an error, whichever part has it.
        for rows in row_parts(image.shape):
            image[rows]
    return image


def _segments(path: Path) -> tuple[Segments, Stored] | None:
    if not path.is_file() or os.path.getsize(path) > MAX_BYTES:
        return None
    with path.open("rb") as file:
        tags = tiff.read_tags(file)
    if tags is None or tags.orientation != 1 or tags.bands != tags.samples:
        return None
    stored = described(tags)
    if tiff.pillow_reads(tags):
        if not tiff.stored_alike(tags):
            return None
        stored = replace(stored, has_alpha=tags.samples == 4)
    with tiff.import_tifffile(str(path)).TiffFile(path) as opened:
        return Segments(path, opened.pages[0]), stored


def row_parts(shape: Sequence[int], *, multiple: int = 1) -> Iterator[slice]:
    """Yield the rows of an array `[H, W, ...]` in parts of about `PIXELS_AT_ONCE` pixels, which begin at multiples of a
    number.
    """
    rows = max(1, PIXELS_AT_ONCE // max(1, shape[1]) // multiple) * multiple
    for top in range(0, shape[0], rows):
        yield slice(top, min(top + rows, shape[0]))
