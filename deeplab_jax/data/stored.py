"""The samples of an image file as they are stored, turned as the image is displayed.

`read_image` and `read_mask` of `images.py` begin here: an image's samples become levels of 0 to 255, a mask's samples
are its values.
"""

import contextlib
import io
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from deeplab_jax.data import tiff
from deeplab_jax.data.image_files import damage, open_encoded
from deeplab_jax.errors import UserError

# The loader runs in parallel; OpenCV's own threads would slow it (and do not survive a fork).
cv2.setNumThreads(0)

JPEG_END = b"\xff\xd9"
PNG_END = b"IEND\xaeB`\x82"
JPEGS = ("JPEG", "MPO")
_GREY_AND_ALPHA = 4  # A PNG's colour type.


@dataclass(frozen=True)
class Stored:
    """The samples of a file.

    Attributes:
      samples: `[H, W, bands]`, integers or floats: indices if there is a palette, otherwise what the file stores.
      top: the largest value that a sample can have; None where nothing says it: floats, signed and 32-bit integers.
      kind: the mode or the kind of the file, for messages.
      format: name of the format, such as PNG.
      orientation: 1 to 8, as EXIF counts; it has been applied.
      is_jpeg: whether JPEG has compressed the samples, also inside a TIFF.
      has_alpha: whether the last band is alpha.
      white_is_zero: whether a viewer shows 0 as white.
      palette: uint8 `[entries, 3 or 4]`, RGB or RGBA; None without one.
    """

    samples: np.ndarray
    top: int | None
    kind: str
    format: str
    orientation: int = 1
    is_jpeg: bool = False
    has_alpha: bool = False
    white_is_zero: bool = False
    palette: np.ndarray | None = None


def decode_stored(data: bytes, *, name: str) -> Stored:
    """Return the samples in the bytes of a file.

    Raises:
      UserError: empty, truncated or damaged data, more than `MAX_PIXELS`, another format than `FORMATS`, a package that
        is missing, or samples that would lose levels. The message calls the file `name`.
    """
    try:
        tags = tiff.read_tags(io.BytesIO(data))
        if tags is not None and not tiff.pillow_reads(tags):
            return _through_tifffile(data, tags, name)
        try:
            with open_encoded(data) as image:
                return _through_pillow(image, data, name)
        except UnidentifiedImageError:
            if tags is None:
                raise
        return _through_tifffile(data, tags, name)  # A kind of TIFF that Pillow does not know.
    except UserError:
        raise
    except Exception as error:  # The readers of the formats raise almost every built-in exception on damaged files.
        raise UserError(f"{name}: {damage(data, error)}") from error


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 if there is none, or if it cannot be read."""
    with contextlib.suppress(Exception):  # Damaged metadata does not damage the pixels.
        value = image.getexif().get(tiff.ORIENTATION, 1)
        if value in range(1, 9):
            return int(value)
    return 1


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image `[H, W, ...]` as an EXIF orientation displays it (EXIF 2.32, sec. 4.6.4, tag 0x0112)."""
    if orientation > 4:
        stored = stored.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return stored[::rows, ::columns]


