"""Networks with sigmoids as a user trains them: from a folder of images and masks to metrics and predictions."""

import json
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.data.images import read_mask, write_image, write_mask
from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.weights.folder import load
from tests.support.tiny import read_metrics

TINY = """
from tests.support.tiny import tiny_config


def get_config(arg=None):
    config = tiny_config(**{"data.options": {}})
    config.data.name = "folder"
    config.data.options = {"val_fraction": 0.3, "class_names": ()}
    return config
"""
ONE_LOGIT = "--config.model.options.activation=sigmoid"


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scenes whose masks say 255 where something lies or stands on the ground, and a config."""
    root = tmp_path_factory.mktemp("binary")
    scenes = Scenes("train", size=(33, 33), count=10)
    for sub in ("images", "masks"):
        (root / sub).mkdir()
    for index in range(len(scenes)):
        example = scenes[index]
        write_image(root / "images" / f"{index}.png", example["image"])
        write_mask(root / "masks" / f"{index}.png", np.where(example["label"] % 2, 255, 0).astype(np.uint8), None)
    (root / "config.py").write_text(TINY)
    return root


def words_of(folder, *more):
    names = "--config.data.options.class_names=('ground','object')"
    values = "--config.data.options.value_map=((0,0),(255,1))"
    return ["--config", folder / "config.py", f"--config.data.dir={folder}", names, values, *more]


def test_one_logit_from_training_to_export(folder, tiny_networks, tmp_path, capsys) -> None:
    words = words_of(folder, ONE_LOGIT, "--config.train.class_weights=(1,3)")
    assert run("train", *words, "--workdir", tmp_path / "run") == 0
    model, variables, info = load(tmp_path / "run")
    assert (model.num_classes, model.activation, info["class_names"]) == (1, "sigmoid", ["ground", "object"])

    assert run("evaluate", "--model", tmp_path / "run", "--threshold", 0.4, "--out", tmp_path / "val") == 0
    results = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert results["protocol"]["threshold"] == 0.4 and results["protocol"]["miou_over"] == "both classes"
    assert [row["name"] for row in results["per_class"]] == ["ground", "object"]
    assert [entry["name"] for entry in results["thresholds"]] == ["object"]
    assert "object" in capsys.readouterr().out

    photo = folder / "images" / "0.png"
    words = ["--model", tmp_path / "run", "--mode", "exact", "--threshold", 0.4]
    assert run("predict", *words, "--out", tmp_path / "out", photo) == 0
    expected = segment(
        model, variables, np.asarray(Scenes("train", size=(33, 33), count=10)[0]["image"]), threshold=0.4
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "0.png"), expected)

    words = ["--format", "stablehlo", "--size", "33x33", "--argmax", "--preprocess"]
    assert run("export", "--model", tmp_path / "run", *words, "--out", tmp_path / "run.zip") == 0


def test_the_same_data_train_a_softmax_of_two(folder, tiny_networks, tmp_path, capsys) -> None:
    assert run("train", *words_of(folder, "--config.train.steps=1"), "--workdir", tmp_path / "run") == 0
    assert load(tmp_path / "run")[0].activation == "softmax"
    capsys.readouterr()
    assert run("evaluate", "--model", tmp_path / "run", "--threshold", 0.4, "--out", tmp_path / "val") == 2
    assert "threshold=0.4: the model has a softmax" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "check-data"])
def test_one_class_alone_is_refused_with_a_fix_that_works(folder, tiny_networks, tmp_path, capsys, verb) -> None:
    where = ["--workdir", tmp_path / "run"] if verb == "train" else []
    words = ["--config", folder / "config.py", f"--config.data.dir={folder}", "--config.train.steps=1"]
    assert run(verb, *words, "--config.data.options.class_names=('crack',)", *where) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "one class, and nothing to tell it from" in message
    fixes = [part for part in message.split('"') if part.startswith("--config.")]
    assert len(fixes) == 2
    assert run(verb, *words, *fixes, *where) == 0


def test_classes_that_exclude_each_other_have_no_sigmoids(tiny_networks, tmp_path, capsys) -> None:
    (tmp_path / "config.py").write_text(
        "from tests.support.tiny import tiny_config as get\nget_config = lambda arg=None: get()\n"
    )
    assert run("train", "--config", tmp_path / "config.py", ONE_LOGIT, "--workdir", tmp_path / "run") == 2
    assert "the 9 classes of the data exclude each other; leave it out" in capsys.readouterr().err


LOSS = """
import jax.numpy as jnp
from deeplab_jax.ops.losses import pixel_losses, sum_hardest, valid_pixels
from deeplab_jax.ops.resize import resize_bilinear


