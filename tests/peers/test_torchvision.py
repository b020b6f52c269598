"""torchvision's networks compute the same here from the same tensors, and theirs from ours."""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.export_state_dict import export_state_dict, write_state_dict
from deeplab_jax.weights.fill_variables import fill_variables
from deeplab_jax.weights.importers import imagenet
from deeplab_jax.weights.importers.torchvision import NETWORKS, network
from tests.peers.backbones import STAGES, assert_same_fc7, assert_same_features, zeros
from tests.peers.parity import (
    assert_same_logits,
    import_peer,
    random_images,
    randomise,
    run_peer,
    settle,
    state_dict,
)

torch = import_peer("torch")
torchvision = import_peer("torchvision")

RESNETS = [name for name in NETWORKS if "resnet" in name]
MOBILENETS = [name for name in NETWORKS if "mobilenet" in name]
SIZES = [(513, 513), (321, 241), (97, 131)]
# A map of more than 36 samples, so that the outer taps of the largest rate see something, and of few columns.
TALL = {8: (305, 41), 16: (601, 49)}


def has_aux(name: str) -> bool:
    return not name.startswith("lraspp")


def build(name: str, *, output_stride: int | None = None, num_classes: int = 21, aux: bool = True) -> Any:
    """A random network of torchvision's; at its own output stride by its public function."""
    models = torchvision.models
    aux = aux and has_aux(name)
    if output_stride in (None, NETWORKS[name]):
        options = {"aux_loss": aux} if has_aux(name) else {}
        make = getattr(models.segmentation, name)
        return settle(make(weights=None, weights_backbone=None, num_classes=num_classes, **options))
    architecture, resnet = name.split("_")
    dilated = [False, output_stride <= 8, output_stride <= 16]
    backbone = getattr(models, resnet)(weights=None, replace_stride_with_dilation=dilated)
    module = getattr(models.segmentation, architecture)
    return settle(getattr(module, f"_{architecture}_resnet")(backbone, num_classes, aux))


def run(model: Segmenter, variables: Variables, images: np.ndarray) -> tuple[jax.Array, Any]:
    """Return the logits, and those of the auxiliary head or None."""

    @jax.jit
    def apply(variables: Any, images: Any) -> Any:
        logits, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
        return logits, sown.get("intermediates", {}).get("aux")

    logits, aux = apply(variables, images)
    return logits, aux[0] if aux else None


def assert_same(peer: Any, model: Segmenter, variables: Variables, size: tuple[int, int]) -> None:
    images = random_images(*size)
    theirs = run_peer(peer, images)
    logits, aux = run(model, variables, images)
    assert_same_logits(logits, theirs["out"])
    assert (aux is not None) == ("aux" in theirs)
    if aux is not None:
        assert_same_logits(aux, theirs["aux"])


@lru_cache(maxsize=1)
def converted(name: str, output_stride: int) -> tuple[Any, Segmenter, Variables]:
    peer = build(name, output_stride=output_stride)
    model, variables, _ = convert(state_dict(peer), kind="torchvision", output_stride=output_stride)
    return peer, model, variables


def slow_if(names: Iterable[str], *slow: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def assert_comes_back(tensors: dict[str, np.ndarray], model: Segmenter, variables: Variables) -> None:
    exported = export_state_dict(model, variables, kind="torchvision")
    assert exported.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert exported[key].dtype == tensor.dtype, key
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)


@pytest.mark.parametrize(
    "name", slow_if(NETWORKS, "deeplabv3_resnet101", "fcn_resnet101", "fcn_resnet50", "deeplabv3_mobilenet_v3_large")
)
def test_the_same_logits_at_its_own_output_stride_and_every_tensor_comes_back(name: str) -> None:
    """Without asking for the kind or the output stride."""
    peer = build(name, num_classes=5)
    tensors = state_dict(peer)
    model, variables, info = convert(tensors)
    source = info["source"]
    assert (source["kind"], source["random"], source["mismatched"]) == ("torchvision", [], [])
    assert source["unused"] == [key for key in tensors if key.endswith("num_batches_tracked")]
    assert source["tensors"] + len(source["unused"]) == len(tensors)
    assert (model.output_stride, model.num_classes) == (NETWORKS[name], 5)
    assert_same(peer, model, variables, TALL[model.output_stride])
    assert_comes_back(tensors, model, variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if has_aux(name)])
