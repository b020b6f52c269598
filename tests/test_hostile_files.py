"""Files that are meant to do harm: none of them runs code, writes outside its place, or passes for another."""

import json
import os
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.config import base, to_plain
from deeplab_jax.weights.folder import save
from experiments.outcomes import files as results
from tests.support.layouts import camvid, coco, write_pair
from tests.support.tiny import tiny_model, tiny_models

ROOT = Path(__file__).resolve().parent.parent


# Code.


class Harm:
    """What a pickle of would make the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_pickles_do_not_run(tmp_path: Path, complain) -> None:
    """As foreign weights in each layout, and inside the batch of a post-mortem."""
    import pickle

    harm, sign = pickle.dumps(Harm(tmp_path / "done"), protocol=2), tmp_path / "done"
    (tmp_path / "a.pth").write_bytes(harm)
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("x/data.pkl", harm)
    for name in ("a.pth", "b.pth"):
        assert name in complain("convert", tmp_path / name, "--out", tmp_path / "out")
    np.savez(tmp_path / "batch.npz", image=np.array([Harm(sign)], object), label=np.zeros(1))
    assert "no batch to replay" in complain("replay", tmp_path)
    assert not sign.exists()
    pickle.loads(harm)
    assert sign.exists(), "the check of the check"


def test_archives_write_nothing(tmp_path: Path, complain) -> None:
    """Names that lead outside, and links: no archive is ever unpacked."""
    folder = tmp_path / "in"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.pth", "w") as archive:
        for name in ("../x/data.pkl", "../../outside", "/tmp/outside_of_everything"):
            archive.writestr(name, b"\x80\x02}.")
    with tarfile.open(folder / "b.pth", "w", format=tarfile.USTAR_FORMAT) as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../outside"))
    for name in ("a.pth", "b.pth"):
        assert name in complain("convert", folder / name, "--out", folder / "out")
    assert {file.name for file in tmp_path.rglob("*")} == {"in", "a.pth", "b.pth"}
    assert not Path("/tmp/outside_of_everything").exists()


def test_a_safetensors_file_whose_header_is_huge(tmp_path: Path, complain) -> None:
    for size in (2**63, 2**40, 10**8):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":{"dtype":"F32"}}')
        assert "not a readable safetensors file" in complain(
            "convert", tmp_path / "a.safetensors", "--out", tmp_path / "o"
        )


def test_a_data_set_cannot_have_modules_imported(tmp_path: Path, complain, monkeypatch) -> None:
    """TFDS imports what the features of a prepared folder name."""
    camvid(tmp_path / "data")
    words = ["--config", f"{ROOT}/configs/camvid.py"]
    assert main(["prepare", *words, f"--config.data.dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]) == 0
    (tmp_path / "harm.py").write_text(f"open({str(tmp_path / 'done')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "out" / "features.json"
    text = file.read_text()
    harm = {"type": "harm.Text", "content": {}}
    inner = json.dumps({"name": harm})
    whole = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    hostile = (
        named := text.replace("tensorflow_datasets.core.features.text_feature.Text", "harm.Text"),
        named.replace("pythonClassName", "python_class_name"),
        json.dumps(harm),
        json.dumps(json.loads(text) | harm),
        json.dumps({"type": whole, "content": {"name": harm}}),
        json.dumps({"pythonClassName": whole, "jsonFeature": {"json": inner}}),
    )
    words = ["check-data", "--config", f"{ROOT}/configs/camvid.py", "--config.data.name=tfds"]
    for bad in hostile:
        file.write_text(bad)
        line = complain(*words, f"--config.data.dir={tmp_path / 'out'}")
        assert f"{file}: other features than 'prepare' writes" in line
    assert "harm" not in sys.modules
    assert not (tmp_path / "done").exists()


# Configs as JSON.


@pytest.fixture
def written(tmp_path: Path):
    """Write a JSON config on three pairs of files, with changes."""
    for index in range(3):
        write_pair(tmp_path / f"images/{index}.png", tmp_path / f"masks/{index}.png", values=(0, 1))

    def write(**changes) -> Path:
        content = to_plain(base())
        content["data"] |= {"name": "folder", "dir": str(tmp_path), "train_split": "all", "val_split": "all"}
        content["data"]["options"] = {"class_names": ["a", "b"]}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            content[section] = {**content[section], name: value} if name else value
        file = tmp_path / "config.json"
        file.write_text(json.dumps(content))
        return file

    return write


def test_a_json_config_is_a_config(written) -> None:
    file = written()
    assert main(["check-data", "--config", str(file)]) == 0
    assert main(["check-data", f"--config={file}", "--config.data.crop_size=(65,65)", "--config.data.flip=false"]) == 0


def test_names_that_no_encoding_holds_are_printed_all_the_same(written, capsys) -> None:
    file = written()
    (file.parent / "images/0.png").rename(file.parent / "images/\udcff.png")
    assert main(["check-data", "--config", str(file)]) == 2
    assert "no mask is called '\\udcff'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("config.json", "", "not a readable configuration"),
        ("config.JSON", "", "not a readable configuration"),
        ("a:config.json", "", "not a readable configuration"),
        ("config.json", ":debug", "is JSON, which takes no argument ':debug'"),
        ("config.Json", ":", "is JSON, which takes no argument ':'"),
        ("config.json", ":x.py", "is JSON, which takes no argument ':x.py'"),
        ("config.json", ":x.json", "is JSON, which takes no argument ':x.json'"),
        ("config.json.old", "", "neither Python nor JSON"),
    ],
)
def test_a_json_config_runs_nothing(tmp_path: Path, complain, name, arg, message) -> None:
    """Whatever its name is written like, and what follows it; the file is sound Python."""
    file, done = tmp_path / name, tmp_path / "done"
    file.write_text(f"__import__('os').mkdir({str(done)!r})")
    assert message in complain("check-data", "--config", f"{file}{arg}")
    (tmp_path / "sound.py").write_text("def get_config(arg):\n    return 3\n")
    words = [f"--config={tmp_path}/sound.py", f"--config={file}{arg}"]
    for both in (words, words[::-1]):
        assert "--config is given 2 times" in complain("check-data", *both)
    assert not done.exists()
    exec(compile(file.read_text(), name, "exec"))
    assert done.exists(), "the check of the check"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__stepz": 3}, "there is no key 'train.stepz': did you mean steps"),
        ({"train__steps": "3"}, "train.steps is '3'; give a whole number"),
        ({"train__steps": True}, "train.steps is True; give a whole number"),
        ({"train__steps": 2**40}, "config.train.steps is out of range"),
        ({"train": 3}, "train is 3; give an object"),
        ({"data__options": {"split": "val"}}, "'split' is no option, because config.data.train_split and"),
        ({"model__options": {"channels": 4}}, "config.data.channels chooses the bands of images; leave it out"),
        ({"model__options": {"num_classes": 2}}, "'num_classes' is no option"),
        ({"data__scale_range": [1.0]}, "config.data.scale_range has 1 values; give 2"),
        ({"data__scale_step": 1e-320}, "config.data.scale_step is out of range"),
        ({"data__dir": "x" * 5000}, "no such folder"),
        ({"data__flip": 1}, "data.flip is 1; give a true or false"),
        ({"data__crop_size": [65, "x"]}, "config.data.crop_size=(65, 'x'): give a list; each item is"),
        ({"optimizer__multipliers": [["a"]]}, "each item is a text and a number"),
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate=nan: give a finite number"),
        ({"data__options": {"class_names": [1, 2]}}, "class_names is (1, 2); give 1 to"),
        ({"data__options": {"class_names": ["a"], "images": 3}}, "an option has a value of the wrong type"),
        ({"data__dir": "\x00"}, "folder"),
        ({"data__dir": "\ud800"}, "surrogates not allowed"),
        ({"data__options": {"class_names": ["a", "b"], "ignore_label": -1}}, "value_map sends -1"),
        ({"data__options": {"a.b": 1}}, "does not accept dots"),
    ],
)
def test_values_of_a_json_config_are_checked(written, complain, changes, message) -> None:
    assert message in complain("check-data", "--config", written(**changes))


# Model folders and results.


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"palette": [[0, 0, 0], 0.5]}, "palette is"),
        ({"palette": [[0, 0, 0]]}, "give 2 triples"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "palette is"),
        ({"class_names": ["a", 2]}, "give 2 names"),
    ],
)
def test_what_a_model_folder_says_of_its_classes_is_checked(tmp_path: Path, complain, info, message) -> None:
    with tiny_models():
        model = save(tmp_path / "model", *tiny_model("cascade_tiny", num_classes=2), {})
        content = json.loads((model / "model.json").read_text())
        (model / "model.json").write_text(json.dumps({**content, "info": info}))
        line = complain("summarize", model)
    assert f"{model}/model.json: " in line and message in line


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"training": "../../outside"}, "'training'"),
        ({"evaluation": "/tmp"}, "'evaluation'"),
        ({"seeds": [{"seed": "0"}]}, "'seeds'"),
        ({"config": {"train": {"steps": 0, "batch_size": 1}}}, "'config'"),
        ({"pretraining": {"name": "../../outside", "seconds": 1.0}}, "'pretraining'"),
    ],
)
def test_results_name_no_files_outside_and_hold_numbers(tmp_path: Path, changes, word) -> None:

    good = {
        "seeds": [{"seed": 0, "commits": ["c"], "seconds": {"training": 1.0, "evaluation": 1.0}}],
        "training": "0123456789ab",
        "evaluation": "0123456789ab",
        "config": {"train": {"steps": 1, "batch_size": 1}, "model": {"name": "a", "output_stride": 16}},
    }
    file = tmp_path / "row.json"
    file.write_text(json.dumps(good))
    assert results.read_json(file, needs=tuple(good)) == good
    file.write_text(json.dumps({**good, **changes}))
    with pytest.raises(results.Unreadable, match=f"its {word} is"):
        results.read_json(file, needs=tuple(good))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", {"height": 2**31}, "pixels; DEEPLAB_JAX_MAX_PIXELS sets more"),
        ("images", {"height": 40.0}, "has no size in pixels"),
        ("annotations", {"segmentation": [[0, 0, float("inf"), 0, 9, 9]]}, "an outline far from any image"),
        ("annotations", {"segmentation": [[0, 0, 9, 9, 0, 90000, 9, 0, 0, 90000]]}, "an outline of over 100000 pixels"),
        ("annotations", {"segmentation": {"counts": "o" * 30 + "0"}}, "not COCO instance annotations"),
    ],
)
def test_annotations_of_coco_are_checked(tmp_path: Path, complain, part, change, message) -> None:
    coco(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content[part][0] |= change
    file.write_text(json.dumps(content))
    words = ["check-data", "--config", f"{ROOT}/configs/coco.py", f"--config.data.dir={tmp_path}", "--split=val"]
    assert message in complain(*words)
