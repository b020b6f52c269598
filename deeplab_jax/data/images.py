"""Reading and writing images and masks.

Photographs of any mode become 8-bit RGB. Masks hold numbers, not colours: they are read as stored. Files in which these
numbers are not safe (JPEG compression, a colour coding) are refused, and the message names the fix. The EXIF
orientation is applied to neither.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.data.image_files import damage, open_encoded, read_bytes
from deeplab_jax.errors import UserError
from deeplab_jax.files import replacing
from deeplab_jax.labels import IGNORE_LABEL

# The loader runs in parallel; OpenCV's own threads would slow it (and do not survive a fork).
cv2.setNumThreads(0)

VOID_COLOUR = (224, 224, 192)
"""Colour of the ignore label in written masks, as in PASCAL VOC."""

_JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"
_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Return an image of any format and mode as RGB.

    Grey, palette, CMYK and alpha modes become RGB (without the alpha channel), 16-bit samples are scaled to 8 bits, and
    of an animation the first frame is taken.

    Returns:
      uint8 `[H, W, 3]`, RGB.

    Raises:
      UserError: the file does not exist, is empty, truncated, larger than `MAX_PIXELS`, or not an image.
    """
    return decode_image(read_bytes(path, "image"), name=os.fspath(path))


def decode_image(data: bytes, *, name: str) -> np.ndarray:
    """Return the result of `read_image` for the bytes of a file; errors call it `name`."""
    try:
        with open_encoded(data) as image:
            # OpenCV reads JPEG three times as fast, but fills the missing part of a truncated file with grey. So it
            # reads only complete files of plain modes.
            if _is_plain_jpeg(image, data):
                with contextlib.suppress(cv2.error):  # It has its own limit.
                    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
                    if decoded is not None:
                        return np.asarray(decoded, np.uint8)
            return _to_rgb(image, name)
    except UserError:
        raise
    except Exception as error:  # Pillow's format readers raise almost every built-in exception on damaged files.
        raise UserError(f"{name}: {damage(data, error)}") from error


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a mask as its stored numbers.

    The indices of a palette image are kept and its colours ignored; a 1-bit image gives 0 and 1.

    Returns:
      uint8, uint16 or int32 `[H, W]`: stored values, not yet class ids (`labels.to_class_ids`).

    Raises:
      UserError: the file does not exist, is empty, truncated, larger than `MAX_PIXELS`, or not an image; it is a JPEG;
        or it holds colours.
    """
    return decode_mask(read_bytes(path, "mask"), name=os.fspath(path))


def decode_mask(data: bytes, *, name: str) -> np.ndarray:
    """Return the result of `read_mask` for the bytes of a file; errors call it `name`."""
    try:
        with open_encoded(data) as image:
            if image.format in ("JPEG", "MPO"):
                raise UserError(
                    f"{name}: a JPEG mask, whose compression changes label values; export the masks again as PNG"
                )
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise UserError(
                    f"{name}: mask of mode {image.mode} holds colours or fractions, not class ids; "
                    "save it as a grey or palette PNG of class ids"
                )
            values = np.asarray(image)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {damage(data, error)}") from error
    if values.dtype == np.int32:
        return values
    return values.astype(np.uint8 if values.dtype in (np.bool_, np.uint8) else np.uint16)


def write_mask(path: str | os.PathLike[str], class_ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> None:
    """Write class ids as an indexed PNG in the colours of `palette`; 255 gets `VOID_COLOUR`.

    If it cannot be written completely, no file appears.

    Args:
      path: the file to write; its folder must exist.
      class_ids: integers `[H, W]`, each in 0 to 255.
      palette: (red, green, blue) of each class id.

    Raises:
      UserError: the file cannot be written.
    """
    _write_bytes(path, encode_mask(class_ids, palette))


def write_image(path: str | os.PathLike[str], rgb: np.ndarray) -> None:
    """Write uint8 `[H, W, 3]` RGB in the format of the suffix (`.png`, `.jpg`).

    If it cannot be written completely, no file appears.

    Raises:
      UserError: the file cannot be written, or the suffix names no image format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise UserError(f"{os.fspath(path)}: '{suffix}' is no image format; write .png or .jpg")
    _write_bytes(path, _encode(_image(rgb), Image.registered_extensions()[suffix]))


def encode_mask(class_ids: np.ndarray, palette: Sequence[tuple[int, int, int]] | None) -> bytes:
    """Return the bytes of the PNG that `write_mask` writes; of a grey PNG with the same values if `palette` is None."""
    if class_ids.ndim != 2 or class_ids.min(initial=0) < 0 or class_ids.max(initial=0) > 255:
        raise ValueError(f"class ids must be [H, W] in 0 to 255, got shape {class_ids.shape}")
    image = Image.fromarray(np.ascontiguousarray(class_ids.astype(np.uint8, copy=False)))
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        colours[IGNORE_LABEL] = VOID_COLOUR
        image.putpalette(colours.tobytes())
    return _encode(image, "PNG")


def encode_image(rgb: np.ndarray) -> bytes:
    """Return the bytes of a PNG with the uint8 `[H, W, 3]` RGB image."""
    return _encode(_image(rgb), "PNG")


def is_plain_rgb(data: bytes) -> bool:
    """Return whether the bytes are a complete JPEG or PNG of mode RGB, which any reader decodes to three channels."""
    with open_encoded(data) as image:
        ends = {"JPEG": _JPEG_END, "PNG": _PNG_END}
        return image.mode == "RGB" and image.format in ends and data.endswith(ends[image.format])


def _image(rgb: np.ndarray) -> Image.Image:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[-1] != 3:
        raise ValueError(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {rgb.shape}")
    return Image.fromarray(np.ascontiguousarray(rgb))


def _encode(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    return buffer.getvalue()


def _is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    return image.format == "JPEG" and image.mode in ("RGB", "L") and data.endswith(_JPEG_END)


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if not image.mode.startswith(("I", "F")):
        return np.array(image.convert("RGB"), np.uint8)
    samples = np.asarray(image)
    if image.mode == "F" or samples.min(initial=0) < 0 or samples.max(initial=0) > 65535:
        raise UserError(
            f"{name}: image of mode {image.mode} with values outside 0 to 65535; save it with 8 or 16 bits per channel"
        )
    # Mode I;16 declares 16 bits. Mode I has 32 bits and declares nothing, so its values decide.
    is_16_bit = image.mode.startswith("I;16") or samples.max(initial=0) > 255
    grey = np.rint(samples / 257.0) if is_16_bit else samples
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def _write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    target = Path(path)
    try:
        with replacing(target) as fresh:
            fresh.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{target}: cannot write ({error.strerror}); check that the folder exists and the disk has room"
        ) from error
