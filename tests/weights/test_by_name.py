"""`load` by a name of the table: fetched once, converted once, and the same logits as the published file."""

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

import deeplab_jax
from deeplab_jax.cli import main
from deeplab_jax.data.images import write_image
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.models.catalog import model_names
from deeplab_jax.weights import by_name, download, published
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.convert import IMPORTERS, Importer, convert
from deeplab_jax.weights.published import PUBLISHED, Published
from tests.support.server import serve
from tests.support.tiny import tiny_config, tiny_models
from tests.weights import test_convert as tiny_network
from tests.weights.formats.test_tf_checkpoint import copy

NAME = "torchvision/tiny_coco"
ENTRY = Published(
    network="cascade_tiny",
    file="tiny_coco-00000000.safetensors",
    addresses=(),
    trained_on="shapes",
    figure="mIoU 12.3",
    licence="BSD-3-Clause",
    parameters=0.001,
)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server with the weights of a tiny network, and a table that names them."""
    content = to_safetensors(tiny_network.make_tensors())
    monkeypatch.setenv(download.FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv(download.OFFLINE, raising=False)
    monkeypatch.setitem(IMPORTERS, "tiny", Importer(tiny_network.recognise))
    with serve({ENTRY.file: content}) as running, tiny_models():
        add(monkeypatch, running, content)
        yield running


def add(monkeypatch, server, content, name=NAME, **changes):
    sha256 = hashlib.sha256(content).hexdigest()
    file = changes.get("file", ENTRY.file)
    entry = dataclasses.replace(ENTRY, addresses=(server.address + file,), sha256=sha256[:8], **changes)
    server.files[file] = content
    monkeypatch.setitem(PUBLISHED, name, entry)
    return sha256


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_name_is_fetched_and_converted_once(server, capsys):
    model, variables, info = deeplab_jax.load(NAME)
    same(variables, convert(tiny_network.make_tensors())[1])
    assert (model.num_classes, model.output_stride) == (5, 16)
    digest = hashlib.sha256(server.files[ENTRY.file]).hexdigest()
    assert info["provenance"] == {
        "name": NAME,
        "address": server.address + ENTRY.file,
        "sha256": digest,
        "licence": "BSD-3-Clause",
        "trained_on": "shapes",
        "published": "mIoU 12.3",
        "converted_by": by_name._converter(),
    }
    assert capsys.readouterr().err.startswith(f"fetching {server.address}")
    same(load(NAME)[1], variables)
    assert len(server.requests) == 1
    assert capsys.readouterr() == ("", "")


def test_another_version_converts_again_without_fetching(server, monkeypatch):
    load(NAME)
    monkeypatch.setattr(by_name, "version_of", lambda package: "99")
    assert load(NAME)[2]["provenance"]["converted_by"] == f"deeplab_jax 99, conversion {by_name.CONVERSION}"
    assert len(server.requests) == 1


def test_a_fixed_importer_converts_again(server, monkeypatch):
    """The version stays the same between releases."""
    assert load(NAME)[0].output_stride == 16
    monkeypatch.setitem(
        IMPORTERS, "tiny", Importer(lambda shapes, **_: tiny_network.recognise(shapes, output_stride=8))
    )
    monkeypatch.setattr(by_name, "CONVERSION", by_name.CONVERSION + 1)
    assert load(NAME)[0].output_stride == 8
    assert len(server.requests) == 1


def test_a_conversion_that_was_interrupted_is_done_again(server):
    load(NAME)
    folder = by_name.converted(NAME)
    (folder / "model.json").write_text("{")
    same(load(NAME)[1], convert(tiny_network.make_tensors())[1])
    shutil.rmtree(folder)
    load(NAME)


def test_damaged_weights_in_the_cache_are_made_again_by_what_is_printed(server, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(download.FOLDER, str(tmp_path / "my cache"))
    variables = load(NAME)[1]
    file = by_name.converted(NAME) / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    capsys.readouterr()
    words = ["export", "--model", NAME, "--format", "smp", "--out", str(tmp_path / "x.pth")]
    assert main(words) == 2
    start, _, command = (
        capsys.readouterr().err.strip().rpartition("remove its folder, and the same command makes it again: ")
    )
    assert f"{file}: not a readable safetensors file" in start
    with pytest.raises(UserError, match="not a readable safetensors file") as caught:
        load(file.parent)
    assert "rm -r" not in str(caught.value)  # Nobody makes a folder again that was given by its path.
    subprocess.run(shlex.split(command), check=True)
    same(load(NAME)[1], variables)


def test_class_names_are_those_of_the_table(server, monkeypatch):
    labels = dataclasses.replace(VOC, names=VOC.names[:5], palette=VOC.palette[:5])
    add(monkeypatch, server, server.files[ENTRY.file], labels=labels)
    info = load(NAME)[2]
    assert info["class_names"] == list(VOC.names[:5])
    assert info["palette"] == [list(colour) for colour in VOC.palette[:5]]


@pytest.mark.parametrize("licence", [published.NON_COMMERCIAL, published.UNKNOWN])
def test_a_licence_that_needs_a_look_is_said(server, monkeypatch, capsys, licence):
    add(monkeypatch, server, server.files[ENTRY.file], licence=licence)
    load(NAME)
    assert f"{NAME}: its licence is {licence}; see {server.address}" in capsys.readouterr().err


def test_an_unknown_name_shows_the_nearest():
    with pytest.raises(UserError, match=r"did you mean torchvision/deeplabv3_resnet101_coco"):
        load("torchvision/deeplabv3_resnet101_coc")
    with pytest.raises(UserError, match="no such folder; give a model folder or a run directory$"):
        load("runs/none")
    with pytest.raises(
        UserError, match=r"or a name of published weights: choose from .*imagenet.* weights imagenet\)$"
    ):
        load("imagenet")
    with pytest.raises(UserError, match="neither a path nor a name of published weights: did you mean"):
        load("deeplabv3_resnet101_coco")


def test_a_folder_comes_before_a_name(server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no model\.json in it"):
        load(NAME)


def test_predict_and_training_take_a_name(server, tmp_path, capsys):
    image = tmp_path / "photo.png"
    write_image(image, np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8))
    assert main(["predict", "--model", NAME, "--out", str(tmp_path / "out"), str(image)]) == 0
    assert (tmp_path / "out" / "photo.png").is_file()
    config = tiny_config()
    config.init, config.init_scope = NAME, "backbone"
    deeplab_jax.train(config, tmp_path / "run")
    assert f"from {NAME} (scope backbone)" in capsys.readouterr().out


def test_convert_takes_a_name(server, tmp_path, capsys):
    words = ["--num_classes", "2", "--reinit", "head", "--out", str(tmp_path / "two")]
    assert main(["convert", NAME, *words]) == 0
    info = json.loads((tmp_path / "two" / "model.json").read_text())["info"]
    assert (info["provenance"]["name"], info["source"]["file"]) == (NAME, ENTRY.file)
    assert main(["convert", "~somebody/x.pth", "--out", str(tmp_path / "x")]) == 2
    for slip in (
        "torchvision/deeplabv3_resnet101_coc",
        "torchvison/deeplabv3_resnet101_coco",
        "deeplabv3_resnet101_coco",
    ):
        assert main(["convert", slip, "--out", str(tmp_path / "x")]) == 2
        assert "did you mean torchvision/deeplabv3_resnet101_coco" in capsys.readouterr().err


def test_summarize_says_where_weights_come_from(server, capsys):
    assert main(["summarize", NAME, "--size", "65"]) == 0
    out = capsys.readouterr().out
    assert "cascade_tiny" in out
    assert f"address: {server.address}{ENTRY.file}\n" in out
    assert "licence: BSD-3-Clause\n" in out


def test_the_verb_lists_names_and_what_is_here(server, capsys):
    load(NAME)
    capsys.readouterr()
    assert main(["weights", "--json", "tiny"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["here"], row["figure"]) == (NAME, True, "mIoU 12.3")
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PUBLISHED)
    assert main(["weights", "deeplabv9"]) == 2


def test_the_official_tflite_goes_through_the_same_door(monkeypatch, tmp_path):
    """A folder of files is a mirror; the SHA-256 of this file is known in full."""
    name = "tensorflow/deeplabv3_257_mv_gpu"
    shared = Path(__file__).parents[3] / "shared" / "weights"
    if not (shared / PUBLISHED[name].file).is_file():
        pytest.skip("the official .tflite is not here")
    monkeypatch.setenv(download.FOLDER, str(tmp_path))
    monkeypatch.setenv(download.MIRRORS, shared.as_uri())
    monkeypatch.setenv(download.OFFLINE, "1")
    _, variables, info = load(name)
    assert info["class_names"] == list(VOC.names)
    parameters = sum(value.size for value in jax.tree.leaves(variables["params"]))
    assert parameters / 1e6 == pytest.approx(PUBLISHED[name].parameters, abs=0.01)


def test_an_archive_of_the_model_zoo(tmp_path):
    """It is read like the checkpoint in it."""
    prefix = copy("saver", tmp_path)
    with tarfile.open(tmp_path / "zoo.tar.gz", "w:gz") as archive:
        for file in sorted(tmp_path.glob(f"{prefix.name}.*")):
            archive.add(file, f"deeplab/{file.name}")
    with pytest.raises(UserError, match=r"belong to no network"):
        convert(tmp_path / "zoo.tar.gz")


def test_every_entry_is_complete():
    names = set(model_names())
    for name, entry in PUBLISHED.items():
        assert entry.network in names, name
        assert re.fullmatch(r"[0-9a-f]*", entry.sha256), name
        first, *others = entry.addresses
        assert first.startswith("https://")
        assert all(address.startswith(("https://", "http://download.tensorflow.org/")) for address in others)
        assert re.fullmatch(r"[\w.-]+", entry.file), name
    files = [entry.file for entry in PUBLISHED.values()]
    assert len(set(files)) == len(files)
