"""Files that claim, or are, more than memory or patience holds: a line before either is spent."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.image_files import FORMATS, MAX_PIXELS, webp_pixels
from deeplab_jax.data.images import read_image
from deeplab_jax.errors import UserError
from deeplab_jax.files import DEEPEST, parse_json, read_json
from deeplab_jax.weights.folder import save
from tests.support.layouts import voc
from tests.support.params import first_fast
from tests.support.tiny import tiny_model, tiny_models

ROOT = Path(__file__).resolve().parent.parent


def png(width: int, height: int) -> bytes:
    """A grey PNG of a few bytes that claims a size, all of it zeros as far as it goes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame + b"\x02\x02D\x01\x00;"


def tiff(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 1)]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def ppm(width: int, height: int) -> bytes:
    return b"P6 %d %d 255\n" % (width, height)


SMALL, LARGE = (61, 37), (60_000, 60_000)


def claiming(name: str, fields: str, *, claim: tuple[int, int] = LARGE, less: int = 0) -> bytes:
    """A small picture as Pillow or OpenCV writes it, whose header claims another size wherever it names one.

    Args:
      name: a format of Pillow, or a suffix of OpenCV.
      fields: how `struct` packs width and height, or height and width.
      claim: the width and height to claim.
      less: what the header subtracts from both.
    """
    picture = np.zeros((*SMALL[::-1], 3), np.uint8)
    if name.startswith("."):
        data = cv2.imencode(name, picture)[1].tobytes()
    else:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, name)
        data = buffer.getvalue()
    for order in (1, -1):
        small, large = ([side - less for side in size[::order]] for size in (SMALL, claim))
        data = data.replace(struct.pack(fields, *small), struct.pack(fields, *large))
    return data


def ico(width: int, height: int) -> bytes:
    """An icon whose entry is a bitmap that claims a size, of which half the rows are its mask."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 40, 22) + bmp(width, height)[14:]


BOMBS = {
    "AVIF": claiming("AVIF", ">II", claim=(16_000, 16_000)),  # Its library refuses sides above that by itself.
    "BMP": bmp(*LARGE),
    "DIB": claiming("DIB", "<II"),
    "GIF": gif(*LARGE),
    "ICO": ico(*LARGE),
    "JPEG": claiming("JPEG", ">HH"),
    "JPEG2000": claiming("JPEG2000", ">II"),
    "PCX": claiming("PCX", "<HH", less=1),
    "PNG": png(*LARGE),
    "PPM": ppm(*LARGE),
    "QOI": claiming("QOI", ">II"),
    "SGI": claiming("SGI", ">HH"),
    "SUN": claiming(".ras", ">II"),
    "TGA": claiming("TGA", "<HH"),
    "TIFF": tiff(*LARGE),
    "WEBP": claiming("WEBP", "<HH", claim=(16_383, 16_383)),  # It has 14 bits.
}
PIXELS = {kind: LARGE[0] * LARGE[1] for kind in BOMBS} | {"AVIF": 16_000**2, "WEBP": 16_383**2}
READ = """
import json, sys
from deeplab_jax.data.images import read_image, read_mask
from deeplab_jax.errors import UserError
from tests.support.memory import reset_peak, status
for file in sys.argv[1:]:
    before, lines = reset_peak(), []
    for read in (read_image, read_mask):
        try:
            read(file)
        except UserError as error:
            lines.append(str(error))
    print(json.dumps([lines, status('VmHWM') - before]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, tuple[str, list[str], int]]:
    """Of every bomb the file, what reading it as an image and as a mask says, and the bytes that this takes."""
    folder = tmp_path_factory.mktemp("bombs")
    files = {kind: str(folder / f"{kind}.png") for kind in BOMBS}
    for kind, file in files.items():
        Path(file).write_bytes(BOMBS[kind])
    words = [sys.executable, "-c", READ, *files.values()]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert done.stderr == ""
    answers = map(json.loads, done.stdout.splitlines())
    return {kind: (file, *answer) for (kind, file), answer in zip(files.items(), answers, strict=True)}


@pytest.mark.parametrize("kind", FORMATS)
def test_decompression_bombs_end_before_memory_is_taken(refusals, kind: str) -> None:
    """A file of some bytes or kilobytes in each format that may be opened."""
    file, lines, growth = refusals[kind]
    assert len(BOMBS[kind]) < 8000 and len(lines) == 2
    for line in lines:
        assert line.startswith(f"{file}: image of {PIXELS[kind]} pixels, and {MAX_PIXELS} are the limit"), line
        assert "set DEEPLAB_JAX_MAX_PIXELS to more" in line
    assert growth < 64 * 2**20


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif"}], ids=["VP8", "VP8L", "VP8X"])
def test_a_webp_file_says_its_pixels_before_it_is_opened(options) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((37, 61, 3), np.uint8)).save(buffer, "WEBP", **options)
    assert webp_pixels(buffer.getvalue()) == 37 * 61
    assert webp_pixels(png(61, 37)) == webp_pixels(buffer.getvalue()[:29]) == 0


