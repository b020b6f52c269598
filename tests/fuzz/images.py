"""Images and masks: every format that Pillow and OpenCV write, read by `check-data` and `predict`."""

import io
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from tests.fuzz.cases import Case, Family
from tests.fuzz.damage import damaged
from tests.fuzz.networks import model_folder

ROOT = Path(__file__).resolve().parents[2]
SIZE = (33, 35)
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr")
WITH_OPENCV = (
    ".png",
    ".jpg",
    ".bmp",
    ".tiff",
    ".webp",
    ".jp2",
    ".ppm",
    ".pgm",
    ".pam",
    ".ras",
    ".hdr",
    ".avif",
    ".gif",
)
PAIRS = 40  # In a folder that `check-data` reads at once.
FEW = 8  # That `predict` reads at once: a network runs on each.


class Seeds(NamedTuple):
    """Files of every format, and a network."""

    files: list[bytes]
    model: Path


def seeds_and_network(folder: Path) -> Seeds:
    """Make what `make_pictures` damages and runs."""
    return Seeds(seeds(folder), model_folder(folder))


def seeds(folder: Path) -> list[bytes]:
    """Make a file of every format and mode that can be written here."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    ids = rng.integers(0, 2, SIZE).astype(np.uint8)
    files = []
    Image.init()
    for name in sorted(Image.SAVE):
        if name in ("PDF", "MPO"):
            continue
        for mode in MODES:
            picture = Image.fromarray(ids * 255 if mode in ("1", "L", "P", "I;16", "I", "F") else colours)
            files += _written(picture.convert(mode), name)
    grey = Image.fromarray(ids)
    files += _written(grey, "PNG") + _written(grey, "GIF") + _written(grey, "BMP")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd", "lzma"):
        files += _written(grey.convert("1" if compression == "group4" else "L"), "TIFF", compression=compression)
    frames = [Image.fromarray(colours), Image.fromarray(colours[::-1].copy())]
    for name in ("GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"):
        files += _written(frames[0], name, save_all=True, append_images=frames[1:])
    files += _written(frames[0], "JPEG", progressive=True) + _written(frames[0], "PNG", interlace=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    files += _written(frames[0], "JPEG", exif=exif) + _written(frames[0], "PNG", exif=exif)
    for suffix in WITH_OPENCV:
        for picture in (colours, ids, ids.astype(np.uint16) * 300, colours.astype(np.float32)):
            try:
                found, encoded = cv2.imencode(suffix, picture)
            except cv2.error:
                continue
            files += [encoded.tobytes()] if found else []
    return [file for file in files if file]


def _written(picture: Image.Image, name: str, **options: object) -> list[bytes]:
    """Return the file, or nothing where the format has no such mode."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):
            picture.save(buffer, name, **options)
    except Exception:  # Plug-ins raise anything for what they lack.
        return []
    return [buffer.getvalue()]


def make_pairs(seeds: list[bytes], folder: Path, rng: random.Random) -> Case:
    """Damage the images and masks of a data set."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
        for index in range(PAIRS):
            (folder / kind / f"{index}.png").write_bytes(damaged(rng.choice(seeds), rng))
    words = ["check-data", f"--config={ROOT}/configs/folder.py", f"--config.data.dir={folder}", "--split=all"]
    return Case([*words, "--config.data.options.class_names=('a','b')"], 2 * PAIRS)


def make_pictures(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage images that a network segments."""
    for index in range(FEW):
        (folder / f"{index}.png").write_bytes(damaged(rng.choice(seeds.files), rng))
    return Case(["predict", f"--model={seeds.model}", f"--out={folder / 'out'}", str(folder)], FEW)


FAMILIES = {
    "pairs": Family(seeds, make_pairs, 60),
    "pictures": Family(seeds_and_network, make_pictures, 3, alone=False),
}
