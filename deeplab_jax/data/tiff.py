"""TIFF files beyond what Pillow reads rightly: many bands, planes, 16 bits in several bands, floats.

Pillow reads the usual pictures. It cuts several bands of 16 bits to 8, and drops bands that have no colour. So what it
reads is stated here. The rest goes through tifffile, an optional package: the extra `tiff`.
"""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from deeplab_jax.data.image_files import MAX_BYTES, MAX_PIXELS
from deeplab_jax.errors import optional

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # The last two are BigTIFF's.
MOST_BANDS = 4096
MOST_PAGES = 1024
ORIENTATION = 274  # The tag, in EXIF too.
WHITE_IS_ZERO = 0  # A photometric interpretation.

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NOT_FULL_IMAGE = 1 | 4  # A reduced copy, or a transparency mask.
_GREY, _RGB, _PALETTE, _YCBCR = 1, 2, 3, 6
_JPEG = 7  # The compression.
JPEGS = (6, _JPEG)
"""The compressions that are JPEG; 6 is the form of TIFF 6.0 itself, which few programs write."""
_ALPHA = (1, 2)


class Tags(NamedTuple):
    """What the header says: of the first page, except `pages`.

    Attributes:
      width, height: in pixels, as stored.
      bits: of each sample.
      kind: 1 unsigned, 2 signed, 3 float.
      photometric: 0 white is zero, 1 grey, 2 RGB, 3 palette, and others.
      samples: of each pixel.
      extra: what the samples beyond the colours are; 1 and 2 are alpha.
      pages: number of pages of the size of the first that are no reduced copies.
      orientation: as EXIF counts, 1 to 8.
      compression: 1 is none; TIFF 6.0, section 22 and the supplements.
    """

    width: int
    height: int
    bits: tuple[int, ...]
    kind: int
    photometric: int
    samples: int
    extra: tuple[int, ...]
    pages: int
    orientation: int
    compression: int

    @property
    def bands(self) -> int:
        """The number of bands: samples, or pages of one sample each."""
        return self.samples * self.pages if self.samples == 1 else self.samples

    @property
    def has_alpha(self) -> bool:
        """Whether the last band is alpha."""
        return self.extra[-1:] != () and self.extra[-1] in _ALPHA


def read_tags(file: BinaryIO) -> Tags | None:
    """Return what the header of a TIFF says, of which nothing else is read, or None for other files.

    Raises:
      Exception: of several types on damaged data.
      Image.DecompressionBombError: the file claims more than `MAX_PIXELS`, or `MAX_BYTES` of samples.
    """
    if file.read(4) not in SIGNATURES:
        return None
    pages = _directories(file)
    first = pages[0]
    size = first[256], first[257]
    same = [page for page in pages if not page.get(254, 0) & _NOT_FULL_IMAGE and (page.get(256), page.get(257)) == size]
    turn = first.get(ORIENTATION, 1)
    tags = Tags(
        width=size[0],
        height=size[1],
        bits=_several(first.get(258, 1)),
        kind=_several(first.get(339, _UNSIGNED))[0],
        photometric=first.get(262, _GREY),
        samples=first.get(277, 1),
        extra=_several(first.get(338, ())),
        pages=max(1, len(same)),
        orientation=turn if turn in range(1, 9) else 1,
        compression=first.get(259, 1),
    )
    pixels = tags.width * tags.height
    if pixels > MAX_PIXELS or pixels * tags.bands * max(tags.bits) > 8 * MAX_BYTES:
        raise Image.DecompressionBombError(f"{max(pixels, pixels * tags.bands * max(tags.bits) // 128)} pixels")
    if not 0 < tags.bands <= MOST_BANDS:
        raise OSError(f"{tags.bands} bands")
    return tags


def pillow_reads(tags: Tags) -> bool:
    """Return whether Pillow returns all samples of such a file as they are stored, or the colours of a picture."""
    if tags.pages > 1 and tags.samples == 1:
        return False
    if tags.samples == 1:
        return tags.bits[0] in (1, 2, 4, 8, 16, 32) and not (tags.kind == _SIGNED and tags.bits[0] == 8)
    if set(tags.bits) != {8} or tags.kind != _UNSIGNED:
        return False
    if tags.photometric == _RGB:
        return tags.samples == 3 or (tags.samples == 4 and tags.extra in ((), (2,)))
    # Printing colours and what JPEG makes of a photograph, which Pillow turns into RGB.
    return tags.photometric > _PALETTE and tags.samples == (4 if tags.photometric == 5 else 3)


def stored_alike(tags: Tags) -> bool:
    """Return whether Pillow and tifffile return the same samples of a file that Pillow reads: grey of 8 or 16 bits,
    grey floats, RGB, and RGB that JPEG has coded.
    """
    if tags.samples == 1:
        numbers = (tags.kind, tags.bits[0]) in ((_UNSIGNED, 8), (_UNSIGNED, 16), (_FLOAT, 32))
        return numbers and tags.photometric in (WHITE_IS_ZERO, _GREY)
    return tags.photometric == _RGB or (tags.photometric == _YCBCR and tags.compression == _JPEG)


def import_tifffile(what: str) -> Any:
    """Return the package tifffile, which then no longer writes about damaged tags to stderr.

    Raises:
      UserError: it is not installed; the message says what needs it.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return optional(what, "tifffile", install="tifffile imagecodecs")[0]


def decode(data: bytes, tags: Tags, *, name: str) -> np.ndarray:
    """Return the samples `[H, W, bands]` as stored, through tifffile. The orientation is not applied.

    Raises:
      UserError: tifffile is not installed; the message calls the file `name`.
      Exception: of many types on damaged data.
    """
    tifffile = import_tifffile(f"{name}: a TIFF of {tags.bands} bands of {max(tags.bits)} bits")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [file.pages[0]]
        if tags.bands > tags.samples:
            found = [page for page in file.pages if not page.subfiletype & _NOT_FULL_IMAGE]
            pages = [page for page in found if page.shape == pages[0].shape]
        return np.concatenate([_one_page(page, tags) for page in pages], axis=2)


def _one_page(page: Any, tags: Tags) -> np.ndarray:
    if any(count == 0 for count in page.databytecounts):
        raise OSError("a part without data")
    values = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, 2)
    values = values[..., None] if values.ndim == 2 else values
    if values.shape != (tags.height, tags.width, tags.samples):
        raise OSError(f"samples of shape {values.shape}")
    return values


def first_page(path: Path) -> Mapping[int, Any]:
    """Return the tags of a file's first page by number, whatever it holds; {} for other files and damaged ones."""
    try:
        with path.open("rb") as file:
            if file.read(4) in SIGNATURES:
                return _directories(file, most=1)[0]
    except Exception:  # Pillow raises errors of many types; reading the image has the message.
        pass
    return {}


def _directories(file: BinaryIO, *, most: int = MOST_PAGES) -> list[TiffImagePlugin.ImageFileDirectory_v2]:
    """Return the tags of all pages, at least one."""
    file.seek(0)
    header = file.read(16)
    header = header[: 16 if 43 in header[2:4] else 8]
    at = TiffImagePlugin.ImageFileDirectory_v2(header).next
    pages: dict[int, TiffImagePlugin.ImageFileDirectory_v2] = {}
    while at not in pages and (at or not pages) and len(pages) < most:
        pages[at] = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(at)
        pages[at].load(file)
        at = pages[at].next
    return list(pages.values())


def _several(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
