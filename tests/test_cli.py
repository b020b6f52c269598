"""The command line as its users meet it: train, evaluate, predict, check-data, prepare, and every config."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.config import load_config
from deeplab_jax.data.images import read_image, read_mask
from deeplab_jax.data.sets.scenes import Scenes
from tests.support.layouts import LAYOUTS, data_arguments
from tests.support.tiny import assert_same_arrays, read_checkpoint, read_metrics, tiny_models

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
SCENES = f"{ROOT}/configs/scenes.py:debug"
TINY = "from tests.support.tiny import tiny_config\n\n\ndef get_config(arg=None):\n    return tiny_config()\n"
KEYS = {
    *("miou", "pixel_accuracy", "mean_accuracy", "per_class", "confusion_matrix"),
    *("protocol", "model", "versions", "seconds"),
}


def run(*words):
    """The exit code of the command line in this process."""
    return main([str(word) for word in words])


def start(*words):
    """A process of the command line of its own, as a user starts it."""
    command = [sys.executable, "-m", "deeplab_jax", *map(str, words)]
    # With as many devices as this process has: XLA splits its work by their number, and so rounds otherwise.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# One round.


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory) -> Path:
    """A run directory of `configs/scenes.py:debug`: the one training of a whole ResNet-18 in the fast tests."""
    workdir = tmp_path_factory.mktemp("runs") / "scenes"
    assert run("train", "--config", SCENES, "--workdir", workdir) == 0
    return workdir


def test_train_leaves_a_run_directory(scenes_run) -> None:
    names = {path.name for path in scenes_run.iterdir()}
    assert names == {
        *(".lock", "config.json", "run.json", "model.json", "checkpoints", "metrics.jsonl", "tensorboard", "pictures")
    }
    assert [line["step"] for line in read_metrics(scenes_run)] == [1, 2, 2]


def test_evaluate_looks_at_boundaries(scenes_run, tmp_path) -> None:
    assert run("evaluate", "--model", scenes_run, "--out", tmp_path, "--trimap", "4,1") == 0
    trimap = json.loads((tmp_path / "metrics.json").read_text())["trimap"]
    assert trimap["around"] == "labels" and [band["width"] for band in trimap["bands"]] == [1, 4]


def test_evaluate_changes_the_configuration_of_a_run(scenes_run, tmp_path, capsys) -> None:
    words = ("evaluate", "--model", scenes_run, "--limit", 1, "--out", tmp_path)
    assert run(*words, "--config.evaluate.output_stride=8") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["output_stride"] == 8
    capsys.readouterr()
    assert run(*words, "--config.evaluate.strid=8") == 2
    assert re.search(
        r"config\.json: there is no key config\.evaluate\.strid; choose from .*output_stride", capsys.readouterr().err
    )


def test_evaluate_writes_the_metrics(scenes_run, tmp_path, capsys) -> None:
    assert run("evaluate", "--model", scenes_run, "--out", tmp_path, "--save_predictions") == 0
    printed = capsys.readouterr()
    assert "mean IoU" in printed.out and "meadow" in printed.out and str(tmp_path / "metrics.json") in printed.out
    assert re.fullmatch(r"(class(es)? .*: in no label of val; run check-data\n)?", printed.err)
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert set(results) >= KEYS
    assert results["protocol"]["split"] == "val" and results["protocol"]["images"] == 4
    assert results["protocol"]["output_stride"] == 16 and results["checkpoint"] == 2
    # Evaluation in training came to the same numbers.
    (trained,) = [line for line in read_metrics(scenes_run) if "val/miou" in line]
    assert trained["val/miou"] == results["miou"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(
        f"scenes_val_0_{index:06}{kind}.png" for index in range(4) for kind in ("", "_overlay")
    )
    assert "4 images, mIoU from" in (tmp_path / "index.html").read_text()
    # And so do the pictures that were written.
    counts = np.zeros((9, 9), int)
    for index in range(4):
        predicted = read_mask(tmp_path / f"scenes_val_0_{index:06}.png")
        np.add.at(counts, (Scenes("val", size=(65, 65))[index]["label"], predicted), 1)
    np.testing.assert_array_equal(counts, results["confusion_matrix"])


@pytest.mark.slow
def test_evaluate_takes_its_options(scenes_run, tmp_path) -> None:
    flags = ["--output_stride", 8, "--scales", "0.75,1", "--flip", "--mode", "exact", "--limit", 2]
    assert run("evaluate", "--model", scenes_run, "--out", tmp_path, *flags, "--split", "train") == 0
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert protocol["output_stride"] == 8 and protocol["scales"] == [0.75, 1.0] and protocol["flip"] is True
    assert protocol["images"] == 2 and protocol["split"] == "train" and protocol["mode"] == "exact"


def test_evaluate_and_predict_take_a_crf(scenes_run, tmp_path) -> None:
    flags = ["--model", scenes_run, "--mode", "exact", "--crf"]
    assert run("evaluate", *flags, "--out", tmp_path / "val", "--limit", 1, "--save_predictions") == 0
    protocol = json.loads((tmp_path / "val" / "metrics.json").read_text())["protocol"]
    assert protocol["crf"]["iterations"] == 10 and protocol["crf"]["colour_bandwidth"] == 3.0
    Image.fromarray(Scenes("val", size=(65, 65))[0]["image"]).save(tmp_path / "picture.png")
    assert run("predict", *flags, "--out", tmp_path / "out", tmp_path / "picture.png") == 0
    evaluated = read_mask(tmp_path / "val" / "scenes_val_0_000000.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "picture.png"), evaluated)


@pytest.fixture
def pictures(tmp_path):
    """A folder of images as people have them, all of one size, and one that is empty."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    colour = Image.fromarray(Scenes("val", size=(65, 65))[0]["image"])
    grey = colour.convert("L")
    colour.save(folder / "colour.png")
    colour.save(folder / "photo.jpg")
    grey.save(folder / "grey.png")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("CMYK").save(folder / "print.jpg")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "empty.png").touch()
    return folder