@pytest.mark.parametrize(("limit", "code"), first_fast([("1154", 2), ("many", 2), ("1155", 0), ("0", 2)], fast=2))
def test_the_limit_of_pixels_is_the_environments(tmp_path: Path, limit: str, code: int) -> None:
    """Of an image that is sound: the limit counts, be it below or above Pillow's."""
    for index in range(2):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(np.indices((33, 35))[1].astype(np.uint8) % 2).save(tmp_path / kind / f"{index}.png")
    words = ["check-data", "--config", "configs/folder.py", f"--config.data.dir={tmp_path}", "--split", "all"]
    words.append("--config.data.options.class_names=('a','b')")
    done = subprocess.run(
        [sys.executable, "-m", "deeplab_jax", *words],
        env={**os.environ, "DEEPLAB_JAX_MAX_PIXELS": limit},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done
    if code and limit.isdigit() and int(limit):
        assert "image of 1155 pixels, and 1154 are the limit" in done.stdout
    elif code:
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"deeplab-jax: DEEPLAB_JAX_MAX_PIXELS={limit!r}: give a number of pixels")


def test_a_picture_that_would_start_another_program_is_no_picture(tmp_path: Path, complain) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    with tiny_models():
        model = save(tmp_path / "model", *tiny_model("cascade_tiny"), {})
        Image.fromarray(np.zeros((33, 33, 3), np.uint8)).save(tmp_path / "a.png", "EPS")
        line = complain("predict", "--model", model, "--out", tmp_path / "out", tmp_path / "a.png")
    assert "a.png: not an image that can be read" in line and "EPS" not in line.split("are)")[0].split("(")[1]


def test_a_very_long_image_needs_a_window(tmp_path: Path, complain) -> None:
    with tiny_models():
        model = save(tmp_path / "model", *tiny_model("cascade_tiny"), {})
        Image.fromarray(np.zeros((1, 2**14 + 1), np.uint8)).save(tmp_path / "a.png")
        line = complain("predict", "--model", model, "--out", tmp_path / "out", tmp_path / "a.png")
    assert "a.png: an image of 16385x1 pixels" in line and "give --window 513,513" in line


# Files that never end, and files that are too large.


def test_pipes_and_devices_are_no_files(tmp_path: Path, complain) -> None:
    voc(tmp_path)
    list_file = tmp_path / "ImageSets/Segmentation/val.txt"
    list_file.unlink()
    os.mkfifo(list_file)
    line = complain("check-data", "--config", f"{ROOT}/configs/voc.py", f"--config.data.dir={tmp_path}", "--split=val")
    assert "val.txt: cannot read the list of the split" in line
    os.mkfifo(tmp_path / "config.json")
    line = complain("check-data", "--config", tmp_path / "config.json")
    assert "config.json" in line

    for name in (tmp_path / "config.json", Path("/dev/zero")):
        with pytest.raises(UserError, match="not a regular file"):
            read_image(name)


def test_json_has_limits(tmp_path: Path) -> None:
    assert parse_json("[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1))
    for text in ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
            parse_json(text)
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert read_json(tmp_path / "a.json", limit=9) == [1, 2, 3]
    with pytest.raises(ValueError, match="9 bytes, and 8 are the limit"):
        read_json(tmp_path / "a.json", limit=8)