def _through_pillow(image: ImageFile.ImageFile, data: bytes, name: str) -> Stored:
    turn = orientation(image)
    mode, form = image.mode, image.format or ""
    tags = getattr(image, "tag_v2", {})
    is_jpeg = form in JPEGS or tags.get(259) in tiff.JPEGS
    stored = Stored(np.empty(0), 255, mode, form, turn, is_jpeg)
    # OpenCV reads JPEG three times as fast, but fills the missing part of a truncated file with grey. So it reads only
    # complete files of plain modes.
    if form == "JPEG" and mode in ("RGB", "L") and data.endswith(JPEG_END):
        flags = cv2.IMREAD_COLOR_RGB if mode == "RGB" else cv2.IMREAD_GRAYSCALE
        decoded = _opencv(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if decoded is not None:
            return replace(stored, samples=_bands(turned(decoded, turn)))
    if form == "PNG" and data[24] == 16 and mode in ("RGB", "RGBA", "LA"):
        image.load()  # OpenCV does not refuse damaged data.
        return _deep_png(data, stored)
    if lost := _lost_bits(image, data):
        raise UserError(
            f"{name}: {form} of {lost} bits a sample, of which 8 would be read; save it as PNG or TIFF of 16 bits"
        )
    if mode == "P":
        return replace(stored, samples=_turn(np.asarray(image), stored), palette=_palette(image))
    shown: Image.Image = image
    if mode in ("PA", "La", "RGBa"):
        shown = image.convert("RGBA")
    elif mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not mode.startswith("I"):
        shown = image.convert("RGB")
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    stored = replace(stored, has_alpha=shown.mode in ("LA", "RGBA"), white_is_zero=tags.get(262) == tiff.WHITE_IS_ZERO)
    bits = _bits(image, data, tags.get(258, (0,))[0])
    unsigned = is_tiff and tags.get(339, (1,))[0] == 1
    limit = _greymap_limit(image)
    samples = np.asarray(shown)
    if limit:
        # Pillow stretches these, rounded; so rounding back is exact.
        samples = np.rint(samples * (limit / (255 if mode == "L" else 65535)))
        stored, samples = replace(stored, top=limit), samples.astype(np.uint8 if limit < 256 else np.uint16)
    elif mode in ("1", "L"):
        samples = samples.astype(np.uint8)
        if stored.white_is_zero:  # Pillow has turned these around.
            samples = (1 if mode == "1" else 255) - samples
        top = 2**bits - 1
        stored, samples = replace(stored, top=top), samples // (255 // top if mode == "L" else 1)  # 2 and 4 bits, too.
    elif mode.startswith("I;16"):
        stored, samples = replace(stored, top=2**bits - 1), samples.astype(np.uint16)
    elif mode in ("I", "F"):
        stored, samples = replace(stored, top=None), samples.view(np.uint32) if unsigned and mode == "I" else samples
    return replace(stored, samples=_turn(samples, stored))


def _through_tifffile(data: bytes, tags: tiff.Tags, name: str) -> Stored:
    samples = tiff.decode(data, tags, name=name)
    return replace(described(tags), samples=turned(samples, tags.orientation))


def described(tags: tiff.Tags) -> Stored:
    """Return what the header of a TIFF says of its samples, without samples."""
    return Stored(
        np.empty(0),
        2 ** max(tags.bits) - 1 if tags.kind == 1 and max(tags.bits) <= 16 else None,
        f"{tags.bands} bands of {max(tags.bits)} bits",
        "TIFF",
        tags.orientation,
        tags.compression in tiff.JPEGS,
        has_alpha=tags.has_alpha,
        white_is_zero=tags.photometric == tiff.WHITE_IS_ZERO and tags.samples == 1,
    )


def _turn(samples: np.ndarray, stored: Stored) -> np.ndarray:
    """Return `[H, W, bands]` as displayed; Pillow has turned TIFFs already."""
    return _bands(samples if stored.format == "TIFF" else turned(samples, stored.orientation))


def _bands(samples: np.ndarray) -> np.ndarray:
    return samples[..., None] if samples.ndim == 2 else samples


def _opencv(data: bytes, flags: int) -> np.ndarray | None:
    with contextlib.suppress(cv2.error):  # It has its own limit.
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None


def _deep_png(data: bytes, stored: Stored) -> Stored:
    """Return the 16 bits of a PNG of several bands, of which Pillow keeps 8."""
    if data[25] == _GREY_AND_ALPHA:
        # OpenCV loses this alpha. The four bytes of a pixel, read as four bands of 8 bits, are the same data.
        header = b"IHDR" + data[16:24] + bytes([8, 6]) + data[26:29]
        with open_encoded(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]) as image:
            decoded = np.ascontiguousarray(image).view(">u2").astype(np.uint16)
    else:
        deep = _opencv(data, cv2.IMREAD_UNCHANGED)
        if deep is None or deep.dtype != np.uint16:
            raise OSError("16 bits cannot be read")
        decoded = deep[..., [2, 1, 0, 3][: len(stored.kind)]]
    samples = turned(decoded, stored.orientation)
    return replace(stored, samples=samples, top=65535, has_alpha=stored.kind != "RGB")


def _bits(image: ImageFile.ImageFile, data: bytes, in_tags: int) -> int:
    """Return the bits of a grey sample as stored; `in_tags` are those that a TIFF names, 0 for other files."""
    if image.mode == "1":
        return 1
    return in_tags or (data[24] if image.format == "PNG" else 16 if image.mode.startswith("I") else 8)


def _greymap_limit(image: ImageFile.ImageFile) -> int:
    """Return the largest value that a grey PPM file names, 0 for other files."""
    if image.format != "PPM" or image.mode not in ("L", "I"):
        return 0
    arguments = image.tile[0].args
    limit = arguments[-1] if isinstance(arguments, tuple) else None
    return limit if isinstance(limit, int) else 65535 if image.mode == "I" else 255


def _lost_bits(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the bits of a sample in a colour image of which Pillow keeps 8; 0 if it keeps all."""
    if image.mode.startswith("I"):
        return 0
    if image.format == "PPM":
        arguments = image.tile[0].args
        limit = arguments[-1] if isinstance(arguments, tuple) else 0
        return limit.bit_length() if isinstance(limit, int) and limit > 255 else 0
    if image.format == "SGI":
        return 16 if data[3] == 2 else 0
    if image.format == "JPEG2000" and (at := data.find(b"\xff\x51")) >= 0:  # SIZ; ITU-T T.800, sec. A.5.1.
        bits = (data[at + 40] & 0x7F) + 1
        return bits if bits > 8 else 0
    return 0


def _palette(image: Image.Image) -> np.ndarray:
    """Return the entries of a palette, RGBA if some of them are transparent."""
    colours = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
    alpha = image.info.get("transparency")
    if alpha is None:
        return colours
    opacity = np.full(len(colours), 255, np.uint8)
    if isinstance(alpha, bytes):
        opacity[: len(alpha)] = np.frombuffer(alpha[: len(colours)], np.uint8)
    elif alpha < len(colours):
        opacity[alpha] = 0
    return np.column_stack([colours, opacity])
