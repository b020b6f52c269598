"""`hf://owner/repo`: from a hub on this machine, through the real huggingface_hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

import deeplab_jax
from deeplab_jax.cli import main
from deeplab_jax.data.images import write_image
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights import by_name, download, folder, hub
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.convert import IMPORTERS, Importer, convert
from tests.support.hub import Repository, hub_here
from tests.support.tiny import filled, tiny_config, tiny_models
from tests.weights import test_convert as tiny_network
from tests.weights.test_by_name import same

huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")

NAME = "hf://me/tiny"
CARD = b"---\nlicense: apache-2.0\n---\nA network.\n"


def saved(**changes):
    """The files of a repository as transformers, timm and segmentation_models_pytorch write them."""
    files = {"model.safetensors": to_safetensors(tiny_network.make_tensors()), "config.json": b"{}", "README.md": CARD}
    files |= {"pytorch_model.bin": b"the same weights once more", ".gitattributes": b""}
    return {name: content for name, content in {**files, **changes}.items() if content is not None}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub with the repository me/tiny."""
    monkeypatch.setitem(IMPORTERS, "tiny", Importer(tiny_network.recognise))
    with hub_here(tmp_path) as here, tiny_models():
        here.repositories["me/tiny"] = Repository()
        here.repositories["me/tiny"].commit(saved())
        yield here


def files_asked(server):
    return sorted(
        path.rpartition("/")[2] for method, path in server.requests if "/resolve/" in path and method == "GET"
    )


def test_a_repository_is_fetched_and_converted_once(server, capsys):
    commit = server.repositories["me/tiny"].branches["main"]
    model, variables, info = deeplab_jax.load(NAME)
    same(variables, convert(tiny_network.make_tensors())[1])
    assert (model.num_classes, model.output_stride) == (5, 16)
    assert info["provenance"] == {
        "name": f"hf://me/tiny@{commit}",
        "address": f"{server.address}/me/tiny/tree/{commit}",
        "revision": commit,
        "licence": "apache-2.0",
        "converted_by": by_name._converter(),
    }
    assert files_asked(server) == ["README.md", "config.json", "model.safetensors"]
    assert f"fetching {server.address}/me/tiny/tree/{commit}, 0.0 MiB" in capsys.readouterr().err
    server.requests.clear()
    same(load(NAME)[1], variables)
    assert files_asked(server) == []
    assert capsys.readouterr() == ("", "")


def test_a_branch_moves_and_a_commit_stays(server):
    first = server.repositories["me/tiny"].branches["main"]
    before = load(NAME)[1]
    changed = tiny_network.make_tensors(**{"score.bias": np.arange(5, dtype=np.float32)})
    server.repositories["me/tiny"].commit({"model.safetensors": to_safetensors(changed)})
    np.testing.assert_array_equal(load(NAME)[1]["params"]["classifier"]["bias"], np.arange(5))
    same(load(f"{NAME}@{first}")[1], before)
    same(load(f"{NAME}@main")[1], load(NAME)[1])


def test_weights_in_several_files(server):
    tensors = tiny_network.make_tensors()
    parts = {
        "model-00001-of-00002.safetensors": {name: value for name, value in tensors.items() if "bn" in name},
        "model-00002-of-00002.safetensors": {name: value for name, value in tensors.items() if "bn" not in name},
    }
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    server.repositories["me/parts"] = Repository()
    files = {file: to_safetensors(some) for file, some in parts.items()}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "model.fp16-00001-of-00002.safetensors": b""}
    server.repositories["me/parts"].commit(saved(**files, **{"model.safetensors": None}))
    same(load("hf://me/parts")[1], convert(tensors)[1])
    assert "pytorch_model.bin" not in files_asked(server)
    assert "model.fp16-00001-of-00002.safetensors" not in files_asked(server)


