"""Names and pipes, as shells hand them over, on the real command line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax.cli import main
from deeplab_jax.files import with_home
from deeplab_jax.flags import make_parser
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights.folder import load, save
from tests.support.processes import environment, write_config
from tests.support.tiny import tiny_models
from tests.support.traces import fill_variables

NAME = '[v2] a*b? 100% exp%20 #1 it\'s "q" 中é'


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_every_verb_takes_folders_of_any_name(tmp_path: Path) -> None:
    home = tmp_path / NAME
    home.mkdir()
    config = write_config(tmp_path / "tiny.py", **{"train.steps": 2, "train.checkpoint_every": 1})
    workdir = home / NAME
    Image.fromarray(np.zeros((33, 33, 3), np.uint8)).save(home / f"{NAME}.png")
    with tiny_models():
        for _ in range(2):  # The second start resumes.
            assert run("train", f"--config={config}", "--workdir", workdir) == 0
        assert run("evaluate", "--model", workdir, "--out", home / "metrics [1]") == 0
        assert run("predict", "--model", workdir, "--out", home / "out [1]", home / f"{NAME}.png") == 0
        assert (home / "out [1]" / f"{NAME}.png").is_file()
        assert run("convert", workdir, "--out", home / "model [1]") == 0
        load(home / "model [1]")
        words = ["--format", "stablehlo", "--size", "33x33", "--out", home / "export [1].zip"]
        assert run("export", "--model", home / "model [1]", *words) == 0


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parse = make_parser().parse_known_args
    for words, name in (
        (["train", "--workdir=~/x"], "workdir"),
        (["evaluate", "--model=~/x", "--out=."], "model"),
        (["predict", "a.png", "--model=.", "--out=~/x"], "out"),
        (["convert", "~/x", "--out=."], "source"),
        (["replay", "~/x"], "folder"),
        (["summarize", "~/x"], "model"),
        (["summarize", "m", "--json=~/x"], "json"),
        (["check-data", "--json=~/x"], "json"),
        (["prepare", "--out=~/x"], "out"),
        (["train", "--workdir=.", "--module=~/x"], "module"),
    ):
        assert getattr(parse([with_home(word) for word in words])[0], name) == str(tmp_path / "x"), words
    assert parse(["predict", with_home("~/x"), "--model=.", "--out=."])[0].images == [str(tmp_path / "x")]
    assert parse(["summarize", "m", "--json"])[0].json == "-"


def test_a_tilde_is_the_home_from_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written below `~` is where `load` looks for it, and no folder has the name `~`."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "home" / "tiny.py", **{"train.steps": 1})
    Image.fromarray(np.zeros((33, 33, 3), np.uint8)).save(tmp_path / "home" / "photo.png")
    with tiny_models():
        metrics = deeplab_jax.train("~/tiny.py", "~/run")
        assert deeplab_jax.evaluate("~/run", out="~/metrics")["miou"] == metrics["miou"]
        deeplab_jax.save("~/model", *deeplab_jax.load("~/run"))
        deeplab_jax.predict("~/model", "~/photo.png", "~/out")
        deeplab_jax.check_data(deeplab_jax.load_config(["--config=~/tiny.py"]), limit=1, show="~/samples")
    assert metrics["workdir"] == str(tmp_path / "home" / "run")
    for made in ("metrics/metrics.json", "model/model.json", "out/photo.png", "samples/index.html"):
        assert (tmp_path / "home" / made).is_file(), made
    assert [each.name for each in tmp_path.iterdir()] == ["home"]


def test_a_reader_that_ends_early_costs_nothing(tmp_path: Path) -> None:
    """`convert ... | true`: the model is written, and the exit code is that of success."""
    model = create_model("deeplabv3_resnet18", width=0.125, aspp_channels=8)
    save(tmp_path / "source", model, fill_variables(model, 1, 33, 33, 3), {})
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "deeplab_jax", "convert", str(tmp_path / "source"), "--out", str(tmp_path / "model")]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=environment({}), check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    load(tmp_path / "model")


@pytest.mark.slow
def test_training_goes_on_without_a_reader(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    config = write_config(tmp_path / "tiny.py", **{"train.steps": 2})
    words = [sys.executable, "-m", "deeplab_jax", "train", f"--config={config}", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=environment({}), check=False)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