def test_predict_goes_on_past_an_image_that_cannot_be_read(scenes_run, pictures, tmp_path, capsys) -> None:
    assert run("predict", "--model", scenes_run, "--out", tmp_path / "out", pictures) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert re.search(r"empty\.png: empty file \(zero bytes\)", line)
    assert "7 of 8 images segmented" in printed.out
    stems = ["alpha", "colour", "deep", "grey", "palette", "photo", "print"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{stem}{kind}.png" for stem in stems for kind in ("", "_overlay")),
        *("index.html", "index_files"),
    }
    for stem in stems:
        with Image.open(tmp_path / "out" / f"{stem}.png") as written:
            assert written.mode == "P"
        assert read_mask(tmp_path / "out" / f"{stem}.png").max() < 9
        assert read_image(tmp_path / "out" / f"{stem}_overlay.png").shape == (65, 65, 3)
    same = [read_mask(tmp_path / "out" / f"{stem}.png") for stem in ("colour", "alpha", "grey", "deep")]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[2], same[3])
    # A file by its name; the palette is that of the data.
    assert run("predict", "--model", scenes_run, "--out", tmp_path / "one", pictures / "colour.png") == 0
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(read_mask(tmp_path / "one" / "colour.png"), same[0])
    with Image.open(tmp_path / "one" / "colour.png") as written:
        np.testing.assert_array_equal(np.reshape(written.getpalette(), (-1, 3))[:9], Scenes.labels.palette)


