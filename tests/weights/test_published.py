"""Class names come from sources that are known, and never from the number of classes."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.weights.published import PUBLISHED, known_classes


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("best_deeplabv3plus_mobilenet_voc_os16.pth", VOC),
        ("best_deeplabv3plus_resnet101_cityscapes_os16.pth", CITYSCAPES),
        ("deeplabv3_pascal_train_aug", VOC),
        ("deeplabv3_mnv2_cityscapes_train", CITYSCAPES),
    ],
)
def test_names_that_their_authors_give(tmp_path: Path, name: str, labels) -> None:
    (tmp_path / name).mkdir()
    for path in (tmp_path / name, tmp_path / name / "model.ckpt"):
        assert known_classes(path, labels.num_classes)["class_names"] == list(labels.names)
    assert known_classes(tmp_path / name, labels.num_classes + 1) == {}


@pytest.mark.parametrize("name", ["best.pth", "my_voc.pth", "cityscapes", "runs_deeplabv3_pascal_train_aug_mine"])
@pytest.mark.parametrize("count", [19, 21])
def test_other_files_have_none(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / name).write_bytes(b"weights")
    assert known_classes(tmp_path / name, count) == {}


def test_a_published_file_is_known_under_any_name(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(np.arange(9).tobytes())
    entry = PUBLISHED["torchvision/deeplabv3_resnet50_coco"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "torchvision/mine", dataclasses.replace(entry, sha256=digest[:8]))
    assert known_classes(file, 21)["class_names"][15] == "person"
