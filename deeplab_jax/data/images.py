"""Reading and writing images and masks.

`read_image` and `read_mask` read the pixels of a file. `large.open_large` reads part of an image, with the same values
as `read_image`. They return what a viewer displays: the EXIF orientation is applied. Images become levels of 0 to 255,
in colours. Masks hold numbers, not colours: they are read as stored. Files in which these numbers are not safe (JPEG
compression, a colour coding) are refused, and the message names the fix.
"""

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_jax.data.image_files import open_encoded, read_bytes
from deeplab_jax.data.large import row_parts
from deeplab_jax.data.levels import to_levels, viewed, without_opaque_alpha
from deeplab_jax.data.png import write_rows
from deeplab_jax.data.stored import JPEG_END, PNG_END, Stored, decode_stored, orientation
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from deeplab_jax.labels import IGNORE_LABEL

VOID_COLOUR = (224, 224, 192)
"""Colour of the ignore label in written masks, as in PASCAL VOC."""


def read_image(
    path: str | os.PathLike[str], *, channels: Sequence[int] = (), value_range: Sequence[float] = ()
) -> np.ndarray:
    """Return an image of any format and mode, as it is displayed.

    Grey and palette images and those in printing colours become RGB. An alpha channel that is opaque everywhere is left
    out. Files with more bands than that are refused unless `channels` chooses some. The first frame of an animation
    is taken.

    Args:
      path: the file.
      channels: the bands to return, counted from 0; empty: RGB.
      value_range: (low, high), the stored values that become 0 and 255, those beyond them too; empty: 0 and the largest
        value of the file's integers.

    Returns:
      `[H, W, C]`, 0 to 255, C being 3 or the number of `channels`: uint8 for up to 8 bits a sample; float32 with
      fractions, so that all levels are kept, for more bits or with a `value_range`.

    Raises:
      UserError: the file does not exist, is empty, truncated, larger than `MAX_PIXELS`, or not an image; it has other
        bands than `channels`; or a value range has to be stated.
    """
    name = os.fspath(path)
    return decode_image(read_bytes(path, "image"), name=name, channels=channels, value_range=value_range)


