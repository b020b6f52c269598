"""What may be opened as an image: the formats, and the largest size.

A small file may claim any size. A file that claims more than `MAX_PIXELS` is refused before memory is taken for it. The
environment variable `DEEPLAB_JAX_MAX_PIXELS` sets another limit.
"""

import io
import logging
import os
import re
import stat
import warnings
from pathlib import Path

from PIL import Image, ImageFile, PngImagePlugin

from deeplab_jax.errors import UserError, in_one_line

LIMIT = "DEEPLAB_JAX_MAX_PIXELS"
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "SUN", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
"""The formats that Pillow may read. Others are left out, such as EPS, for which it would start Ghostscript."""
IMAGE_SUFFIXES = tuple(sorted(end for end, form in Image.registered_extensions().items() if form in FORMATS))
"""The suffixes of these formats, in lower case. A file with another suffix is read only if it is named itself."""


def _max_pixels(text: str | None) -> int:
    """Return the limit that the environment sets, or 178,956,970, above which Pillow itself refuses images."""
    if text is None:
        return 178_956_970
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise UserError(f"{LIMIT}={text!r}: give a number of pixels from 1 to {2**31 - 1}, or unset it")
    return int(text)


MAX_PIXELS = _max_pixels(os.environ.get(LIMIT))
"""Images and masks with more pixels are refused."""
MAX_BYTES = 16 * MAX_PIXELS
"""Larger files are refused; four channels of 32 bits need no more."""

REPLACE = "replace the file or remove it from the data set"

# A PNG may hold this much text, or a colour profile of this size, once it is unpacked. Pillow's own limit is 1 MiB, and
# those of scanners and Photoshop are larger.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**26

# Above this number of pixels Pillow only warns, unless warnings are errors, as its documentation recommends. Its other
# warnings (of damaged metadata, for example) change no pixel.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.simplefilter("error", Image.DecompressionBombWarning)


def open_encoded(data: bytes) -> ImageFile.ImageFile:
    """Return an image that is opened but not decoded yet: one of `FORMATS`, of at most `MAX_PIXELS`.

    Raises:
      Exception: of almost every built-in type on damaged data, and Pillow's own.
    """
    if (pixels := webp_pixels(data)) > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{pixels} pixels")
    return Image.open(io.BytesIO(data), formats=FORMATS)


def webp_pixels(data: bytes) -> int:
    """Return the number of pixels that the header of a WebP file claims (RFC 9649, sec. 2.5 to 2.7); 0 for other files.

    Pillow looks at the size only after libwebp has taken the memory for it.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0
    if data[12:16] == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (int.from_bytes(data[26:28], "little") & 0x3FFF) * (int.from_bytes(data[28:30], "little") & 0x3FFF)


def read_bytes(path: str | os.PathLike[str], kind: str) -> bytes:
    """Return the bytes of a file; errors call it a `kind`, "image" or "mask".

    Raises:
      UserError: it does not exist, cannot be read, is not a regular file (which may have no end), or exceeds
        `MAX_BYTES`.
    """
    name = os.fspath(path)
    try:
        status = os.stat(path)
        is_regular, size = stat.S_ISREG(status.st_mode), status.st_size
        data = Path(path).read_bytes() if is_regular and size <= MAX_BYTES else b""
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such {kind}; check the path, or the list that names it") from error
    except (OSError, ValueError) as error:  # A name with a zero byte is a ValueError.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{name}: cannot read the {kind} ({reason}); check that it is a readable file") from error
    if not is_regular:
        raise UserError(f"{name}: cannot read the {kind} (not a regular file); give an image file")
    if size > MAX_BYTES:
        raise UserError(
            f"{name}: a file of {size} bytes, and {MAX_BYTES} are the limit; if it is intact, set {LIMIT} to "
            f"{size // 16 + 1} or more, otherwise remove it"
        )
    return data


def damage(data: bytes, error: Exception) -> str:
    """Return the fault of a file on which Pillow failed, and the fix."""
    if not data:
        return f"empty file (zero bytes); {REPLACE}"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image that can be read ({', '.join(FORMATS)} are); {REPLACE}"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        claimed = re.search(r"\d+", str(error))
        return (
            f"image of {claimed[0] if claimed else 'too many'} pixels, and {MAX_PIXELS} are the limit; if the file is "
            f"intact, set {LIMIT} to more, otherwise remove it"
        )
    if isinstance(error, MemoryError):  # Also where a damaged file claims more than it holds.
        return f"out of memory while it is read; give a smaller image, or, if it is small, {REPLACE}"
    return f"truncated or damaged image ({in_one_line(error)}); {REPLACE}"