def test_predict_takes_nested_folders_and_writes_what_is_asked_for(scenes_run, tmp_path, capsys) -> None:
    image = Image.fromarray(Scenes("val", size=(65, 65))[0]["image"])
    for name in ("one/a.png", "two/a.png", "top.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "in" / name)
    words = ("predict", "--model", scenes_run, tmp_path / "in", "--batch_size", 2)
    assert run(*words, "--out", tmp_path / "out", "--probabilities", "npy", "--confidence") == 0
    printed = capsys.readouterr()
    assert "3 of 3 images segmented" in printed.out and f"open {tmp_path / 'out' / 'index.html'}" in printed.out
    for name in ("one/a", "two/a", "top"):
        assert np.load(tmp_path / "out" / f"{name}_probabilities.npy").shape == (65, 65, 9)
        assert read_mask(tmp_path / "out" / f"{name}_confidence.png").min() >= 255 // 9
    assert run(*words, "--out", tmp_path / "ids", "--ids", "dataset") == 0
    files = {file.relative_to(tmp_path / "ids").as_posix() for file in (tmp_path / "ids").rglob("*") if file.is_file()}
    assert files == {"one/a.png", "two/a.png", "top.png"}
    np.testing.assert_array_equal(read_mask(tmp_path / "ids" / "top.png"), read_mask(tmp_path / "out" / "top.png"))
    (tmp_path / "clip.mp4").write_bytes(b"")
    clip = ("predict", "--model", scenes_run, tmp_path / "clip.mp4", "--out", tmp_path / "video")
    assert run(*clip) == 2
    said = capsys.readouterr().err
    assert re.search(r"clip\.mp4: not a video that can be read", said) and "overlay alone" not in said
    assert run(*clip, "--confidence", "--probabilities", "png") == 2
    assert "a video has its overlay alone, without --probabilities and --confidence" in capsys.readouterr().err


def test_check_data_then_prepare_then_train_from_the_prepared_folder(tmp_path, capsys) -> None:
    """What training sees in the prepared folder is what it sees in the source: the same losses, the same weights."""
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    config = f"--config={file}"
    assert run("check-data", config, "--json", tmp_path / "report.json") == 0
    printed = capsys.readouterr()
    assert "train: " in printed.out and "val: " in printed.out and printed.err == ""
    assert printed.out.count("weight   sqrt\n") == 1
    reports = json.loads((tmp_path / "report.json").read_text())
    assert {split: len(found["class_weights"]) for split, found in reports.items()} == {"train": 9, "val": 0}
    assert run("prepare", config, "--out", tmp_path / "prepared") == 0
    wrote, hint = capsys.readouterr().out.split("; read them with ")
    assert wrote.startswith("wrote 5 of train, 5 of val")
    prepared = shlex.split(hint)  # As a user would type it.
    with tiny_models():
        assert run("train", config, "--workdir", tmp_path / "source") == 0
        assert run("train", config, *prepared, "--workdir", tmp_path / "read") == 0
        assert run("evaluate", "--model", tmp_path / "read", "--out", tmp_path / "metrics") == 0
    assert read_metrics(tmp_path / "read") == read_metrics(tmp_path / "source")
    assert_same_arrays(read_checkpoint(tmp_path / "read", 6), read_checkpoint(tmp_path / "source", 6))


# Resuming, with a real network and real processes.


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_exactly(tmp_path) -> None:
    """Six steps in one go, and in two processes of which the first is killed without warning after step 3."""
    words = ["train", "--config", SCENES, "--config.train.steps=6", "--config.train.checkpoint_every=3"]
    assert run(*words, "--workdir", tmp_path / "whole") == 0
    process = start(*words, "--workdir", tmp_path / "parts")
    deadline = time.monotonic() + 280
    while not (tmp_path / "parts" / "checkpoints" / "3").is_dir():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(str(process.communicate()))
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert run(*words, "--workdir", tmp_path / "parts") == 0
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert_same_arrays(read_checkpoint(tmp_path / "parts", 6), read_checkpoint(tmp_path / "whole", 6))


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(tmp_path) -> None:
    words = ["train", "--config", SCENES, "--workdir", tmp_path, "--config.train.steps=100000"]

    def interrupt_after(pattern):
        """Start, press Ctrl-C when a line of the output matches, and return the step that was saved and the output."""
        process, printed = start(*words), []
        try:
            for line in process.stdout:
                printed.append(line)
                if re.match(pattern, line):
                    break
            process.send_signal(signal.SIGINT)
            more, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 130, errors
        (line,) = errors.strip().splitlines()
        message = r"deeplab-jax: stopped at step (\d+) of 100000, which is saved; the same command goes on from there"
        return int(re.fullmatch(message, line)[1]), "".join(printed) + more

    first, _ = interrupt_after("step 1:")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(first)]
    second, printed = interrupt_after(f"step {first + 1}:")
    assert printed.startswith(f"resuming from step {first} in ") and second > first
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(1, second + 1))


# The process itself.


def test_help_lists_the_verbs(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--help")
    printed = capsys.readouterr()
    assert stop.value.code == 0 and printed.err == ""
    for verb in ("train", "evaluate", "predict", "check-data", "prepare"):
        assert verb in printed.out


def test_compiled_programs_are_kept_where_the_environment_says(tmp_path, monkeypatch) -> None:
    import jax

    from deeplab_jax.cli import enable_compilation_cache

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    enable_compilation_cache()  # The environment of the tests names a folder, or none.
    assert jax.config.jax_compilation_cache_dir == before and list(tmp_path.iterdir()) == []
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    enable_compilation_cache()
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / "deeplab_jax" / "xla")
    assert (tmp_path / "deeplab_jax" / "xla").is_dir()


# Every config.


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_reads_its_data(path, tmp_path, capsys) -> None:
    name = load_config([f"--config={path}"]).data.name
    assert name in (*LAYOUTS, "scenes"), f"tests/support/layouts.py has no layout of {name}"
    words = data_arguments(name, tmp_path / "data")
    code = run("check-data", "--config", f"{path}:debug", *words, "--limit", 2)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_two_steps_and_evaluates(path, tmp_path, capsys) -> None:
    words = data_arguments(load_config([f"--config={path}"]).data.name, tmp_path / "data")
    code = run("train", "--config", f"{path}:debug", *words, "--workdir", tmp_path / "run")
    assert code == 0, capsys.readouterr().err
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)
    assert run("evaluate", "--model", tmp_path / "run", "--out", tmp_path / "out") == 0
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) >= KEYS
