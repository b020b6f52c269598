"""Files that claim, or are, more than memory or patience holds: a line before either is spent."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.__main__ import main
from deeplab_jax.data.encoded import MAX_PIXELS
from deeplab_jax.data.images import read_image
from deeplab_jax.errors import UserError
from deeplab_jax.jsonfile import DEEPEST, parse_json, read_json
from deeplab_jax.weights.folder import save
from tests.layouts import voc
from tests.tiny import tiny_model, tiny_models

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def complain(capsys):
    """Run the command line and return its one line of complaint."""

    def run(*words) -> str:
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


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


BOMBS = {"png": png, "gif": gif, "tiff": tiff, "bmp": bmp, "ppm": ppm}
SEGMENT = """
import resource, sys
from deeplab_jax.data.images import read_image, read_mask
from deeplab_jax.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read in (read_image, read_mask):
    try:
        read(sys.argv[1])
    except UserError as error:
        print(error)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_decompression_bombs_end_before_memory_is_taken(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(BOMBS[kind](60_000, 60_000))
    done = subprocess.run(
        [sys.executable, "-c", SEGMENT, str(file)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    *lines, growth = done.stdout.splitlines()
    for line in lines:
        assert line.startswith(f"{file}: image of 3600000000 pixels, and {MAX_PIXELS} are the limit"), line
        assert "set DEEPLAB_JAX_MAX_PIXELS to more" in line
    assert len(lines) == 2 and done.stderr == ""
    assert int(growth) < 64 * 2**20


@pytest.mark.parametrize(("limit", "code"), [("1154", 2), ("1155", 0), ("many", 2), ("0", 2)])
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
        assert done.stderr.startswith(f"deeplab-jax: DEEPLAB_JAX_MAX_PIXELS={limit!r}: give a number of pixels")


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
        with pytest.raises(UserError, match="no regular file"):
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
