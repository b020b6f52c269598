"""What an exported file costs in mean IoU: the file is run, and counted as `evaluate` counts."""

import json
import subprocess

import jax
import numpy as np
import pytest

from deeplab_jax.data.catalog import open_source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights.folder import save
from experiments import export_cost
from experiments.export_cost import OWN, evaluate_file, main, read_kept, smallest_size, table
from tests.support.traces import fill_variables


@pytest.fixture(scope="module")
def source():
    return open_source("scenes", split="val", count=3, size=(48, 64))


@pytest.fixture(scope="module")
def made(source):
    options = {"width": 0.25, "aspp_channels": 8}
    model = create_model("deeplabv3_mobilenet_v2", num_classes=source.labels.num_classes, **options)
    return model, fill_variables(model, 1, 65, 65, 3)


def test_the_same_logits_have_the_same_metrics(made, source):
    model, variables = made
    size = (65, 81)
    own = evaluate(model, variables, source, Protocol(mode="padded", pad_to=(size,)))
    run = jax.jit(lambda x: model.apply(variables, x, train=False))

    found = evaluate_file(lambda x: np.asarray(run(x)), model, source, size, images=3)

    assert found["miou"] == pytest.approx(own["miou"], abs=1e-4)
    assert found["pixel_accuracy"] == pytest.approx(own["pixel_accuracy"], abs=1e-4)
    flat = evaluate_file(lambda x: np.eye(model.num_classes)[np.zeros(x.shape[:3], int)], model, source, size, images=3)
    assert flat["per_class"][0]["accuracy"] == 1.0 and flat["per_class"][1]["accuracy"] == 0.0


def test_the_smallest_size_holds_every_image():
    class Two:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"label": np.zeros([(40, 70), (50, 60)][index], np.uint8)}

    assert smallest_size(Two(), 2) == (50, 70)


@pytest.mark.slow
def test_the_command_runs_each_file_once(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    save(tmp_path / "model", *made, {})
    arguments = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        "scenes",
        "--images",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--programs", "onnx float32"]) == 0
    rows = json.loads((tmp_path / "out" / "export_cost.json").read_text())["rows"]
    assert [*rows] == [OWN, "onnx float32"]
    assert rows["onnx float32"]["miou"] == pytest.approx(rows[OWN]["miou"], abs=1e-4)
    assert "compared in onnxruntime" in rows["onnx float32"]["compared"]

    def again(*args, **kwargs):
        raise AssertionError("it is finished")

    monkeypatch.setattr(export_cost, "evaluate", again)
    with monkeypatch.context() as patched:
        patched.setattr(export_cost, "evaluate_file", again)
        assert main([*arguments, "--programs", "onnx float32"]) == 0
    assert main([*arguments, "--programs", "onnx float32", "onnx float16"]) == 0
    rows = json.loads((tmp_path / "out" / "export_cost.json").read_text())["rows"]
    assert [*rows] == [OWN, "onnx float32", "onnx float16"]
    assert rows["onnx float16"]["megabytes"] < 0.7 * rows["onnx float32"]["megabytes"]
    assert "| onnx float16 |" in capsys.readouterr().out


def test_images_without_a_labelled_pixel_leave_cells_empty():
    rows = {
        OWN: {"miou": 0.5, "pixel_accuracy": 0.75},
        "onnx float32": {"megabytes": 1.25, "miou": 0.4875, "pixel_accuracy": None},
        "onnx float16": {"megabytes": 1.0, "miou": None, "pixel_accuracy": 0.5},
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows).splitlines()[2:]]
    assert lines == [
        [OWN, "", "50.00", "+0.00", "75.00"],
        ["onnx float32", "1.2", "48.75", "-1.25", ""],
        ["onnx float16", "1.0", "", "", "50.00"],
    ]
    nothing = table({OWN: {"miou": None, "pixel_accuracy": None}, "onnx float32": rows["onnx float32"]})
    assert "48.75 |  |  |" in nothing


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"setting": {"images": 2}, "rows": []}', '{"setting": {}, "rows": {}}']
)
def test_a_damaged_file_of_results_is_one_line_and_the_printed_fix_works(tmp_path, content):
    file = tmp_path / "my results.json"
    file.write_text(content)
    with pytest.raises(UserError, match="not what this command has written; remove it: ") as caught:
        read_kept(file, {"images": 2})
    subprocess.run(str(caught.value).rpartition(": ")[2], shell=True, check=True)
    assert read_kept(file, {"images": 2}) == {}


def test_rows_of_another_setting_are_not_lost(tmp_path):
    rows = {OWN: {"miou": 0.5, "pixel_accuracy": 0.75}}
    file = tmp_path / "export_cost.json"
    file.write_text(json.dumps({"setting": {"images": 2}, "rows": rows}))
    assert read_kept(file, {"images": 2}) == rows
    with pytest.raises(UserError, match=r"export_cost.json: it has results of other images; give another --out"):
        read_kept(file, {"images": 3})


def test_mistakes_are_told(made, tmp_path, capsys):
    save(tmp_path / "model", *made, {})
    arguments = ["--model", str(tmp_path / "model"), "--data", "scenes", "--out", str(tmp_path / "out")]
    for more, message in (
        (["--images", "2", "--size", "65x129"], "--size 65x129: there are images of 129x129; give at least that"),
        (["--images", "0"], "--images 0: give at least 1"),
        (["--calibration_images", "0"], "--calibration_images 0: give at least 1"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
