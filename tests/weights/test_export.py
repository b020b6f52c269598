"""StableHLO: the exported function is the model, read back without this package."""

import io
import json
import re
import subprocess
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model, describe, model_names
from deeplab_jax.weights.export import METADATA_FILE, STABLEHLO_FILE, Signature, export_stablehlo
from tests.models.test_every_name import thin
from tests.support.tiny import tiny_models
from tests.support.traces import fill_variables

# Atrous and depthwise convolutions, image pooling, resizes, an auxiliary head: what differs between lowerings.
OPTIONS: dict[str, Any] = {
    "aspp_channels": 4, "low_level_channels": 4, "decoder_convs": ((3, 4),), "separable": True, "aux_head": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Any:
    with tiny_models():
        model = create_model("deeplabv3plus_tiny", num_classes=5, output_stride=8, **OPTIONS)
    return model, fill_variables(model, 1, 65, 65, 3)


def open_export(content: bytes) -> tuple[jax.export.Exported, dict[str, Any]]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    metadata = json.loads(archive.read(METADATA_FILE))
    return jax.export.deserialize(bytearray(archive.read(STABLEHLO_FILE))), metadata


def images_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def logits_of(made: Any, images: Any) -> np.ndarray:
    model, variables = made
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def assert_same(found: Any, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_batch_is_free_and_the_size_fixed(made: Any) -> None:
    exported, metadata = open_export(export_stablehlo(*made, Signature(size=(97, 66))))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for batch in (1, 3):
        images = np.asarray(made[0].preprocessing(images_of(batch, 97, 66)))
        assert_same(exported.call(images), logits_of(made, images))
    with pytest.raises(ValueError, match="97"):
        exported.call(images[:, :65])
    assert metadata["input"]["shape"] == ["b", 97, 66, 3] and metadata["output"]["shape"] == ["b", 97, 66, 5]


def test_the_size_is_free(made: Any) -> None:
    exported, metadata = open_export(export_stablehlo(*made, Signature(size=None)))
    for shape in ((1, 33, 33), (3, 97, 66)):
        images = np.asarray(made[0].preprocessing(images_of(*shape)))
        assert_same(exported.call(images), logits_of(made, images))
    with pytest.raises(ValueError):  # JAX says no more than that the shapes do not do.
        exported.call(np.zeros((1, 32, 40, 3), np.float32))
    assert metadata["input"]["shape"] == ["b", "h", "w", 3]


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_free_size_keeps_the_corner_alignment(align_corners: bool) -> None:
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=2, align_corners=align_corners)
    made = (model, fill_variables(model, 1, 65, 65, 3))
    images = np.random.default_rng(0).normal(size=(1, 71, 50, 3)).astype(np.float32)
    exported, _ = open_export(export_stablehlo(*made, Signature(size=None), platforms=("cpu",)))
    assert_same(exported.call(images), logits_of(made, images))


def test_preprocessing_and_argmax_move_inside(made: Any) -> None:
    model, _ = made
    images = images_of(2, 65, 49)
    logits = logits_of(made, np.asarray(model.preprocessing(images)))
    exported, metadata = open_export(export_stablehlo(*made, Signature(size=(65, 49), preprocess=True, argmax=True)))
    classes = np.asarray(exported.call(images))
    assert classes.dtype == np.uint8 and len(np.unique(classes)) > 1
    assert (classes == logits.argmax(-1)).mean() >= 0.9999
    assert metadata["input"]["dtype"] == metadata["output"]["dtype"] == "uint8"
    assert metadata["input"]["value_range"] == [0, 255]
    assert metadata["output"]["shape"] == ["b", 65, 49]


def test_more_than_256_classes_are_int32() -> None:
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=257)
    content = export_stablehlo(model, fill_variables(model, 1, 65, 65, 3), Signature(size=(33, 33), argmax=True))
    assert open_export(content)[1]["output"]["dtype"] == "int32"


def test_the_metadata_says_what_the_function_wants(made: Any) -> None:
    model, _ = made
    info = {"class_names": list("abcde"), "palette": [[0, 0, 0]] * 5, "metrics": {"miou": 0.5}}
    _, metadata = open_export(export_stablehlo(*made, Signature(size=(33, 40), batch=2), platforms=("cpu",), info=info))
    assert metadata["input"]["shape"] == [2, 33, 40, 3] and metadata["input"]["dtype"] == "float32"
    assert metadata["input"]["value_range"] == list(model.preprocessing.value_range)
    assert metadata["preprocessing"]["mean"] == list(model.preprocessing.mean)
    assert metadata["preprocessing"]["std"] == list(model.preprocessing.std)
    assert metadata["class_names"] == info["class_names"] and metadata["palette"] == info["palette"]
    assert metadata["output_stride"] == 8 and metadata["num_classes"] == 5
    assert metadata["model"] == json.loads(json.dumps(describe(model)))
    assert metadata["platforms"] == ["cpu"] and metadata["versions"]["jax"] == jax.__version__


def test_the_same_model_gives_the_same_bytes(made: Any) -> None:
    first, second = (export_stablehlo(*made, Signature(size=(33, 33)), platforms=("cpu",)) for _ in range(2))
    assert first == second


