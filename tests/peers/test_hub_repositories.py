"""Repositories as the peers themselves write them, loaded as `hf://owner/repo` from a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deeplab_jax.weights.by_name import load
from tests.peers.backbones import assert_same_features, zeros
from tests.peers.parity import assert_same_logits, import_peer, random_images, randomise, run_peer, settle
from tests.support.hub import HubServer, Repository, hub_here


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with hub_here(tmp_path) as here:
        yield here


def commit(server: HubServer, folder: Path) -> set[str]:
    """Put a folder into the repository peer/network, and return its files' names."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    server.repositories["peer/network"] = Repository()
    server.repositories["peer/network"].commit(files)
    return set(files)


def run(model: Any, variables: Any, images: np.ndarray, **options: Any) -> Any:
    return jax.jit(lambda v, x: model.apply(v, x, train=False, **options))(variables, images)


def test_transformers_in_several_files(server: HubServer, tmp_path: Path) -> None:
    transformers = import_peer("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, output_stride=8, num_labels=3)
    config.id2label = {0: "road", 1: "roof", 2: "tree"}
    peer = randomise(transformers.MobileNetV2ForSemanticSegmentation(config))
    peer.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
    files = commit(server, tmp_path / "saved")
    assert "model.safetensors.index.json" in files and "model.safetensors" not in files
    model, variables, info = load("hf://peer/network")
    assert (info["class_names"], model.output_stride) == (["road", "roof", "tree"], 8)
    images = random_images(65, 97)
    ours = run(model, variables, images, method="coarse_logits")
    assert_same_logits(ours, run_peer(peer, images).logits)


@pytest.mark.slow
def test_segmentation_models_pytorch(server: HubServer, tmp_path: Path) -> None:
    smp = import_peer("segmentation_models_pytorch")
    peer = randomise(
        smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=5, decoder_atrous_rates=(6, 12, 18))
    )
    peer.save_pretrained(tmp_path / "saved")
    assert {"config.json", "model.safetensors", "README.md"} <= commit(server, tmp_path / "saved")
    model, variables, info = load("hf://peer/network")
    assert info["source"]["kind"] == "smp"
    images = random_images(64, 96)
    assert_same_logits(run(model, variables, images), run_peer(peer, images))


@pytest.mark.slow
def test_timm(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_peer("timm")
    monkeypatch.setattr("deeplab_jax.weights.fill_variables._random", zeros)
    peer = settle(timm.create_model("resnet18"))
    timm.models.save_for_hf(peer, tmp_path / "saved", model_config={"num_classes": 1000}, safe_serialization="both")
    assert {"config.json", "model.safetensors"} <= commit(server, tmp_path / "saved")
    model, variables, info = load("hf://peer/network")
    assert info["source"]["kind"] == "imagenet"
    assert_same_features("resnet18", peer, model, variables, random_images(65, 97))
