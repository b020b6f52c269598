"""The protocols at full size: the stand-ins are what the data sets' readers expect, and the whole command runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.images import read_mask
from deeplab_jax.data.sets.voc import SPLITS
from deeplab_jax.labels import CITYSCAPES, IGNORE_LABEL, VOC
from deeplab_jax.train.record import records
from experiments import sbd
from experiments.full_size import __main__ as full_size
from experiments.full_size import stand_ins


def test_the_numbers_of_images_are_the_published_ones() -> None:
    """DeepLabv3, sec. 4: 1464 (train), 1449 (val), 10582 (trainaug); Cityscapes: 2975 and 500."""
    assert (stand_ins.VOC_TRAIN, stand_ins.VOC_VAL, sbd.TRAINAUG) == (1464, 1449, 10_582)
    assert stand_ins.CITIES == {"train": 2975, "val": 500}


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    """VOC and SBD with 0.3% of the images: 4 of train, 4 of val, 27 of SBD beside them."""
    folder = tmp_path_factory.mktemp("voc")
    stand_ins.voc(folder, 0.003)
    return folder


def test_sbd_makes_trainaug_of_voc(voc, capsys) -> None:
    root = voc / "VOCdevkit" / "VOC2012"
    words = ["--sbd", str(voc / "benchmark_RELEASE" / "dataset"), "--voc", str(root)]
    assert sbd.main(words) == 0
    assert "31 images of trainaug (the published archives give 10582)" in capsys.readouterr().out
    counts = {split: len(open_source("voc", split=split, dir=voc)) for split in SPLITS}
    assert counts == {"train": 4, "val": 4, "trainval": 8, "trainaug": 31}
    listed = (root / "ImageSets/Segmentation/trainaug.txt").read_text().split()
    val = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    assert not set(val) & set(listed), "images of val are in SBD too"
    annotated = {path.stem for path in (voc / "benchmark_RELEASE/dataset/cls").iterdir()}
    assert annotated & set(val)
    # VOC's own masks have void strips, those of SBD have none.
    for name in listed[:6]:
        own = (root / "SegmentationClass" / f"{name}.png").exists()
        mask = read_mask(root / "SegmentationClassAug" / f"{name}.png")
        assert (mask == IGNORE_LABEL).any() == own, name
    before = {path.name: path.stat().st_mtime_ns for path in (root / "SegmentationClassAug").iterdir()}
    assert sbd.main(words) == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in (root / "SegmentationClassAug").iterdir()}


def test_a_mask_of_sbd_keeps_its_classes(tmp_path) -> None:
    ids = np.array([[0, 20, 3], [1, 1, 15]], np.uint8)
    savemat(tmp_path / "one.mat", {"GTcls": {"Segmentation": ids, "CategoriesPresent": [[1]]}})
    np.testing.assert_array_equal(sbd.read_sbd(tmp_path / "one.mat"), ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cls/2007_x.mat: it is not there; give --sbd the folder dataset of SBD's archive"),
        (b"no MATLAB", "cls/2007_x.mat: cannot be read"),
        ({"other": 1}, "cls/2007_x.mat: cannot be read"),
        ({"GTcls": {"Segmentation": np.full((2, 2), 21, np.uint8)}}, "it holds no class ids of VOC"),
        ({"GTcls": {"Segmentation": np.full((2, 2), -1, np.int16)}}, "it holds no class ids of VOC"),
        ({"GTcls": {"Segmentation": np.full((2, 2), 0.5)}}, "it holds no class ids of VOC"),
    ],
)
def test_what_sbd_lacks_gets_one_line(tmp_path, capsys, content, message) -> None:
    voc, data = tmp_path / "VOC2012", tmp_path / "dataset"
    for file, names in ((voc / sbd.LISTS / "train.txt", "a"), (voc / sbd.LISTS / "val.txt", "b")):
        sbd.write_lines(file, [names])
    for split in ("train", "val"):
        sbd.write_lines(data / f"{split}.txt", ["2007_x"])
    (voc / "SegmentationClass").mkdir()
    Image.new("P", (3, 3)).save(voc / "SegmentationClass" / "a.png")
    (data / "cls").mkdir()
    if isinstance(content, bytes):
        (data / "cls" / "2007_x.mat").write_bytes(content)
    elif content is not None:
        savemat(data / "cls" / "2007_x.mat", content)
    assert sbd.main(["--sbd", str(data), "--voc", str(voc)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (voc / sbd.LISTS / "trainaug.txt").exists()


def test_stand_ins_have_sizes_and_classes_of_the_data(voc, tmp_path, monkeypatch) -> None:
    first = open_source("voc", split="train", dir=voc)[0]
    sizes = {open_source("voc", split="train", dir=voc)[index]["image"].shape for index in range(4)}
    assert sizes == {(375, 500, 3), (500, 375, 3)}
    assert set(np.unique(first["label"])) <= {*range(VOC.num_classes), IGNORE_LABEL}
    monkeypatch.setattr(stand_ins, "DRAWN", 1)
    stand_ins.cityscapes(tmp_path, 0.001)
    train, val = (open_source("cityscapes", split=split, dir=tmp_path) for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    example = train[0]
    assert example["image"].shape == (1024, 2048, 3)
    present = set(np.unique(example["label"]).tolist())
    assert IGNORE_LABEL in present and present <= {*range(CITYSCAPES.num_classes), IGNORE_LABEL}
    assert len(present) > CITYSCAPES.num_classes // 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vocs"], "'vocs': did you mean voc?"),
        (["voc", "--share", "0"], "a --share above 0"),
        (["voc", "--steps", "3"], "--steps of at least 4"),
        (["voc", "--shaer", "1"], "--shaer is not an option"),
    ],
)
def test_mistakes_get_one_line(capsys, words, message) -> None:
    assert full_size.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


THIN = (
    "--model=deeplabv3plus_resnet18",
    "--config.model.options.width=0.125",
    "--config.data.crop_size=(65,65)",
    "--config.train.batch_size=4",
    "--config.train.devices=1",
    "--accumulate=2",
    "--evaluate=1",
    "--steps=4",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "share", "size"), [("voc", "0.003", (513, 513)), ("cityscapes", "0.001", (1025, 2049))]
)
def test_the_whole_protocol_with_a_thin_network(tmp_path, capfd, name, share, size) -> None:
    words = [name, "--out", str(tmp_path), "--share", share, *THIN]
    assert full_size.main(words) == 0
    out = capfd.readouterr().out
    assert "no errors, no warnings" in out and "killed at step" in out
    run = tmp_path / name / f"run_{share}"
    assert len(json.loads((run / "run.json").read_text())) == 2, "it was started twice"
    assert {record["step"] for record in records(run / "metrics.jsonl")} == {1, 2, 3, 4}
    found = json.loads((run / "os8_views" / "metrics.json").read_text())
    protocol = found["protocol"]
    assert (protocol["output_stride"], protocol["flip"], protocol["images"]) == (8, True, 1)
    assert tuple(protocol["scales"]) == full_size.PROTOCOLS[name].scales
    assert protocol["sizes_run"] == [list(size)] and found["miou"] is not None
    assert full_size.main(words) == 0
    assert "$ python -m deeplab_jax prepare" not in capfd.readouterr().out, "what is prepared is not prepared again"
