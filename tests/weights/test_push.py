"""`push`: what it uploads to a hub on this machine, and the card that it writes."""

import json
import shutil

import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.cli import main
from deeplab_jax.data.images import write_image
from deeplab_jax.evaluate.evaluator import summarize_confusion
from deeplab_jax.evaluate.protocol import DEFAULT
from deeplab_jax.labels import LabelSet
from deeplab_jax.models.catalog import create_model, describe
from deeplab_jax.weights import download, push
from deeplab_jax.weights.folder import METRICS_FILE, flatten_variables, load, save
from tests.support.hub import TOKEN, Repository, hub_here
from tests.support.tiny import filled, run_training, tiny_config, tiny_models

huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")

TARGET = "hf://me/cracks"
LABELS = LabelSet(("background", "crack | hole"), ((0, 0, 0), (255, 0, 0)))


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_here(tmp_path) as here, tiny_models():
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield here


@pytest.fixture
def made(tmp_path):
    """A model folder with the metrics of an evaluation."""
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=2)
    info = {**LABELS.info(), "data": "camvid", "provenance": {"name": "timm/x", "licence": "BSD-3-Clause"}}
    folder = deeplab_jax.save(tmp_path / "made", model, filled(model, 1), info)
    results = {
        **summarize_confusion(np.array([[6, 2], [1, 1]]), LABELS),
        "protocol": {**DEFAULT.to_json(), "split": "val", "data": "folder", "images": 5},
        "model": describe(model),
    }
    (folder / METRICS_FILE).write_text(json.dumps(results))
    return folder


def text_of(server, branch="main", name="me/cracks"):
    repository = server.repositories[name]
    return repository.commits[repository.branches[branch]]["README.md"].decode()


def test_what_is_pushed_is_loaded(server, made, capsys):
    assert push.METRICS_FILE == METRICS_FILE
    assert main(["push", str(made), TARGET, "--private"]) == 0
    repository = server.repositories["me/cracks"]
    commit = repository.branches["main"]
    assert capsys.readouterr().out == (
        "cascade_tiny, 2 classes, output stride 16: uploaded README.md, metrics.json, model.json, weights.safetensors "
        f"(0.0 MiB) to {server.address}/me/cracks/tree/{commit}\n"
    )
    assert repository.private
    _, variables, info = load(made)
    _, loaded, loaded_info = deeplab_jax.load(TARGET)
    for name, value in flatten_variables(variables).items():
        np.testing.assert_array_equal(value, flatten_variables(loaded)[name])
    assert loaded_info["class_names"] == ["background", "crack | hole"]
    assert loaded_info["provenance"]["licence"] == "bsd-3-clause"
    assert loaded_info["provenance"]["before"] == info["provenance"]


def test_a_second_push_adds_a_commit(server, made):
    assert main(["push", str(made), TARGET]) == 0
    assert main(["push", str(made), TARGET, "--licence", "mit"]) == 0
    assert "license: mit" in text_of(server)
    assert main(["push", str(made), TARGET, "--revision", "v2", "--licence", "apache-2.0"]) == 0
    assert "license: apache-2.0" in text_of(server, "v2")
    assert "hf://me/cracks@v2 --out" in text_of(server, "v2")
    assert "license: mit" in text_of(server)
    assert not server.repositories["me/cracks"].private


def test_the_card(server, made, tmp_path):
    assert main(["push", str(made), TARGET, "--out", str(tmp_path / "out")]) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "metrics.json",
        "model.json",
        "weights.safetensors",
    ]
    assert not server.requests
    stated = huggingface_hub.metadata_load(tmp_path / "out" / "README.md")
    index = stated.pop("model-index")
    assert stated == {
        "license": "bsd-3-clause",
        "library_name": "deeplab_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "deeplab", "jax", "flax"],
        "datasets": ["camvid"],
        "metrics": ["mean_iou", "accuracy", "mean_accuracy"],
    }
    (result,) = index[0]["results"]
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("folder", "val")
    # Of [[6, 2], [1, 1]]: IoU 6/9 and 1/4, 7 of 10 pixels, accuracies 6/8 and 1/2.
    assert [metric["value"] for metric in result["metrics"]] == [0.4583, 0.7, 0.625]
    text = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "# cracks\n",
        "python -m deeplab_jax predict --model hf://me/cracks --out predictions photos/\n",
        'deeplab_jax.load("hf://me/cracks")\n',
        "0 background, 1 crack \\| hole\n",
        "On 5 images of folder, val:\n",
        "| mean IoU | 45.83 |\n",
        "| background | 66.67 | 85.71 | 75.00 |\n",
        "| crack \\| hole | 25.00 | 33.33 | 50.00 |\n",
        '`mode` "padded"',
        "- name: timm/x\n",
        "- trained on: camvid\n",
        "- licence: bsd-3-clause\n",
    ):
        assert line in text, line