def decode_image(
    data: bytes, *, name: str, channels: Sequence[int] = (), value_range: Sequence[float] = ()
) -> np.ndarray:
    """Return the result of `read_image` for the bytes of a file; errors call it `name`."""
    return to_levels(decode_stored(data, name=name), channels=channels, value_range=value_range, name=name)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a mask as its stored numbers, as it is displayed (its EXIF orientation is applied).

    A grey file gives its samples, of 1 to 32 bits, also where 0 is white. The indices of a palette are kept and its
    colours ignored. But if all entries of the palette are different greys, the greys are the numbers: programs that
    make PNGs smaller turn grey images into such files.

    Returns:
      uint8, uint16, int32 or uint32 `[H, W]`: stored values, not yet class ids (`labels.to_class_ids`).

    Raises:
      UserError: the file does not exist, is empty, truncated, larger than `MAX_PIXELS`, or not an image; it is a JPEG;
        it holds colours; or an index has no entry in a palette of greys.
    """
    return mask_values(stored_mask(path), name=os.fspath(path))


def stored_mask(path: str | os.PathLike[str]) -> Stored:
    """Return the samples of a mask file, for `mask_values` or `mask_colours`.

    Raises:
      UserError: the file does not exist, is empty, truncated, larger than `MAX_PIXELS`, or not an image.
    """
    return decode_stored(read_bytes(path, "mask"), name=os.fspath(path))


def holds_colours(stored: Stored) -> bool:
    """Return whether the samples are colours, and neither numbers nor indices of a palette."""
    return stored.palette is None and stored.samples.shape[2] > 1


def mask_colours(stored: Stored, *, name: str) -> np.ndarray:
    """Return a mask as it is displayed: the colours of its pixels, those of a palette image too.

    Returns:
      uint8 `[H, W, 3]` RGB.

    Raises:
      UserError: the file, which errors call `name`, is a JPEG, whose compression changes colours; or it has other bands
        than RGB, alpha that is not opaque, or more than 8 bits.
    """
    _refuse_jpeg(stored, name)
    if stored.palette is not None:  # Its entries are colours of classes, also where they are transparent.
        stored = dataclasses.replace(stored, palette=stored.palette[:, :3])
    shown = viewed(stored)
    samples = without_opaque_alpha(shown)
    if shown.top is None or 255 % shown.top or samples.shape[2] not in (1, 3):
        raise UserError(
            f"{name}: a mask of mode {stored.kind}, where colours of 8 bits are read; save it as RGB PNG without alpha"
        )
    return np.broadcast_to(samples * np.uint8(255 // shown.top), (*samples.shape[:2], 3))


def decode_mask(data: bytes, *, name: str) -> np.ndarray:
    """Return the result of `read_mask` for the bytes of a file; errors call it `name`."""
    return mask_values(decode_stored(data, name=name), name=name)


def mask_values(stored: Stored, *, name: str) -> np.ndarray:
    """Return the result of `read_mask` for the samples of a file; errors call it `name`."""
    _refuse_jpeg(stored, name)
    if stored.samples.shape[2] > 1 or stored.samples.dtype.kind == "f":
        fix = "save it as a grey or palette PNG of class ids"
        if stored.samples.shape[2] == 3:
            fix += (
                ", or (data set 'folder') say with --config.data.options.palette which colour each class has; "
                "check-data names the colours"
            )
        raise UserError(f"{name}: mask of mode {stored.kind} holds colours or fractions, not class ids; {fix}")
    values = np.ascontiguousarray(stored.samples[..., 0])
    greys = grey_palette(stored)
    if greys is None:
        return values
    if (most := values.max(initial=0)) >= len(greys):
        raise UserError(
            f"{name}: index {most}, and a palette of {len(greys)} greys; save it as a grey PNG of class ids"
        )
    return greys[values]


def _refuse_jpeg(stored: Stored, name: str) -> None:
    if stored.is_jpeg:
        raise UserError(f"{name}: a JPEG mask, whose compression changes label values; export the masks again as PNG")


def grey_palette(stored: Stored) -> np.ndarray | None:
    """Return the grey of each entry of a palette, uint8, if all entries are different greys."""
    if stored.palette is None or not len(stored.palette):
        return None
    red, green, blue = stored.palette[:, :3].T
    is_grey = (red == green).all() and (green == blue).all()
    return red if is_grey and len(np.unique(red)) == len(red) else None


def write_mask(
    path: str | os.PathLike[str], class_ids: np.ndarray, palette: Sequence[tuple[int, int, int]] | None
) -> None:
    """Write class ids as an indexed PNG in the colours of `palette`; 255 gets `VOID_COLOUR`.

    If it cannot be written completely, no file appears.

    Args:
      path: the file to write.
      class_ids: integers `[H, W]`, each in 0 to 255.
      palette: (red, green, blue) of each class id; None: the values are shown as greys.

    Raises:
      UserError: the file cannot be written.
    """
    ids = _checked_ids(class_ids)
    colours = None if palette is None else _colours(palette)
    parts = (ids[rows] for rows in row_parts(ids.shape))
    write_whole(Path(path), lambda fresh: write_rows(fresh, parts, size=ids.shape, palette=colours))


def write_image(path: str | os.PathLike[str], rgb: np.ndarray) -> None:
    """Write uint8 `[H, W, 3]` RGB in the format of the suffix (`.png`, `.jpg`).

    If it cannot be written completely, no file appears.

    Raises:
      UserError: the file cannot be written, or the suffix names no image format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise UserError(f"{os.fspath(path)}: '{suffix}' is no image format; write .png or .jpg")
    data = _encode(_image(rgb), Image.registered_extensions()[suffix])
    write_whole(Path(path), lambda fresh: fresh.write_bytes(data))


def encode_grey(values: np.ndarray) -> bytes:
    """Return the bytes of a grey PNG of integers `[H, W]`, each in 0 to 255."""
    return _encode(Image.fromarray(np.ascontiguousarray(_checked_ids(values))), "PNG")


def _checked_ids(class_ids: np.ndarray) -> np.ndarray:
    """Return class ids as uint8."""
    if class_ids.ndim != 2 or class_ids.min(initial=0) < 0 or class_ids.max(initial=0) > 255:
        raise ValueError(f"class ids must be [H, W] in 0 to 255, got shape {class_ids.shape}")
    return class_ids.astype(np.uint8, copy=False)


def _colours(palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return the 256 colours of a written mask, uint8 `[256, 3]`."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE_LABEL] = VOID_COLOUR
    return colours


def encode_image(rgb: np.ndarray) -> bytes:
    """Return the bytes of a PNG with the uint8 `[H, W, 3]` RGB image."""
    return _encode(_image(rgb), "PNG")


def is_plain_rgb(data: bytes) -> bool:
    """Return whether the bytes are a complete JPEG or PNG of mode RGB and 8 bits that is not turned: any reader decodes
    it to the three channels that are displayed.
    """
    with open_encoded(data) as image:
        ends = {"JPEG": JPEG_END, "PNG": PNG_END}
        is_plain = image.mode == "RGB" and image.format in ends and data.endswith(ends[image.format])
        return is_plain and (image.format == "JPEG" or data[24] == 8) and orientation(image) == 1


def _image(rgb: np.ndarray) -> Image.Image:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[-1] != 3:
        raise ValueError(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {rgb.shape}")
    return Image.fromarray(np.ascontiguousarray(rgb))


def _encode(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    return buffer.getvalue()
