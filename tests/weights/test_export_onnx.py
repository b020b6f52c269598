"""ONNX: each operation computes what JAX computes, atrous convolutions stay convolutions, and onnxruntime agrees."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.weights import export_onnx as module
from deeplab_jax.weights.export import Signature
from deeplab_jax.weights.export_onnx import METADATA, export_onnx, to_onnx
from tests.models.test_every_name import thin
from tests.support.tiny import tiny_models
from tests.support.traces import fill_variables

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")

KERNEL = np.random.default_rng(1).normal(size=(3, 3, 6, 4)).astype(np.float32)
DEPTHWISE = np.random.default_rng(2).normal(size=(3, 3, 1, 6)).astype(np.float32)
ROW = np.arange(6, dtype=np.float32)


def convolved(x: Any, kernel: Any = KERNEL, **options: Any) -> Any:
    chosen: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **chosen)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "convolution": convolved,
    "atrous": lambda x: convolved(x, rhs_dilation=(2, 3)),
    "strided": lambda x: convolved(x, window_strides=(2, 1), padding=((0, 2), (1, 0))),
    "depthwise": lambda x: convolved(x, DEPTHWISE, feature_group_count=6, rhs_dilation=(2, 2)),
    "transposed": lambda x: convolved(x, lhs_dilation=(2, 3), padding=((1, 2), (2, 0))),
    "two convolutions": lambda x: convolved(convolved(x)[..., :1] + x),
    "row": lambda x: convolved(x) * ROW[None, None, None, :4] + 1.5,
    "products of rows and columns": lambda x: jnp.einsum("pw,nhwc->nhpc", np.ones((9, 7), np.float32), convolved(x)),
    "product of batches": lambda x: jnp.matmul(jnp.broadcast_to(jnp.eye(5, 8), (x.shape[0], 5, 8)), x[..., 0]),
    "mean": lambda x: jnp.mean(convolved(x), axis=(1, 2), keepdims=True) + x[..., :4],
    "pooled over the map": lambda x: jnp.broadcast_to(jnp.mean(x, (1, 2), keepdims=True), (*x.shape[:3], 6)) * 2,
    "joined": lambda x: jnp.concatenate([x, convolved(x), jnp.zeros((*x.shape[:3], 2))], axis=-1),
    "joined along rows": lambda x: jnp.concatenate([convolved(x), x[..., :4]], axis=1),
    "padded": lambda x: jnp.pad(convolved(x), ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=-2.0),
    "cropped": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (1, -2, 0), (0, 0, 0))),
    "sliced": lambda x: jax.lax.slice(convolved(x), (0, 1, 2, 0), (x.shape[0], 8, 5, 3), (1, 2, 1, 2)),
    "indexed": lambda x: convolved(x)[:, 2:6, ..., 1],
    "axes in another order": lambda x: jnp.transpose(convolved(x), (0, 3, 1, 2))[:, 1:3],
    "axes in another order twice": lambda x: jnp.transpose(jnp.transpose(convolved(x), (0, 2, 3, 1)) * 2, (0, 3, 1, 2)),
    "reshaped": lambda x: convolved(x).reshape(x.shape[0], 8, 28),
    "largest": lambda x: jnp.max(convolved(x), axis=(1, 3)),
    "smallest": lambda x: jnp.min(x, axis=2),
    "ids": lambda x: jnp.argmax(convolved(x), axis=-1).astype(jnp.uint8),
    "ids of the first axis": lambda x: jnp.argmax(convolved(x), axis=1).astype(jnp.int32),
    "relu6": lambda x: jax.nn.relu6(3 * convolved(x)),
    "hard swish": lambda x: jax.nn.hard_swish(convolved(x)),
    "clipped": lambda x: jnp.clip(convolved(x), -0.5, 0.25),
    "chosen": lambda x: jnp.where(convolved(x) > 0.1, x[..., :4], -1.0),
    "compared": lambda x: (jax.nn.sigmoid(x) >= 0.5).astype(jnp.uint8),
    "norm": lambda x: convolved(x) * jax.lax.rsqrt(jnp.square(convolved(x)) + 1.0),
    "both": lambda x: jnp.where((x > 0) & ~(x > 1) | (x < -1), x, 0.0),
    "functions": lambda x: jnp.exp(-jnp.abs(x)) + jnp.log(x**2 + 1) + jnp.tanh(x) + jnp.sqrt(x * x + 1.0) / 2,
    "a constant": lambda x: jnp.broadcast_to(ROW[None, None, None], x.shape),
    "the input": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_computes_what_jax_computes(name: str) -> None:
    function = OPERATIONS[name]
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8, 7, 6"), jnp.float32)
    made = to_onnx(function, images, name=name, output="out")
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 8, 7, 6)).astype(np.float32)
        (found,) = session.run(None, {"images": x})
        expected = np.asarray(function(x))
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_an_operation_without_a_form_is_named() -> None:
    images = jax.ShapeDtypeStruct((1, 8, 7, 6), jnp.float32)
    with pytest.raises(
        UserError, match="net: its operations cumsum, sort have no form in ONNX here; use --format stab"
    ):
        to_onnx(lambda x: jnp.sort(jnp.cumsum(x, axis=1)), images, name="net", output="out")


@pytest.fixture(scope="module")
def made() -> Any:
    with tiny_models():
        model = create_model(
            "deeplabv3plus_tiny", num_classes=5, output_stride=8, aspp_channels=4, low_level_channels=4,
            decoder_convs=((3, 4),), separable=True, aux_head=True,
        )  # fmt: skip
    return model, fill_variables(model, 1, 65, 65, 3)


def attributes(made: Any, operation: str, name: str) -> list[Any]:
    return [onnx.helper.get_node_attr_value(node, name) for node in made.graph.node if node.op_type == operation]


def run(content: bytes, images: np.ndarray) -> Any:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def test_any_batch_of_one_size(made: Any) -> None:
    model, variables = made
    content, said = export_onnx(model, variables, Signature(size=(49, 65)), info={"class_names": list("abcde")})
    assert said.startswith("compared in onnxruntime ") and "on batches of 1, 3 images" in said
    images = np.random.default_rng(0).normal(size=(5, 49, 65, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))
    found = run(content, images)
    assert found.shape == expected.shape == (5, 49, 65, 5)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    graph = onnx.load_from_string(content)
    # Three rates of the pyramid's depthwise convolutions; those of the decoder have rate 1.
    dilated = [d for d in attributes(graph, "Conv", "dilations") if max(d) > 1]
    assert dilated == [[rate, rate] for rate in (12, 24, 36)]
    assert not attributes(graph, "Resize", "mode") and attributes(graph, "Einsum", "equation")
    metadata = json.loads({entry.key: entry.value for entry in graph.metadata_props}[METADATA])
    assert metadata["input"]["shape"] == ["b", 49, 65, 3] and metadata["class_names"] == list("abcde")
    assert metadata["precision"] == "float32"
    assert export_onnx(model, variables, Signature(size=(49, 65)), info={"class_names": list("abcde")})[0] == content


def test_preprocessing_and_argmax_move_inside(made: Any) -> None:
    model, variables = made
    content, said = export_onnx(model, variables, Signature(size=(33, 33), batch=2, preprocess=True, argmax=True))
    assert "of the pixels have another class" in said
    images = np.random.default_rng(0).integers(0, 256, (2, 33, 33, 3), np.uint8)
    prepared = model.preprocessing(jnp.asarray(images))
    expected = jnp.argmax(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, prepared), axis=-1)
    found = run(content, images)
    assert found.dtype == np.uint8 and len(np.unique(found)) > 1
    assert np.mean(found == np.asarray(expected)) >= 0.999
    shape = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [2, 33, 33, 3]


def test_float16_is_inside_and_float32_outside(made: Any) -> None:
    content, said = export_onnx(*made, Signature(size=(33, 33)), precision="float16")
    assert said.endswith("(bound 2.00%)")
    graph = onnx.load_from_string(content).graph
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    types = {tensor.data_type for tensor in graph.initializer if tensor.name in kernels}
    assert types == {onnx.TensorProto.FLOAT16}
    outside = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert outside == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]


def test_what_differs_is_not_handed_out(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.OPERATIONS, "max", module.OPERATIONS["min"])
    with pytest.raises(UserError, match=r"onnxruntime .*: the logits differ by at most .* nothing is written"):
        export_onnx(*made, Signature(size=(33, 33)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"signature": Signature(size=None)},
            "onnx: the size of the images has to be fixed; give it, such as --size 513x513",
        ),
        ({"signature": Signature(size=(33, 32))}, "size=33x32: does not fit this network"),
        (
            {"signature": Signature(size=(33, 33)), "precision": "int8"},
            "precision='int8': onnx is written in float32 or float16",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(made: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_onnx(*made, **options)


# Name, and the atrous rates of its convolutions at output stride 16, backbone first.
NETWORKS = {
    "deeplabv3_mobilenet_v2": (2, 2, 2, 6, 12, 18),
    "deeplabv3plus_mobilenet_v2": (2, 2, 2, 6, 12, 18),
    "deeplabv3_mobilenet_v3_large": (2, 2, 2, 6, 12, 18),
    "deeplabv3plus_mobilenet_v3_large": (2, 2, 2, 6, 12, 18),
    "deeplabv3plus_resnet18": (2, 4, 4, 6, 12, 18),
    "deeplabv3_resnet50": None,
    "lraspp_mobilenet_v3_large": (2, 2, 2),
    "pspnet_resnet18": None,
    "fcn_resnet50": None,
    "deeplabv3plus_xception65": None,
    "unet": (),
    "fcn32s_vgg16": (),
    "parsenet_vgg16": None,
    "spp_vgg16": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_their_atrous_rates(name: str) -> None:
    stride = None if "vgg16" in name or name == "unet" else 16
    model = create_model(name, num_classes=3, output_stride=stride, **thin(name))
    variables = fill_variables(model, 1, 65, 65, 3)
    content, _ = export_onnx(model, variables, Signature(size=(65, 97)))
    dilated = [d[0] for d in attributes(onnx.load_from_string(content), "Conv", "dilations") if max(d) > 1]
    if NETWORKS[name] is not None:
        assert tuple(dilated) == NETWORKS[name]