def of_classes(logits, labels, *, align_corners, **_):
    assert logits.shape[-1] == 2
    logits = resize_bilinear(logits, labels.shape[1:3], align_corners=align_corners)
    return *sum_hardest(pixel_losses(logits, labels), valid_pixels(labels)), jnp.argmax(logits, -1) == labels


LOSSES = {"of_classes": of_classes}
"""


def test_a_loss_of_the_users_own_sees_one_logit_as_two(folder, tiny_networks, tmp_path) -> None:
    """So a loss that was written for classes trains as the package's own."""
    (tmp_path / "loss.py").write_text(LOSS)
    own = ["--module", tmp_path / "loss.py", "--config.train.loss=of_classes"]
    words = words_of(folder, ONE_LOGIT, "--config.train.steps=2")
    assert run("train", *words, "--workdir", tmp_path / "one") == 0
    assert run("train", *words, *own, "--workdir", tmp_path / "two") == 0
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for line, other in zip(one, two, strict=True):
        assert line == pytest.approx(other, rel=1e-3)


@pytest.fixture(scope="module")
def several(folder) -> Path:
    """The same images with two labels that overlap, and a config."""
    scenes = Scenes("train", size=(33, 33), count=10)
    for name, rule in (("odd", lambda ids: ids % 2 == 1), ("high", lambda ids: ids > 3)):
        (folder / "labels" / name).mkdir(parents=True)
        for index in range(len(scenes)):
            ids = scenes[index]["label"]
            mask = np.where(ids == 255, 255, rule(ids)).astype(np.uint8)
            write_mask(folder / "labels" / name / f"{index}.png", mask, None)
    text = TINY.replace('"folder"', '"multilabel"').replace('"class_names": ()', '"class_names": ("odd", "high")')
    (folder / "several.py").write_text(text.replace('{"val', '{"masks": "labels", "val'))
    return folder


def test_several_labels_from_training_to_export(several, tiny_networks, tmp_path, capsys) -> None:
    data = f"--config.data.dir={several}"
    words = ["--config", several / "several.py", data]
    assert run("check-data", *words) == 0
    assert run("train", *words, "--config.train.class_weights=(1,3)", "--workdir", tmp_path / "run") == 0
    model, variables, info = load(tmp_path / "run")
    assert model.multilabel and model.num_classes == 2 and info["class_names"] == ["odd", "high"]
    assert list((tmp_path / "run" / "pictures").iterdir())

    words = ["evaluate", "--model", tmp_path / "run", "--out", tmp_path / "val", "--save_predictions"]
    assert run(*words) == 0
    results = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert results["protocol"]["miou_over"] == "the presence of each label"
    rows = results["per_class"]
    assert [row["name"] for row in rows] == [entry["name"] for entry in results["thresholds"]] == ["odd", "high"]
    known = [row["iou"] for row in rows if row["iou"] is not None]
    assert results["miou"] == pytest.approx(np.mean(known))
    assert np.asarray(results["confusion_matrix"]).shape == (2, 2, 2)
    capsys.readouterr()
    assert run(*words, "--trimap", "2") == 2
    assert "a pixel can have several labels here" in capsys.readouterr().err

    # Predictions are laid out as the data set reads them.
    photo = several / "images" / "0.png"
    assert run("predict", "--model", tmp_path / "run", "--mode", "exact", "--out", tmp_path / "out", photo) == 0
    expected = segment(model, variables, np.asarray(Scenes("train", size=(33, 33), count=10)[0]["image"]))
    for k, name in enumerate(("odd", "high")):
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / name / "0.png"), expected[..., k])
    assert (tmp_path / "out" / "0_overlay.png").is_file()

    words = ["--format", "stablehlo", "--size", "33x33", "--argmax", "--out", tmp_path / "run.zip"]
    assert run("export", "--model", tmp_path / "run", *words) == 0


def test_one_class_a_pixel_and_several_do_not_mix(several, tiny_networks, tmp_path, capsys) -> None:
    words = ["--config", several / "several.py", f"--config.data.dir={several}", "--workdir", tmp_path / "run"]
    assert run("train", *words, "--config.model.options.activation=softmax") == 2
    assert "a pixel of the data can have several labels; give sigmoid, or leave it out" in capsys.readouterr().err