def test_without_the_auxiliary_head(name: str) -> None:
    peer = build(name, aux=False)
    tensors = state_dict(peer)
    model, variables, info = convert(tensors)
    assert "class_names" not in info  # Random weights of 21 classes.
    assert_same(peer, model, variables, (97, 131))
    assert_comes_back(tensors, model, variables)


@pytest.mark.slow
@pytest.mark.parametrize("size", [*SIZES, TALL[16], TALL[16][::-1]], ids=str)
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", RESNETS)
def test_the_same_logits_of_resnets(name: str, output_stride: int, size: tuple[int, int]) -> None:
    assert_same(*converted(name, output_stride), size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [*SIZES, TALL[16], TALL[16][::-1]], ids=str)
@pytest.mark.parametrize("name", MOBILENETS)
def test_the_same_logits_of_mobilenets(name: str, size: tuple[int, int]) -> None:
    assert_same(*converted(name, 16), size)


def fresh(name: str, **options: Any) -> tuple[Segmenter, Variables]:
    """A model of ours and variables as training starts with, but for a classifier that is not close to zero."""
    model = create_model(name, num_classes=4, output_stride=NETWORKS[name], **options)
    rng = np.random.default_rng(0)

    def initial(path: Any, leaf: Any) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            return rng.normal(size=leaf.shape, scale=(2 / np.prod(leaf.shape[:-1])) ** 0.5).astype(np.float32)
        return np.full(leaf.shape, float(kind in ("scale", "var")), np.float32)

    return model, jax.tree_util.tree_map_with_path(initial, abstract_variables(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "lraspp_mobilenet_v3_large",
        pytest.param("fcn_resnet50", marks=pytest.mark.slow),
        pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow),
        pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.slow),
    ],
)
def test_a_fresh_model_of_torchvisions_form_runs_there(name: str, tmp_path: Path) -> None:
    """Their own `load_state_dict` takes what either file holds."""
    deeplab = name.startswith("deeplab")
    options = network(name, num_classes=4, aux_head=True).options if deeplab else {"norm_momentum": 0.99}
    model, variables = fresh(name, **options)
    tensors = export_state_dict(model, variables, kind="torchvision")
    safetensors = pytest.importorskip("safetensors.torch")
    loaded = {
        "a.pth": torch.load(write_state_dict(tmp_path / "a.pth", tensors), weights_only=True),
        "a.safetensors": safetensors.load_file(write_state_dict(tmp_path / "a.safetensors", tensors)),
    }
    make = getattr(torchvision.models.segmentation, name)
    peer = make(weights=None, weights_backbone=None, num_classes=4, **({"aux_loss": True} if deeplab else {}))
    for state in loaded.values():
        assert {key: tensor.dtype for key, tensor in state.items()} == {
            key: tensor.dtype for key, tensor in peer.state_dict().items()
        }
        randomise(peer)
        peer.load_state_dict(state, strict=True)
        for key, tensor in state_dict(peer).items():
            np.testing.assert_array_equal(tensor, tensors[key], err_msg=key)
    assert_same(peer.eval(), model, variables, (97, 131))


@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_reads_the_file_in_either_way(mmap: bool, tmp_path: Path) -> None:
    tensors = {
        "scalar": np.asarray(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "kernel": np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1),
        "long": np.asarray([-(2**62), 2**62]),
    }
    loaded = torch.load(write_state_dict(tmp_path / "a.pt", tensors), weights_only=True, mmap=mmap)
    assert list(loaded) == list(tensors)
    for key, tensor in tensors.items():
        assert loaded[key].is_contiguous()
        assert not loaded[key].requires_grad
        assert loaded[key].numpy().dtype == tensor.dtype
        np.testing.assert_array_equal(loaded[key].numpy(), tensor)


