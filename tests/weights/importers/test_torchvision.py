"""What needs no PyTorch: torchvision's names and shapes, the recipes, the refusals, and the files that are written."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.weights import export_state_dict as export
from deeplab_jax.weights.export_state_dict import export_state_dict, write_state_dict
from deeplab_jax.weights.fill_variables import fill_variables
from deeplab_jax.weights.formats.torch_file import read_torch
from deeplab_jax.weights.importers import imagenet, torchvision
from deeplab_jax.weights.tensor_map import TORCH, their_name
from tests.support.tiny import filled
from tests.weights.published_tensors import shapes_of

LRASPP = "lraspp_mobilenet_v3_large"


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """`create_model` traces the network to check its output stride; these are known."""
    monkeypatch.setattr("deeplab_jax.models.catalog.check_output_stride", lambda model, **_: None)


@pytest.mark.parametrize(
    "name", [name if name == LRASPP else pytest.param(name, marks=pytest.mark.slow) for name in torchvision.NETWORKS]
)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    tensor_map = torchvision.network(name, num_classes=21, aux_head=True)
    model = tensor_map.model()
    shapes = {key: tensor.shape for key, tensor in export_state_dict(model, filled(model), kind="torchvision").items()}
    assert shapes == shapes_of(f"torchvision/{name}_coco")
    found = torchvision.recognise(shapes, output_stride=None)
    assert found is not None
    assert (found.name, found.options, found.num_classes) == (name, tensor_map.options, 21)
    assert imagenet.recognise(shapes, output_stride=None) is None


@pytest.mark.parametrize(
    ("output_stride", "rates"), [(None, (6, 12, 18)), (4, (3, 6, 9)), (8, (6, 12, 18)), (16, (12, 24, 36))]
)
def test_its_rates_are_the_same_at_any_output_stride(output_stride: int | None, rates: tuple[int, ...]) -> None:
    """Ours are stated at 16."""
    tensor_map = torchvision.network("deeplabv3_resnet50", num_classes=21, output_stride=output_stride)
    assert tensor_map.options["aspp_rates"] == rates


def test_an_output_stride_without_whole_rates_is_refused() -> None:
    with pytest.raises(UserError, match="output_stride=2: torchvision's rates"):
        torchvision.network("deeplabv3_resnet50", num_classes=21, output_stride=2)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "deeplabv3plus_mobilenet_v3_large",
        {},
        "'deeplabv3plus_mobilenet_v3_large' is none of torchvision's: deeplabv3_resnet50",
    ),
    (LRASPP, {"output_stride": 8}, "output_stride=8: torchvision runs lraspp_mobilenet_v3_large at 16"),
    (LRASPP, {"context_channels": 64}, "context_channels=64, torchvision leaves it out"),
    (LRASPP, {"align_corners": True}, "align_corners=True, torchvision has align_corners=False"),
    (LRASPP, {"aux_head": True}, "aux_head=True, torchvision leaves it out"),
    (LRASPP, {"norm_epsilon": 1e-5}, "norm_epsilon=1e-05, torchvision leaves it out"),
    (LRASPP, {"norm": "none"}, "norm='none', torchvision leaves it out"),
    (LRASPP, {"mean": (0.0, 0.0, 0.0)}, "mean=[0.0, 0.0, 0.0], torchvision leaves it out"),
    (LRASPP, {"image_pyramid": (1.0, 0.5), "fusion": "max"}, "fusion='max', torchvision leaves it out"),
    (
        "deeplabv3_mobilenet_v3_large",
        {"align_corners": False},
        "aspp_rates is left out, torchvision has aspp_rates=(12, 24, 36)",
    ),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_the_first_option_that_differs_is_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        export_state_dict(create_model(name, **options), {}, kind="torchvision")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_training_and_speed_do_not_matter() -> None:
    options: dict[str, Any] = {"norm": "frozen", "norm_momentum": 0.5, "dtype": "bfloat16", "lowering": "direct"}
    model = create_model(LRASPP, num_classes=3, value_range=(0.0, 1.0), **options)
    exported = export_state_dict(model, filled(model), kind="torchvision")
    assert exported["classifier.low_classifier.weight"].shape == (3, 40, 1, 1)
    assert all(tensor.flags["C_CONTIGUOUS"] for tensor in exported.values())


def test_variables_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="variables: does not fit the model"):
        export_state_dict(create_model(LRASPP), {"params": {"classifier": np.zeros(3)}}, kind="torchvision")


STATE = {
    "kernel": np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "count": np.asarray(3, np.int64),
    "empty": np.zeros((0, 2), np.float32),
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_written_file_holds_the_tensors(suffix: str, tmp_path: Path) -> None:
    file = write_state_dict(tmp_path / "new" / f"a{suffix}", STATE)
    loaded = load_file(str(file)) if suffix == ".safetensors" else read_torch(file)
    assert loaded.keys() == STATE.keys()
    for name, tensor in STATE.items():
        array = np.asarray(loaded[name])
        assert array.dtype == tensor.dtype
        np.testing.assert_array_equal(array, tensor)
    assert list(file.parent.iterdir()) == [file]
    again = write_state_dict(tmp_path / f"b{suffix}", STATE)
    assert again.read_bytes() == file.read_bytes()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"a.onnx: a state dict is written as .safetensors, .pth, .pt"):
        write_state_dict(tmp_path / "a.onnx", STATE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_state_dict(tmp_path / "file" / "a.pth", STATE)

    def fail(path: Path, tensors: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_torch", fail)
    (tmp_path / "a.pth").write_bytes(b"before")
    with pytest.raises(UserError, match="No space left"):
        write_state_dict(tmp_path / "a.pth", STATE)
    assert (tmp_path / "a.pth").read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pth", "file"]


def resnet_shapes(*units: int, width: int = 64) -> dict[str, tuple[int, ...]]:
    """The names by which a bottleneck ResNet is told, and what tells its wider relatives."""
    names = [f"layer{stage}.{unit}.conv1.weight" for stage, count in enumerate(units, 1) for unit in range(count)]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (64, 64, 1, 1))
    return {
        **shapes, "layer1.0.conv3.weight": (256, width, 1, 1), "layer1.0.conv2.weight": (width, width, 3, 3),
        "conv1.weight": (64, 3, 7, 7),
    }  # fmt: skip


def vgg_shapes(*, normalised: bool, hidden: int = 8) -> dict[str, tuple[int, ...]]:
    channels = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for (conv, norm), after in zip(imagenet.vgg16_names(normalised=normalised).values(), channels, strict=True):
        shapes |= {f"{conv}.weight": (after, before, 3, 3), f"{conv}.bias": (after,)}
        if normalised:
            shapes |= {f"{norm}.{leaf}": (after,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        before = after
    return shapes | {
        "classifier.0.weight": (hidden, 512 * 7 * 7), "classifier.0.bias": (hidden,),
        "classifier.3.weight": (hidden, hidden), "classifier.3.bias": (hidden,),
        "classifier.6.weight": (10, hidden), "classifier.6.bias": (10,),
    }  # fmt: skip


def name_of(shapes: dict[str, tuple[int, ...]]) -> str | None:
    tensor_map = imagenet.recognise(shapes, output_stride=None)
    return None if tensor_map is None else tensor_map.name


def test_imagenet_classifiers_are_told_by_names_and_shapes() -> None:
    vgg = vgg_shapes(normalised=False)
    assert name_of(resnet_shapes(3, 4, 6, 3)) == "deeplabv3plus_resnet50"
    assert name_of(resnet_shapes(3, 4, 23, 3)) == "deeplabv3plus_resnet101"
    assert name_of(resnet_shapes(3, 4, 6, 3, width=128)) is None  # wide_resnet50_2
    assert name_of(resnet_shapes(3, 8, 36, 3)) is None  # resnet152
    assert name_of({f"encoder.{name}": shape for name, shape in resnet_shapes(3, 4, 6, 3).items()}) is None
    assert name_of(vgg) == "fcn32s_vgg16"
    assert name_of({name: shape for name, shape in vgg.items() if name.startswith("features")}) == "fcn32s_vgg16"
    assert name_of(vgg_shapes(normalised=True)) == "segnet_vgg16"
    assert name_of({**vgg, "features.31.weight": (512, 512, 3, 3)}) is None
    assert name_of({}) is None


def test_the_asked_output_stride_and_what_mobilenet_v2_fixes() -> None:
    assert imagenet.recognise(resnet_shapes(3, 4, 6, 3), output_stride=8).output_stride == 8  # type: ignore[union-attr]
    tensor_map = imagenet.recognise({"features.18.0.weight": (1280, 320, 1, 1)}, output_stride=None)
    assert tensor_map is not None
    model = tensor_map.model()
    assert (model.output_stride, model.num_classes, model.backbone.settings.norm_epsilon) == (16, 21, 1e-5)
    assert model.preprocessing == create_model("deeplabv3plus_resnet18").preprocessing


def test_vgg16_becomes_fcn32s_with_fc6_and_fc7() -> None:
    """Any number of classes, since only the scores start at random; a kernel is the matrix over the map it sees."""
    rng = np.random.default_rng(0)
    shapes = vgg_shapes(normalised=False)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensor_map = imagenet.recognise(shapes, output_stride=None)
    assert tensor_map is not None
    model, variables, report = fill_variables(tensor_map, tensors, source="x", num_classes=2)
    assert model.num_classes == 2
    assert report["unused"] == ["classifier.6.weight", "classifier.6.bias"]
    assert {path.split("/")[2] for path in report["random"]} == {"classifier_fc7", "classifier_to_image"}
    seen = rng.normal(size=(7, 7, 512)).astype(np.float32)
    kernel = np.asarray(variables["params"]["context"]["fc6"]["conv"]["kernel"])
    expected = tensors["classifier.0.weight"] @ seen.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(np.einsum("hwc,hwcd->d", seen, kernel), expected, rtol=1e-4)


def test_biases_before_a_norm_come_off_its_mean() -> None:
    """A norm of x + b with mean m is that of x with mean m - b; what does not fit stays, to be named."""
    mean, bias = np.arange(64, dtype=np.float32), np.full(64, 2, np.float32)
    tensors = {
        "features.0.bias": bias, "features.1.running_mean": mean,
        "features.3.bias": bias[:3], "features.4.running_mean": mean,
    }  # fmt: skip
    prepared = imagenet.move_biases_into_means(tensors)
    assert list(prepared) == ["features.1.running_mean", "features.3.bias", "features.4.running_mean"]
    np.testing.assert_array_equal(prepared["features.1.running_mean"], mean - 2)
    np.testing.assert_array_equal(prepared["features.4.running_mean"], mean)
    np.testing.assert_array_equal(tensors["features.1.running_mean"], np.arange(64))


def test_matrices_of_another_size_stay_as_they_are() -> None:
    tensors = {"classifier.0.weight": np.zeros((4, 50)), "classifier.3.weight": np.zeros(3)}
    prepared = imagenet.shape_as_kernels(tensors)
    assert [prepared[name].shape for name in tensors] == [(4, 50), (3,)]


def test_every_variable_of_vgg16s_encoder_has_a_tensor() -> None:
    shapes = vgg_shapes(normalised=True)
    tensor_map = imagenet.recognise(shapes, output_stride=None)
    assert tensor_map is not None
    variables = abstract_variables(tensor_map.model())
    names = set()
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        variable = "/".join(key.key for key in path)
        if "/backbone/" in variable:
            names.add(their_name(variable, rules=tensor_map.rules, layout=TORCH)[0])
    biases = {f"{conv}.bias" for conv, _ in imagenet.vgg16_names(normalised=True).values()}
    assert names == {name for name in shapes if name.startswith("features")} - biases
