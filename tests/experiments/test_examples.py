"""The generated examples of the README: what the files hold, and that they are read as they are meant."""

from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.data.catalog import open_source
from experiments import examples


def test_cracks_are_darker_and_their_masks_are_of_two_values(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert examples.main(["cracks", "--out", str(tmp_path), "--count", "5"]) == 0
    assert "5 images and masks" in capsys.readouterr().out
    options = {"class_names": ("background", "crack"), "value_map": ((0, 0), (255, 1)), "val_fraction": 0.2}
    source = open_source("folder", dir=tmp_path, split="train", **options)
    assert len(source) == 4
    for index in range(4):
        image, label = source[index]["image"], source[index]["label"]
        assert image.shape == (257, 257, 3) and set(np.unique(label)) == {0, 1}
        assert image[label == 0].mean() - image[label == 1].mean() > 25


def test_only_near_infrared_tells_trees_from_roofs(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    assert examples.main(["aerial", "--out", str(tmp_path), "--count", "2"]) == 0
    with rasterio.open(tmp_path / "images" / "tile_01.tif") as file:
        assert (file.count, file.dtypes[0], file.crs.to_epsg()) == (4, "uint16", 32633)
        assert file.bounds.left == 500_000 + 257 / 2 and file.read().max() > 255
    source = open_source("folder", dir=tmp_path, split="all", channels=(0, 1, 2, 3), value_range=(0, 4095))
    example = source[0]
    assert source.labels.names == examples.CLASSES and example["image"].shape == (257, 257, 4)
    of_class = [example["image"][example["label"] == k].mean(axis=0) for k in range(3)]
    assert abs(of_class[1] - of_class[2])[:3].max() < 15 < 100 < of_class[2][3] - of_class[1][3]


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert examples.main(["cracks", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["check-data", "--config", "configs/folder.py", f"--config.data.dir={tmp_path}"]) == 2
