"""Published weights by name: the peer's logits, from a file with the published name and the published tensors' names.

The values are random. A mirror holds the file, so nothing is fetched. Of a classifier the features are compared.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from deeplab_jax.weights import download
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.published import PUBLISHED
from tests.peers.backbones import STAGES, assert_same_fc7, assert_same_features, zeros
from tests.peers.parity import assert_same_logits, import_peer, random_images, run_peer, settle
from tests.peers.published_peers import NAMES, make
from tests.weights.published_tensors import shapes_of

torch = import_peer("torch")
safetensors = pytest.importorskip("safetensors.torch")

FAST = ("torchvision/lraspp_mobilenet_v3_large_coco", "timm/resnet18.a1_in1k")


@pytest.fixture
def folder() -> Iterator[Path]:
    """pytest would keep its own folders, in all 20 GB."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def runner(name: str, network: Any) -> Any:
    """The network as its users run it: smp puts a classifier's tensors into an encoder of its own."""
    if not name.startswith("smp/"):
        return network
    encoder = import_peer("segmentation_models_pytorch").encoders.get_encoder(encoder_of(name), weights=None)
    encoder.load_state_dict(dict(network.state_dict()))
    return encoder.eval()


def encoder_of(name: str) -> str:
    return name.partition("/")[2].partition(".")[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES])
def test_a_name_gives_the_peers_logits(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    torch.manual_seed(0)
    entry = PUBLISHED[name]
    network = settle(make(name))
    tensors = network.state_dict()
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes_of(name)
    save = safetensors.save_file if entry.file.endswith(".safetensors") else torch.save
    save(tensors, folder / entry.file)
    monkeypatch.setenv(download.FOLDER, str(folder / "cache"))
    monkeypatch.setenv(download.MIRRORS, folder.as_uri())
    monkeypatch.setenv(download.OFFLINE, "1")
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(entry, sha256=""))  # That of the real values.
    monkeypatch.setattr("deeplab_jax.weights.fill_variables._random", zeros)

    model, variables, info = load(name)

    assert (info["provenance"]["name"], info["source"]["mismatched"]) == (name, [])
    peer = runner(name, network)
    if entry.labels is None:
        compare_features(name, peer, model, variables)
        return
    assert info["class_names"] == list(entry.labels.names)
    images = random_images(97, 131)
    if name.startswith("google/"):
        coarse = jax.jit(lambda v, x: model.apply(v, x, train=False, method="coarse_logits"))
        assert_same_logits(coarse(variables, images), run_peer(peer, images).logits)
        return
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert_same_logits(ours, run_peer(peer, images)["out"])


def compare_features(name: str, peer: Any, model: Any, variables: Any) -> None:
    encoder = encoder_of(name)
    assert encoder in STAGES
    images = random_images(*((224, 224) if encoder.startswith("vgg") else (65, 97)))
    theirs, ours = assert_same_features(encoder, peer, model, variables, images)
    if encoder == "vgg16" and not name.startswith("smp/"):  # Whose encoder has no fc6 and fc7.
        fc7 = (
            peer.pre_logits(theirs["pool5"])
            if name.startswith("timm/")
            else peer.classifier[:5](theirs["pool5"].flatten(1))
        )
        assert_same_fc7(fc7, ours, channels=4096)
