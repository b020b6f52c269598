"""The verbs `convert` and `export` as a user types them: what they write, what they say, and what they refuse."""

import io
import json
import sys
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deeplab_jax.cli import main
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights import convert as module
from deeplab_jax.weights.folder import load, save
from tests.support.tiny import filled, tiny_model
from tests.weights.test_convert import make_tensors, recognise


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tiny_networks):
    monkeypatch.setitem(module.IMPORTERS, "tiny", module.Importer(recognise))


def run(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "theirs.safetensors"
    save_file(make_tensors(), str(file))
    return file


def test_convert_writes_a_folder_and_says_what_it_did(tmp_path, source, capsys) -> None:
    assert run("convert", source, "--out", tmp_path / "ours", "--num_classes", 3, "--reinit", "head") == 0
    printed = capsys.readouterr().out
    assert "read as tiny's cascade_tiny, 3 classes, output stride 16; 10 tensors used" in printed
    assert "left out: score.bias, score.weight" in printed
    assert "start at random: params/classifier/bias, params/classifier/kernel" in printed
    model, _, info = load(tmp_path / "ours")
    assert model.num_classes == 3
    assert info["source"]["file"] == source.name
    # The folder is a source as well.
    assert run("convert", tmp_path / "ours", "--out", tmp_path / "again", "--output_stride", 8) == 0
    assert load(tmp_path / "again")[0].output_stride == 8


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, (), "no such file"),
        (b"", (), "neither a PyTorch"),
        (b"<!DOCTYPE html>", (), "neither a PyTorch, safetensors, Keras 3 or .tflite file"),
        (b"PK\x03\x04 nothing", (), "fetch it again"),
        (b"\xff" * 8 + b"{}", (), "not a readable safetensors file"),
        ("good", ("--kind", "tny"), "kind='tny': did you mean tiny"),
        ("good", ("--num_classes", "3"), "add reinit='head' .--reinit head."),
        ("good", ("--output_stride", "5"), "output_stride=5"),
        ("good", ("--reinit", "tail"), "invalid choice: 'tail'"),
    ],
)
def test_convert_refuses_in_one_line_and_writes_nothing(tmp_path, source, capsys, content, words, message) -> None:
    file = source if content == "good" else tmp_path / "file"
    if isinstance(content, bytes):
        file.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    assert run("convert", file, "--out", tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.replace(".--", "(--").replace("head.", "head)") in line
    assert sorted(tmp_path.rglob("*")) == before


def test_convert_does_not_write_into_a_run(tmp_path, source, capsys) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert run("convert", source, "--out", tmp_path / "run") == 2
    assert (
        "is a run directory, and has checkpoints of its own; choose another folder (--out)" in capsys.readouterr().err
    )


def test_export_stablehlo(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny", num_classes=4)
    save(tmp_path / "model", model, variables, {"class_names": list("abcd")})
    file = tmp_path / "sub" / "model.zip"
    words = ("export", "--model", tmp_path / "model", "--format", "stablehlo", "--out", file)
    assert run(*words, "--size", "33x49", "--preprocess", "--argmax", "--output_stride", 8) == 0
    archive = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    metadata = json.loads(archive.read("metadata.json"))
    assert metadata["class_names"] == list("abcd")
    exported = jax.export.deserialize(bytearray(archive.read("model.stablehlo")))
    image = np.random.default_rng(0).integers(0, 256, (2, 33, 49, 3), np.uint8)
    expected = model.clone(output_stride=8).apply(variables, model.preprocessing(jax.numpy.asarray(image)), train=False)
    np.testing.assert_array_equal(exported.call(image), np.argmax(expected, -1))


def test_export_torchvision(tmp_path, capsys) -> None:
    model, variables = tiny_model("cascade_tiny")
    save(tmp_path / "model", model, variables, {})
    words = ("export", "--model", tmp_path / "model", "--format", "torchvision", "--out")
    assert run(*words, tmp_path / "a.pth") == 2
    assert "'cascade_tiny' is none of torchvision's" in capsys.readouterr().err
    assert run(*words, tmp_path / "a.pth", "--size", "33") == 2
    assert "--size: a state dict has none" in capsys.readouterr().err
    assert run(*words, tmp_path / "a.pth", "--precision", "int8") == 2
    assert "--precision: a state dict has none" in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()

    theirs = create_model("lraspp_mobilenet_v3_large", num_classes=2, norm_momentum=0.99)
    save(tmp_path / "model", theirs, filled(theirs), {})
    assert run(*words, tmp_path / "b.safetensors") == 0
    assert load_file(tmp_path / "b.safetensors")["classifier.high_classifier.weight"].shape == (2, 128, 1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("stablehlo", "--precision", "float16"),
            "--precision: stablehlo has none; leave it out, or use --format onnx or",
        ),
        (("onnx", "--calibration", "x"), "--calibration: onnx has none; leave it out, or use --format tflite"),
        (("onnx",), "onnx: the size of the images has to be fixed; give it, such as --size 513x513"),
        (("tflite",), "tflite: the size of the images has to be fixed; give it, such as --size 513x513"),
        (
            ("onnx", "--size", "33x33"),
            "--format onnx: needs onnx, which is not installed; type pip install onnx onnxruntime",
        ),
        (
            ("tflite", "--size", "33x33"),
            "--format tflite: needs tensorflow, which is not installed; type pip install tensorflow-cpu ai-edge-litert",
        ),
        (("tflite", "--size", "33x33", "--precision", "int8", "--calibration", "EMPTY"), "no image in this folder"),
    ],
)
def test_exports_for_runtimes_are_refused_in_one_line(tmp_path, capsys, monkeypatch, words, message) -> None:
    for name in ("onnx", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)  # As if it were not installed.
    save(tmp_path / "model", *tiny_model("cascade_tiny"), {})
    (tmp_path / "empty").mkdir()
    words = [tmp_path / "empty" if word == "EMPTY" else word for word in words]
    assert run("export", "--model", tmp_path / "model", "--out", tmp_path / "a", "--format", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "a").exists()


def test_export_onnx(tmp_path, capsys) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime")
    model, variables = tiny_model("cascade_tiny", num_classes=4)
    save(tmp_path / "model", model, variables, {})
    file = tmp_path / "sub" / "model.onnx"
    words = ("export", "--model", tmp_path / "model", "--format", "onnx", "--out", file, "--size", "33x49")
    assert run(*words, "--preprocess", "--argmax", "--output_stride", 8) == 0
    wrote, compared = capsys.readouterr().out.splitlines()
    assert f"written to {file} (" in wrote and compared.startswith("compared in onnxruntime ")
    image = np.random.default_rng(0).integers(0, 256, (2, 33, 49, 3), np.uint8)
    expected = model.clone(output_stride=8).apply(variables, model.preprocessing(jax.numpy.asarray(image)), train=False)
    (found,) = runtime.InferenceSession(file).run(None, {"images": image})
    assert np.mean(found == np.argmax(expected, -1)) >= 0.999
