"""The images of a calibration: evenly spread, of one size, and read as the model reads them."""

from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.data.images import write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import int8_images as module
from deeplab_jax.evaluate.int8_images import int8_images
from deeplab_jax.models.catalog import create_model


def folder_of(path: Path, *levels: int) -> Path:
    for index, level in enumerate(levels):
        write_image(path / f"{index}.png", np.full((40, 60, 3), level, np.uint8))
    return path


def test_images_have_one_size_and_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    model = create_model("deeplabv3_mobilenet_v2")
    images = int8_images(folder_of(tmp_path, 0, 10, 20, 30, 40), size=(33, 49), model=model)
    assert [image.shape for image in images] == [(33, 49, 3)] * 3
    assert [image.dtype for image in images] == [np.float32] * 3
    assert [float(image.mean()) for image in images] == [0, 20, 40]


def test_a_network_of_one_channel_keeps_its_axis(tmp_path: Path) -> None:
    model = create_model("deeplabv3_mobilenet_v2", in_channels=1)
    (image,) = int8_images(folder_of(tmp_path, 7), size=(33, 33), model=model)
    assert image.shape == (33, 33, 1)
    np.testing.assert_allclose(image, 7, rtol=1e-6)


def test_more_than_four_bands_are_scaled(tmp_path: Path) -> None:
    """OpenCV averages areas of at most four channels."""
    tifffile = pytest.importorskip("tifffile")
    bands = np.broadcast_to(np.arange(5, dtype=np.uint8) * 10, (60, 90, 5))
    tifffile.imwrite(
        tmp_path / "five.tif", np.ascontiguousarray(bands), photometric="minisblack", planarconfig="contig"
    )
    model = create_model("deeplabv3_mobilenet_v2", in_channels=5, channels=(0, 1, 2, 3, 4))
    (image,) = int8_images(tmp_path, size=(33, 49), model=model)
    np.testing.assert_allclose(image, np.broadcast_to(np.arange(5) * 10.0, (33, 49, 5)), atol=1e-4)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in this folder"):
        int8_images(tmp_path, size=(33, 33), model=create_model("deeplabv3_mobilenet_v2"))