def test_the_commands_of_a_card_are_right(server, made, tmp_path, monkeypatch):
    """They run as they stand, on what was pushed."""
    assert main(["push", str(made), TARGET]) == 0
    text = text_of(server)
    photo = np.zeros((33, 41, 3), np.uint8)
    names = {"photo": photo}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    assert names["classes"].shape == (33, 41)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "a.png", photo)
    words = text.partition("```sh\n")[2].partition("```")[0].split()
    assert words[:3] == ["python", "-m", "deeplab_jax"]
    assert main(words[3:]) == 0
    assert (tmp_path / "predictions" / "a.png").is_file()


def test_a_run(server, tmp_path):
    run_training(tmp_path / "run", tiny_config())
    assert main(["push", str(tmp_path / "run"), TARGET]) == 0
    assert "- miou: 0." in text_of(server)
    assert "Of the evaluation during training at step " in text_of(server)
    assert "license" not in text_of(server)
    assert "datasets" not in text_of(server)
    assert "- licence: not stated" in text_of(server)
    assert deeplab_jax.load(TARGET)[2]["data"] == "scenes"


def test_a_run_names_the_weights_that_it_started_from(server, made, tmp_path):
    """And their licence, through a folder in between."""
    info = {"provenance": {"name": "timm/tiny", "licence": "CC-BY-NC-4.0", "sha256": "0" * 64}}
    save(tmp_path / "start", *load(made)[:2], info)
    config = tiny_config(**{"init": str(tmp_path / "start"), "init_scope": "backbone"})
    run_training(tmp_path / "run", config)
    shutil.rmtree(tmp_path / "start")
    assert run_training(tmp_path / "run", config) is None  # Nothing to do, and nothing forgotten.
    assert main(["push", str(tmp_path / "run"), TARGET]) == 0
    assert "- its training started from the weights timm/tiny (licence CC-BY-NC-4.0)\n" in text_of(server)
    assert str(tmp_path) not in text_of(server)


def one_line(capsys, *words):
    assert main(["push", *map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deeplab-jax: ")]
    assert len(lines) == 1
    return lines[0]


def test_faults_are_one_line(server, made, monkeypatch, capsys, tmp_path):
    assert "no address of a repository; write hf://owner/repo" in one_line(capsys, made, "me/cracks")
    assert "no such folder" in one_line(capsys, tmp_path / "none", TARGET)
    assert "no metrics of an evaluation" in one_line(capsys, made, TARGET, "--metrics", made / "model.json")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "is a run directory, and has checkpoints of its own" in one_line(
        capsys, made, TARGET, "--out", tmp_path / "run"
    )
    other = json.loads((made / METRICS_FILE).read_text())
    other["model"]["num_classes"] = 21
    (tmp_path / "other.json").write_text(json.dumps(other))
    words = one_line(capsys, made, TARGET, "--metrics", tmp_path / "other.json")
    assert "of cascade_tiny with 21 classes, and the model is cascade_tiny with 2" in words
    assert not server.requests
    monkeypatch.setenv(download.OFFLINE, "1")
    assert "DEEPLAB_JAX_OFFLINE is set; unset it, or give --out" in one_line(capsys, made, TARGET)
    monkeypatch.delenv(download.OFFLINE)
    for token in ("", "hf_another"):
        monkeypatch.setenv("HF_TOKEN", token)
        assert "access denied (HTTP status 401); type: hf auth login, with a token" in one_line(capsys, made, TARGET)
    assert not server.repositories
    server.server_close()
    assert "cannot be reached (" in one_line(capsys, made, TARGET)


def test_a_repository_of_somebody_else_stays(server, made):
    """Files that are not the model's are left alone."""
    server.repositories["me/cracks"] = Repository()
    server.repositories["me/cracks"].commit({"notes.txt": b"mine"})
    assert main(["push", str(made), TARGET]) == 0
    repository = server.repositories["me/cracks"]
    assert repository.commits[repository.branches["main"]]["notes.txt"] == b"mine"


def test_results_of_another_checkpoint_are_refused(server, made, capsys, tmp_path):
    results = {**json.loads((made / METRICS_FILE).read_text()), "checkpoint": 100}
    (made / METRICS_FILE).write_text(json.dumps(results))
    model, variables, info = load(made)
    for step, code in ((200, 2), (100, 0)):
        folder = deeplab_jax.save(tmp_path / f"at{step}", model, variables, {**info, "step": step})
        (folder / METRICS_FILE).write_text(json.dumps(results))
        assert main(["push", str(folder), TARGET, "--out", str(tmp_path / f"card{step}")]) == code
    assert "of the checkpoint of step 100, and the model is that of step 200; evaluate it" in capsys.readouterr().err


def test_the_card_of_several_labels_a_pixel(server, tmp_path):
    model = create_model("cascade_tiny", num_classes=3, activation="sigmoid")
    deeplab_jax.save(tmp_path / "several", model, filled(model, 1), {})
    assert main(["push", str(tmp_path / "several"), TARGET, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "into 3 labels, of which a pixel can have several, at output stride" in text
    assert "int32 [H, W, K], 0 or 1 for each label" in text