AT_RANDOM = {"vgg16": {"decoder"}, "vgg16_bn": {"decoder", "classifier"}}
UNUSED = {"mobilenet_v2": {"features", "classifier"}}


def classifier(name: str) -> Any:
    """An ImageNet classifier with random weights; VGG-16's of a tenth of a gigabyte are thin."""
    if not name.startswith("vgg"):
        return settle(getattr(torchvision.models, name)(weights=None))
    vgg = torchvision.models.vgg
    network = vgg.VGG(vgg.make_layers(vgg.cfgs["D"], batch_norm=name.endswith("bn")), init_weights=False)
    linear = torch.nn.Linear
    network.classifier = torch.nn.Sequential(
        linear(512 * 7 * 7, 24), torch.nn.ReLU(), torch.nn.Dropout(), linear(24, 24), torch.nn.ReLU(),
        torch.nn.Dropout(), linear(24, 10),
    )  # fmt: skip
    return settle(network)


@pytest.mark.parametrize(
    "name",
    slow_if(STAGES, "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large", "vgg16", "vgg16_bn"),
)
def test_an_imagenet_classifier_gives_its_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At output stride 32 and without multi-grid; odd sizes but for VGG-16, whose poolings round down."""
    monkeypatch.setattr("deeplab_jax.weights.fill_variables._random", zeros)
    peer = classifier(name)
    model, variables, info = convert(state_dict(peer), output_stride=32, num_classes=3)
    source = info["source"]
    assert (source["kind"], source["mismatched"]) == ("imagenet", [])
    assert model.num_classes == 3
    assert model.preprocessing == create_model("deeplabv3_resnet50").preprocessing
    assert {path.split("/")[1] for path in source["random"]} == AT_RANDOM.get(
        name, {"context", "decoder", "classifier"}
    )
    unused = {key.split(".")[0] for key in source["unused"] if not key.endswith("num_batches_tracked")}
    assert unused == ({"fc"} if "resnet" in name else UNUSED.get(name, {"classifier"}))

    images = random_images(*((224, 224) if name.startswith("vgg") else (65, 97)))
    theirs, ours = assert_same_features(name, peer, model, variables, images)
    if name == "vgg16":
        assert_same_fc7(peer.classifier[:5](theirs["pool5"].flatten(1)), ours, channels=24)


def test_a_thin_mobilenet_v2_has_the_shortcuts_of_equal_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """At width 0.25 the stem and conv1 both have 8 channels. `convert` takes width 1 only, so the map is made here."""
    monkeypatch.setattr("deeplab_jax.weights.fill_variables._random", zeros)
    peer = settle(torchvision.models.mobilenet_v2(weights=None, width_mult=0.25))
    found = imagenet.recognise({"features.18.0.weight": (1280, 320, 1, 1)}, output_stride=32)
    assert found is not None
    thin = replace(found, options={**found.options, "width": 0.25})
    model, variables, report = fill_variables(thin, state_dict(peer), source="torchvision")
    assert report["mismatched"] == []
    assert_same_features("mobilenet_v2", peer, model, variables, random_images(65, 97))


def test_timms_resnet_has_the_same_names_and_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplab_jax.weights.fill_variables._random", zeros)
    timm = import_peer("timm")
    peer = timm.create_model("resnet18")
    model, _, info = convert(state_dict(peer))
    assert (info["source"]["kind"], info["source"]["mismatched"]) == ("imagenet", [])
    epsilons = {module.eps for module in peer.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert epsilons == {model.backbone.settings.norm_epsilon}


def test_an_exchanged_head_with_one_logit() -> None:
    """`classifier = DeepLabHead(960, 1)` in a network whose auxiliary head keeps its 21 classes."""
    name = "deeplabv3_mobilenet_v3_large"
    peer = build(name)
    peer.classifier = torchvision.models.segmentation.deeplabv3.DeepLabHead(960, 1)
    images = random_images(97, 131)
    expected = run_peer(settle(peer), images)["out"]
    model, variables, info = convert(state_dict(peer))
    logits, _ = run(model, variables, images)
    assert_same_logits(logits, expected)
    assert model.activation == "sigmoid" and info["class_names"] == ["background", "object"]
