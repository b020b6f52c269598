"""Images of other than three channels through the real command line: RGBA files hold red, green, blue, infrared."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.config import base, to_plain
from deeplab_jax.data.images import read_image, read_mask
from deeplab_jax.errors import UserError
from deeplab_jax.train.from_config import build_model
from deeplab_jax.weights.folder import load
from tests.support.tiny import tiny_config, tiny_models

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Only the fourth band tells the classes."""
    root = tmp_path_factory.mktemp("bands")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for index in range(12):
        mask = np.repeat(np.repeat(rng.integers(0, 2, (3, 3)), 11, 0), 11, 1).astype(np.uint8)
        image = rng.integers(80, 160, (33, 33, 4)).astype(np.uint8)
        image[..., 3] = np.where(mask, 240, 15)
        Image.fromarray(image, "RGBA").save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


def train(folder, workdir, *flags: str) -> int:
    config = tiny_config(
        **{
            "model.output_stride": 4,
            "model.options": {"norm_momentum": 0.5},
            "data.name": "folder",
            "data.dir": str(folder),
            "data.options": {"class_names": ("other", "plant"), "val_fraction": 0.3},
            "data.scale_range": (1.0, 1.0),
            "data.color_jitter": 0.1,
            "optimizer.learning_rate": 0.3,
            "train.steps": 30,
            "train.batch_size": 4,
            "train.evaluate_every": 30,
            "train.checkpoint_every": 30,
        }
    )
    file = folder / "config.json"
    file.write_text(json.dumps(to_plain(config)))
    return main(["train", f"--config={file}", *flags, "--workdir", str(workdir)])


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run on all four bands."""
    workdir = tmp_path_factory.mktemp("runs") / "four"
    with tiny_models():
        assert train(folder, workdir, "--config.data.channels=(0,1,2,3)") == 0
    return workdir


def miou(folder) -> float:
    return json.loads((folder / "metrics.json").read_text())["miou"]


def test_the_fourth_band_tells_the_classes(run, folder, tmp_path, capsys) -> None:
    assert main(["evaluate", "--model", str(run), "--out", str(tmp_path / "val"), "--save_predictions"]) == 0
    assert miou(tmp_path / "val") > 0.9
    model, _, _ = load(run)
    assert (model.in_channels, model.preprocessing.channels) == (4, (0, 1, 2, 3))
    out = tmp_path / "out"
    assert main(["predict", "--model", str(run), "--out", str(out), str(folder / "images")]) == 0
    truth = read_mask(folder / "masks" / "3.png")
    assert (read_mask(out / "3.png") == truth).mean() > 0.9
    assert read_image(out / "3_overlay.png").shape == (33, 33, 3)
    # Other bands of the same files, in which there is nothing to see.
    assert (
        main(
            [
                "predict",
                "--model",
                str(run),
                "--out",
                str(out),
                "--channels",
                "0,1,2,0",
                str(folder / "images" / "3.png"),
            ]
        )
        == 0
    )
    assert (read_mask(out / "3.png") == truth).mean() < 0.9
    capsys.readouterr()
    assert main(["predict", "--model", str(run), "--out", str(out), "--channels", "0,1", str(folder / "images")]) == 2
    assert "channels=(0, 1): 2 bands for a network of 4 channels" in capsys.readouterr().err
    assert main(["predict", "--model", str(run), "--out", str(out), "--crf", str(folder / "images")]) == 2
    error = capsys.readouterr().err
    assert "crf: it compares the colours of RGB images, and the model takes 4 channels" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_without_it_there_is_nothing_to_learn(folder, tmp_path) -> None:
    assert train(folder, tmp_path / "three", "--config.data.channels=(2,1,0)") == 0
    assert main(["evaluate", "--model", str(tmp_path / "three"), "--out", str(tmp_path / "val")]) == 0
    assert miou(tmp_path / "val") < 0.7


def test_a_value_range_and_one_band(folder, tmp_path) -> None:
    """float32 images, in training, pictures, evaluation and prediction."""
    workdir = tmp_path / "one"
    flags = ("--config.data.channels=(3,)", "--config.data.value_range=(0,300)")
    assert train(folder, workdir, *flags) == 0
    model, _, _ = load(workdir)
    assert model.preprocessing.bands == (3,)
    assert model.preprocessing.stored_range == (0, 300)
    assert main(["evaluate", "--model", str(workdir), "--out", str(tmp_path / "val")]) == 0
    assert miou(tmp_path / "val") > 0.9
    assert len(list((workdir / "pictures").iterdir())) == 1


def test_a_network_of_four_channels_on_rgb_files_is_told(folder, tmp_path, capsys) -> None:
    assert train(folder, tmp_path / "run", "--config.model.options.in_channels=4") == 2
    error = capsys.readouterr().err
    assert "an image of 4 bands" in error
    assert "config.data.channels" in error


def test_bands_of_generated_scenes_are_refused(tmp_path, capsys) -> None:
    flags = ["--config=configs/scenes.py:debug", "--config.data.channels=(0,1,2)"]
    assert main(["train", *flags, "--workdir", str(tmp_path / "run")]) == 2
    assert "data set 'scenes': it does not read bands of image files" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [(9.0, 5.0), (5.0,), (5.0, 5.0)])
def test_a_value_range_that_does_not_rise_is_named_as_it_was_given(ends) -> None:
    config = base()
    config.data.value_range = ends
    with pytest.raises(UserError, match=rf"config\.data\.value_range={re.escape(str(ends))}: give the stored values"):
        build_model(config, num_classes=3)
