"""The verb `compile`: tables, JSON and picture of a program, and one line for what it cannot do."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from deeplab_jax.cli import main
from deeplab_jax.config import to_plain
from deeplab_jax.train.ahead import Ahead
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = tiny_config(**{"train.devices": 0, "train.batch_size": 8, "evaluate.devices": 1})
    Path("config.json").write_text(json.dumps(to_plain(config)))


def run(*words: object) -> int:
    """Run the verb and return its exit code."""
    try:
        return main(["compile", "--config", "config.json", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_training_as_tables_json_and_picture(tmp_path, capsys) -> None:
    words = ("--batch", 8, "--dtype", "bfloat16", "--output-stride", 8, "--remat", "--out", tmp_path / "out")
    assert run("--target", "cpu", *words) == 0
    report = json.loads((tmp_path / "out" / "compile.json").read_text())
    assert (report["kind"], report["images"], report["devices"]) == ("training", 8, 8)
    assert report["model"]["output_stride"] == 8 and report["model"]["options"]["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "compile.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "training of cascade_tiny, output stride 8, 8 x 33x33, bfloat16, on cpu (8 devices)" in printed
    assert "estimated" not in printed  # Of a CPU there are no estimates.
    cells = {row[0]: row[1] for line in printed.splitlines() if len(row := re.split(r"\s{2,}", line.strip())) == 3}
    assert {kind: cells[kind] for kind in report["memory"]} == {
        kind: f"{size / 2**20:,.1f}" for kind, size in report["memory"].items()
    }
    assert list((tmp_path / "cache" / "deeplab_jax" / "compile").glob("*.json"))


def test_prediction_and_the_largest_batch(tmp_path, capsys, monkeypatch) -> None:
    file = tmp_path / "compile.json"
    assert run("--target", "cpu", "--predict", "33x49", "--out", tmp_path) == 0
    report = json.loads(file.read_text())
    assert (report["kind"], report["images"], report["size"]) == ("prediction", 1, [129, 129])  # As `predict` pads.
    monkeypatch.setattr(
        Ahead, "largest", lambda self: (48, [{"images": 48, "fits": True}, {"images": 49, "fits": False}])
    )
    assert run("--target", "cpu", "--predict", "33x49", "--largest-batch", "--out", tmp_path) == 0
    assert "largest batch that fits: 48 images (tried 48, 49)" in capsys.readouterr().out
    assert json.loads(file.read_text())["largest_batch"] == 48


def test_what_does_not_fit_ends_with_one_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(Ahead, "limit", lambda self: 1000)
    assert run("--target", "cpu", "--predict", "33x33", "--num_classes", 3) == 2
    captured = capsys.readouterr()
    assert "does not fit: " in captured.out
    assert captured.err.splitlines()[-1] == ("deeplab-jax: --target cpu: 1 images do not fit; give a smaller --predict")
    assert run("--target", "cpu", "--num_classes", 3) == 2
    assert capsys.readouterr().err.splitlines()[-1] == ("deeplab-jax: --target cpu: 8 images do not fit; give --remat")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "v5f:2x2"), "--target v5f:2x2: did you mean"),
        (("--target", "v5e:3x3"), "give v5e:1x1, v5e:2x2 or v5e:4x4"),
        (("--target", "cpu", "--batch", 0), "give a whole number of at least 1"),
        (("--target", "cpu", "--batch", 7), "config.train.batch_size=7 does not split"),
        (("--target", "cpu", "--space", 3), "config.train.space=3"),
        (
            ("--target", "cpu", "--evaluate", "--predict", 33),
            "argument --predict: not allowed with argument --evaluate",
        ),
        (("--target", "cpu", "--output_stride", 7), "output_stride=7"),
        (("--target", "cpu", "--evaluate", "--remat"), "--remat: changes the training only; leave it out"),
        (("--target", "cpu", "--predict", 33, "--space", 2), "--space: changes the training only; leave it out"),
        (("--target", "cpu", "--predict", 33, "--batch", 5000), "images of a call: give at most 4096"),
        (("--target", "v5e:2x2"), "pip install 'deeplab_jax[tpu-compile]'"),
    ],
)
def test_one_line_for_what_cannot_be(words, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(*words) == 2
    line = capsys.readouterr().err.strip()
    assert message in line and "\n" not in line