def test_norm_is_folded_and_the_auxiliary_head_left_out(made: Any) -> None:
    exported, _ = open_export(export_stablehlo(*made, Signature(size=(33, 33)), platforms=("cpu",)))
    text = exported.mlir_module()
    assert "rsqrt" not in text
    with tiny_models():
        without = create_model("deeplabv3plus_tiny", num_classes=5, output_stride=8, **{**OPTIONS, "aux_head": False})
    params = {name: tree for name, tree in made[1]["params"].items() if name != "aux_head"}
    assert export_size(without, {**made[1], "params": params}) == pytest.approx(export_size(*made), rel=0.01)


def export_size(model: Any, variables: Any) -> int:
    exported, _ = open_export(export_stablehlo(model, variables, Signature(size=(33, 33)), platforms=("cpu",)))
    return len(exported.mlir_module_serialized)


def test_each_platform_has_its_lowering(made: Any) -> None:
    """A CPU adds shifted products where others convolve depthwise, also where one file serves both."""
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    exports = {
        platforms: open_export(export_stablehlo(*made, Signature(size=(33, 33)), platforms=platforms))[0]
        for platforms in (("cpu",), ("cuda",), ("cpu", "cuda", "tpu"))
    }
    depthwise = re.compile(r"feature_group_count ?= ?([2-9]|1\d)")
    assert not depthwise.search(exports[("cpu",)].mlir_module())
    assert len(depthwise.findall(exports[("cuda",)].mlir_module())) == 4  # three rates and the decoder
    both = exports[("cpu", "cuda", "tpu")]
    assert depthwise.search(both.mlir_module())
    run_here = jax.jit(both.call).lower(images).compile().as_text()
    assert bool(depthwise.search(run_here)) == (jax.default_backend() != "cpu")


READER = """
import json, sys, zipfile
import jax, numpy as np
archive = zipfile.ZipFile(sys.argv[1])
metadata = json.loads(archive.read("metadata.json"))
exported = jax.export.deserialize(bytearray(archive.read("model.stablehlo")))
images = np.load(sys.argv[2])
np.save(sys.argv[3], exported.call(images))
assert not [name for name in sys.modules if name.split(".")[0] in ("deeplab_jax", "flax")]
print(metadata["output"]["name"])
"""


def test_it_is_read_without_this_package(made: Any, tmp_path: Any) -> None:
    images = np.asarray(made[0].preprocessing(images_of(3, 49, 65)))
    (tmp_path / "model.zip").write_bytes(export_stablehlo(*made, Signature(size=(49, 65))))
    np.save(tmp_path / "images.npy", images)
    # Isolated, and away from the repository.
    command = [sys.executable, "-I", "-c", READER, "model.zip", "images.npy", "logits.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "logits"
    assert_same(np.load(tmp_path / "logits.npy"), logits_of(made, images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signature": Signature(size=(97, 32))}, r"size=97x32: does not fit this network; 97x33 would"),
        ({"signature": Signature(size=(65, 65), batch=0)}, "batch=0: give at least 1"),
        (
            {"signature": Signature(size=(65, 65)), "platforms": ("cpu", "gpu")},
            r"platforms=\('cpu', 'gpu'\): give one or more of cpu, cuda",
        ),
        ({"signature": Signature(size=(65, 65)), "platforms": ()}, r"platforms=\(\): give one or more"),
    ],
)
def test_what_cannot_be_exported_is_refused(made: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_stablehlo(*made, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("pspnet_resnet50", {"width": 0.0625, "context_channels": 8}, marks=pytest.mark.slow),
        pytest.param("spp_vgg16", {"width": 0.0625, "context_channels": 8}, marks=pytest.mark.slow),
        ("unet", {"width": 0.0625, "decoder_channels": (8, 4, 4, 4), "padding": "valid"}),
        pytest.param(
            "largefov_vgg16", {"width": 0.0625, "fc_channels": 8, "image_pyramid": (1.0, 0.5)}, marks=pytest.mark.slow
        ),
    ],
)
def test_networks_that_need_a_size_say_so(name: str, options: Any) -> None:
    model = create_model(name, num_classes=3, lowering="direct", **options)
    side = model.fitting_side(65)
    variables = fill_variables(model, 1, side, side, 3)
    fitting = "524x524" if name == "unet" else "513x513"  # Of U-Net without padding, few sides are valid.
    with pytest.raises(
        UserError, match=f"{name}: cannot be exported for images of any size; give one, such as --size {fitting}"
    ):
        export_stablehlo(model, variables, Signature(size=None), platforms=("cpu",))
    made = (model, variables)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side, 3)), jnp.float32)
    exported, metadata = open_export(export_stablehlo(*made, Signature(size=(side, side)), platforms=("cpu",)))
    expected = logits_of(made, images)
    assert_same(exported.call(images), expected)
    assert metadata["output"]["shape"] == ["b", *expected.shape[1:]]


FAST = "deeplabv3plus_resnet18"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == FAST else pytest.mark.slow)
        for name in model_names()
        if name.split("_")[0] not in ("pspnet", "spp")
    ],
)
def test_every_other_network_is_exported_for_any_size(name: str) -> None:
    """In the lowering that users get."""
    model = create_model(name, num_classes=3, **thin(name))
    made = (model, fill_variables(model, 1, 65, 65, 3))
    exported, _ = open_export(export_stablehlo(*made, Signature(size=None), platforms=("cpu",)))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 97, 66, 3)), jnp.float32)
    assert_same(exported.call(images), logits_of(made, images))