def test_a_model_folder_of_ours(server, tmp_path, capsys):
    model = create_model("cascade_tiny", num_classes=3)
    variables = filled(model, 1)
    info = {"class_names": ["a", "b", "c"], "provenance": {"name": "timm/resnet18.a1_in1k"}, "source": {"kind": "x"}}
    made = deeplab_jax.save(tmp_path / "made", model, variables, info)
    server.repositories["me/own"] = Repository()
    server.repositories["me/own"].commit({path.name: path.read_bytes() for path in made.iterdir()})
    loaded, loaded_variables, loaded_info = load("hf://me/own")
    assert loaded == model
    same(loaded_variables, variables)
    assert (loaded_info["class_names"], loaded_info["source"]) == (["a", "b", "c"], {"kind": "x"})
    assert loaded_info["provenance"]["before"] == {"name": "timm/resnet18.a1_in1k"}
    assert loaded_info["provenance"]["licence"] == "unknown"
    assert "hf://me/own: its licence is unknown; see http://" in capsys.readouterr().err


def test_every_verb_takes_it(server, tmp_path, capsys):
    image = tmp_path / "photo.png"
    write_image(image, np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8))
    assert main(["predict", "--model", NAME, "--out", str(tmp_path / "out"), str(image)]) == 0
    assert (tmp_path / "out" / "photo.png").is_file()
    assert main(["convert", NAME, "--num_classes", "2", "--reinit", "head", "--out", str(tmp_path / "two")]) == 0
    assert folder.load(tmp_path / "two")[2]["provenance"]["name"].startswith("hf://me/tiny@")
    assert main(["summarize", NAME, "--size", "65"]) == 0
    assert "licence: apache-2.0\n" in capsys.readouterr().out
    config = tiny_config()
    config.init, config.init_scope = NAME, "backbone"
    deeplab_jax.train(config, tmp_path / "run")
    assert f"from {NAME} (scope backbone)" in capsys.readouterr().out


def test_offline_takes_what_is_here(server, monkeypatch):
    monkeypatch.setenv(download.OFFLINE, "1")
    with pytest.raises(UserError, match=r"DEEPLAB_JAX_OFFLINE is set, and .*theirs holds no copy; unset"):
        load(NAME)
    assert not server.requests
    monkeypatch.delenv(download.OFFLINE)
    variables = load(NAME)[1]
    server.requests.clear()
    monkeypatch.setenv(download.OFFLINE, "1")
    same(load(NAME)[1], variables)
    shutil.rmtree(download.cache_folder())  # As if another program had fetched it.
    same(load(NAME)[1], variables)
    with pytest.raises(UserError, match=r"DEEPLAB_JAX_OFFLINE is set"):
        load(f"{NAME}@other")
    with pytest.raises(UserError, match="hf://me/a--b: no name that a repository can have"):
        load("hf://me/a--b")
    assert not server.requests


def unreachable(server, monkeypatch, status):
    server.down = status
    if not status:
        server.server_close()


@pytest.mark.parametrize("status", [0, 503])
def test_without_a_connection_what_is_here_is_taken(server, monkeypatch, capsys, status):
    variables = load(NAME)[1]
    capsys.readouterr()
    unreachable(server, monkeypatch, status)
    same(load(NAME)[1], variables)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if NAME in line]
    commit = server.repositories["me/tiny"].branches["main"]
    assert line.startswith(f"{NAME}: {server.address} cannot be reached (")
    assert line.endswith(f"commit {commit[:12]} is here")
    with pytest.raises(UserError, match=r"cannot be reached \(.*\), and .* holds no copy; check the connection"):
        load("hf://me/other")


def one_line(capsys, *words):
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deeplab-jax: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://me", "no address of a repository; write hf://owner/repo[@revision]"),
        ("hf://me/tiny/model.safetensors", "no address of a repository; write"),
        ("hf://me/a--b", "no name that a repository can have"),
        ("hf://me/none", "no such repository at http://127.0.0.1"),
        ("hf://me/tiny@v9", "the repository has no revision 'v9'; http://127.0.0.1"),
        ("hf://me/gated", "gated; ask for access at http://127.0.0.1"),
        ("hf://me/empty", "it holds no files; other files go through hf download"),
        (
            "hf://me/other",
            "it holds best.pth, model.json, notes/run.txt, odd?[2J; other files go through hf download, then convert",
        ),
        ("hf://me/broken", "not a readable safetensors file"),
    ],
)
def test_faults_are_one_line(server, capsys, name, words):
    for repository, files in {
        "gated": saved(),
        "empty": {"README.md": CARD},
        "other": {"best.pth": b"", "notes/run.txt": b"", "model.json": b"{}", "odd\x1b[2J": b""},
        "broken": saved(**{"model.safetensors": b"12345678{"}),
    }.items():
        server.repositories[f"me/{repository}"] = Repository(gated=repository == "gated")
        server.repositories[f"me/{repository}"].commit(files)
    line = one_line(capsys, "summarize", name)
    assert words in line
    if name != "hf://me/broken":
        assert line.startswith(f"deeplab-jax: {name}: ")


