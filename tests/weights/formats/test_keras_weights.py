"""Presets of KerasHub: HDF5 files as Keras 3 writes them, archives of them, and files that somebody made to do harm."""

import json
import sys
import tarfile

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.formats.keras_weights import VARIABLES, read_keras
from deeplab_jax.weights.formats.read import read_tree
from tests.weights.importers import golden, test_keras_hub

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install '.[keras]'")
NAME = "keras_hub_resnet18_p4"
NUMBERS = {variable: str(index) for names in VARIABLES.values() for index, variable in enumerate(names)}


def write(path, tensors):
    """Write tensors by the names that `read_keras` gives them, as Keras does."""
    with h5py.File(path, "w") as file:
        for name, value in tensors.items():
            layer, _, variable = name.rpartition("/")
            file[f"{layer}/vars/{NUMBERS.get(variable, variable)}"] = value


@pytest.fixture(scope="module")
def tensors():
    return test_keras_hub.generate_tensors(golden.read_shapes(NAME))


@pytest.fixture
def preset(tensors, tmp_path):
    folder = tmp_path / "preset"
    folder.mkdir()
    task = {key.removeprefix("task/"): value for key, value in tensors.items() if key.startswith("task/")}
    write(folder / "model.weights.h5", {key: value for key, value in tensors.items() if not key.startswith("task/")})
    write(folder / "task.weights.h5", task | {"optimizer/0": np.zeros(3)})
    files = {
        "config": {"dilation_rates": [2, 4, 6]},
        "task": {"activation": None},
        "image_converter": {"scale": 1 / 127.5, "offset": -1.0},
    }
    for name, config in files.items():
        (folder / f"{name}.json").write_text(json.dumps({"config": config}))
    return folder


def test_a_preset_is_read_whole(preset, tensors):
    found = read_keras(preset)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert read_keras(preset / "model.weights.h5").keys() == tensors.keys()


def test_a_preset_converts_with_its_configuration(preset, tmp_path, capsys):
    assert main(["convert", str(preset), "--out", str(tmp_path / "model")]) == 0
    model, _, info = load(tmp_path / "model")
    assert info["source"]["kind"] == "keras_hub"
    assert (model.context.aspp_rates, model.output_stride, model.num_classes) == ((2, 4, 6), 16, 5)
    pixels = np.asarray([[[0, 127, 255]]], np.uint8)
    np.testing.assert_allclose(model.preprocessing(pixels), [[[-1.0, -1 / 255, 1.0]]], atol=1e-6)


def test_an_archive_of_a_preset_converts_as_its_folder_does(preset, tmp_path):
    archive = archived(preset, tmp_path / "preset.tar.gz")
    model, _, info = convert(archive)
    assert (model.context.aspp_rates, info["source"]["file"]) == ((2, 4, 6), "preset.tar.gz")


def test_a_damaged_file_is_refused(preset):
    file = preset / "model.weights.h5"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="model.weights.h5: not a readable HDF5 file"):
        read_tree(preset)


def archived(folder, path):
    with tarfile.open(path, "w:gz") as stream:
        for file in folder.iterdir():
            stream.add(file, f"./{file.name}")
    return path


def test_a_damaged_file_in_an_archive_is_named_by_the_archive(preset, tmp_path, capsys):
    file = preset / "model.weights.h5"
    file.write_bytes(file.read_bytes()[:5000])
    archive = archived(preset, tmp_path / "preset.tar.gz")
    assert main(["convert", str(archive), "--out", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert f"{archive}/model.weights.h5: not a readable HDF5 file" in said and "/tmp/tmp" not in said


def test_a_missing_h5py_is_told_of_the_archive(preset, tmp_path, monkeypatch):
    archive = archived(preset, tmp_path / "preset.tar.gz")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError) as error:
        convert(archive)
    assert str(error.value).startswith(f"{archive}/model.weights.h5: needs h5py, which is not installed; type")


def test_what_keras_does_not_write_is_refused(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (2**20, 2**20), "f4", chunks=(64, 64), compression="gzip")
    with pytest.raises(UserError, match="its tensors are larger than the file"):
        read_tree(path)
    (tmp_path / "secret").write_bytes(bytes(8))
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (2,), "f4", external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(UserError, match="is not stored as Keras does"):
        read_tree(path)
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = "text"
    with pytest.raises(UserError, match="not numbers"):
        read_tree(path)


def test_all_tensors_together_are_no_larger_than_the_file(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        for index in range(40):  # Each is smaller than the file, and no storage is allocated for any.
            file.create_dataset(f"layers/conv2d_{index}/vars/0", (1000,), "f4")
        file["layers/dense/vars/0"] = np.zeros(10_000, np.float32)
    assert 40_000 < path.stat().st_size < 40 * 4000
    with pytest.raises(UserError, match="its tensors are larger than the file"):
        read_keras(path)


def test_an_optimizers_tensors_do_not_count(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("optimizer/vars/0", (2**20,), "f4")
        file["layers/conv2d/vars/0"] = np.ones(3, np.float32)
    assert [*read_keras(path)] == ["layers/conv2d/kernel"]


def test_a_tensor_without_a_shape_is_refused(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = h5py.Empty("f4")
    with pytest.raises(UserError, match="conv2d/vars/0' is not stored as Keras does"):
        read_keras(path)


def test_links_out_of_a_file_are_not_followed(tmp_path):
    write(tmp_path / "other.h5", {"layers/conv2d/kernel": np.ones(2)})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/layers")
        file["layers/conv2d/vars/0"] = np.zeros(3)
    assert [*read_keras(tmp_path / "x.h5")] == ["layers/conv2d/kernel"]
