"""Turned files: images and masks are read as a viewer displays them, in every format that can say so."""

import json

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.data import images
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.sets.prepared import open_prepared
from deeplab_jax.data.source import Pair, PairSource
from deeplab_jax.data.stored import turned
from deeplab_jax.labels import LabelSet

# What a viewer displays for the stored rows "ab", "cd", "ef" (EXIF 2.32, figure 11).
DISPLAYED = {
    1: ["ab", "cd", "ef"],
    2: ["ba", "dc", "fe"],
    3: ["fe", "dc", "ba"],
    4: ["ef", "cd", "ab"],
    5: ["ace", "bdf"],
    6: ["eca", "fdb"],
    7: ["fdb", "eca"],
    8: ["bdf", "ace"],
}
STORED = np.array([list("ab"), list("cd"), list("ef")])
OPTIONS = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "png": {}, "tif": {}}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize("orientation", DISPLAYED)
def test_by_hand(orientation):
    assert ["".join(row) for row in turned(STORED, orientation)] == DISPLAYED[orientation]


def blocks() -> np.ndarray:
    """24 x 16 pixels: each letter of `STORED` is a block of 8 x 8, the size of JPEG's, in a grey of its own."""
    return np.kron((np.vectorize(ord)(STORED) - ord("a")) * 40, np.ones((8, 8))).astype(np.uint8)


@pytest.mark.parametrize("suffix", OPTIONS)
@pytest.mark.parametrize("orientation", DISPLAYED)
def test_images_and_masks(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    stored = blocks()
    rgb = np.stack([stored, 255 - stored, stored // 2], -1)
    Image.fromarray(rgb).save(path, exif=exif(orientation), **OPTIONS[suffix])
    expected = turned(rgb, orientation).astype(int)
    read = images.read_image(path)
    assert read.shape == expected.shape and np.abs(read - expected).max() <= (3 if suffix == "jpg" else 0)
    assert images.is_plain_rgb(path.read_bytes()) == (suffix in ("jpg", "png") and orientation == 1)
    if suffix in ("png", "tif"):
        Image.fromarray(stored).save(path, exif=exif(orientation))
        np.testing.assert_array_equal(images.read_mask(path), turned(stored, orientation))
    if suffix == "jpg":  # The slow path, too: a file that OpenCV would read wrongly.
        Image.fromarray(rgb).convert("CMYK").save(path, exif=exif(orientation))
        assert images.read_image(path).shape == expected.shape


def test_bad_metadata_turns_nothing(tmp_path):
    Image.fromarray(blocks()).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")
    assert images.read_image(tmp_path / "a.jpg").shape == (24, 16, 3)
    Image.fromarray(blocks()).save(tmp_path / "b.png", exif=exif(9))
    assert images.read_mask(tmp_path / "b.png").shape == (24, 16)


@pytest.fixture
def folder(tmp_path):
    """Three photographs that are stored lying on their side, with masks that are stored as displayed."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(3):
        shown = np.kron(np.array([[0, 1], [0, 0], [1, 1]]), np.ones((8, 8))).astype(np.uint8)
        stored = turned(shown * 200, 8)  # 8 undoes 6.
        Image.fromarray(stored).convert("RGB").save(tmp_path / "images" / f"{i}.jpg", exif=exif(6), quality=100)
        Image.fromarray(shown).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def test_check_data_counts_turned_files(folder, capsys):
    own = ("--config", "configs/folder.py", f"--config.data.dir={folder}", "--split=all")
    names = "--config.data.options.class_names=('background','thing')"
    assert (
        main(["check-data", *own, names, "--json", str(folder / "a.json"), "--config.data.options.val_fraction=0.5"])
        == 0
    )
    assert "viewer displays them: 3 images, no masks" in capsys.readouterr().out
    report = json.loads((folder / "a.json").read_text())["all"]
    assert (report["turned_images"], report["turned_masks"]) == (3, 0)


def test_prepared_images_are_as_displayed(folder):
    labels = LabelSet(("background", "thing"), ((0, 0, 0), (9, 9, 9)))
    pairs = tuple(Pair(str(folder / f"images/{i}.jpg"), str(folder / f"masks/{i}.png"), str(i)) for i in range(3))
    source = PairSource("folder", labels, pairs)
    written = open_prepared(prepare({"train": source}, folder / "prepared"), split="train")
    for index in range(3):
        np.testing.assert_array_equal(written[index]["image"], source[index]["image"])
        assert written[index]["image"].shape == (24, 16, 3)
        np.testing.assert_array_equal(written[index]["image"][..., 0] > 100, written[index]["label"] == 1)