def test_weights_that_are_too_large_are_not_fetched(server, monkeypatch):
    monkeypatch.setattr(hub, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"its weights are \d+ bytes, and 1000 are the limit"):
        load(NAME)
    assert files_asked(server) == []


def test_without_the_package_the_message_names_it(server, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = one_line(capsys, "summarize", NAME)
    assert line.endswith("needs huggingface_hub, which is not installed; type pip install huggingface_hub")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "other (mine)"),
        ("---\nlicense: [a, b]\n---\n", "unknown"),
        ("---\nlicense: {\n---\n", "unknown"),
        ('---\nlicense: "a\\x1b[2J"\n---\n', "unknown"),
        ("no front matter", "unknown"),
        ("---\n- a list\n---\n", "unknown"),
    ],
)
def test_licences_of_cards(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert hub.licence_of(huggingface_hub, tmp_path / "README.md") == licence
    assert hub.licence_of(huggingface_hub, tmp_path / "none.md") == "unknown"


def test_a_branch_that_moves_meanwhile_is_said(server, monkeypatch):
    fetch = huggingface_hub.hf_hub_download
    repository = server.repositories["me/tiny"]

    def slow(*words, **options):
        path = fetch(*words, **options)
        repository.commit({"notes.txt": b"new"})
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    with pytest.raises(UserError, match=r"hf://me/tiny: has changed while it was fetched; start again"):
        load(NAME)


@pytest.mark.slow
def test_the_environment_names_another_hub(server, tmp_path):
    """In a process of its own: huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported."""
    model = create_model("deeplabv3_mobilenet_v2", width=0.125)
    made = deeplab_jax.save(tmp_path / "made", model, filled(model), {})
    server.repositories["me/own"] = Repository()
    server.repositories["me/own"].commit(
        {path.name: path.read_bytes() for path in made.iterdir()} | {"README.md": CARD}
    )
    env = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}
    for name, code, words in (
        ("hf://me/own", 0, f"address: {server.address}/me/own/tree/"),
        ("hf://me/none", 2, f"hf://me/none: no such repository at {server.address}"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "deeplab_jax", "summarize", name, "--size", "65"],
            env=env,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == code
        assert words in done.stdout + done.stderr
    assert (tmp_path / "home" / "hub" / "models--me--own").is_dir()


def test_a_fetch_that_breaks_off_leaves_no_half_network(server, monkeypatch):
    """Weights without the config.json beside them would be another network."""
    real = huggingface_hub.hf_hub_download

    def broken(repository, file, **options):
        if file == "config.json":
            raise ConnectionError("cut off")
        return real(repository, file, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(UserError, match="cannot be reached .*holds no copy; check the connection"):
        load(NAME)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", real)
    assert load(NAME)[2]["provenance"]["licence"] == "apache-2.0"


def test_the_weights_are_fetched_last():
    names = ["README.md", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"]
    index = "model.safetensors.index.json"
    assert hub.wanted([index, *names], name=NAME) == ["README.md", "config.json", *names[1:3], index]
    ours = ["weights.safetensors", "model.json", "README.md"]
    assert hub.wanted(ours, name=NAME) == ["README.md", "model.json", "weights.safetensors"]
    preset = ["task.json", "config.json", "image_converter.json", "task.weights.h5", "model.weights.h5"]
    others = ["metadata.json", "preprocessor.json"]
    assert hub.wanted([*others, *preset[::-1]], name=NAME) == ["config.json", "task.json", *preset[2:]]
