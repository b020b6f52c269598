"""KerasHub's DeepLabV3Plus. `tests/peers/test_keras_hub.py` runs its code where it is installed; here are logits that
it computed, in `golden`.

They are of keras-hub 0.32.0 with Keras 3.15.1 on JAX: a `DeepLabV3ImageSegmenter`, called with `training=False`. Its
weights are those of `generate_tensors`, by the names that `read_keras` gives them, and `golden.images` go in. Its sides
have to be multiples of the output stride.
"""

import json

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.importers import keras_hub
from deeplab_jax.weights.tensor_map import Shapes
from tests.weights.importers import golden

# Golden file, our name, the output stride, the image's size, classes.
NETWORKS = [
    ("keras_hub_resnet18_p3", "deeplabv3plus_resnet18", 8, (104, 136), 5),
    ("keras_hub_resnet18_p4", "deeplabv3plus_resnet18", 16, (112, 144), 5),
    ("keras_hub_resnet50_p5", "deeplabv3plus_resnet50", 32, (96, 160), 21),
]
FAST = "keras_hub_resnet18_p3"


def generate_tensors(shapes: Shapes) -> dict[str, np.ndarray]:
    """The last norms of residual branches are a quarter, so that every offset matters."""
    tensors = golden.generate(shapes)
    encoder = keras_hub.ENCODERS[0]
    backbone = "resnet50" if f"{encoder}conv2d_52/kernel" in shapes else "resnet18"
    last = "conv3" if backbone == "resnet50" else "conv2"
    for (_, _, name), index in keras_hub.numbers_of(backbone).items():
        if name == last:
            tensors[f"{encoder}batch_normalization_{index}/gamma"] *= np.float32(0.25)
    return tensors


@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [
        pytest.param(name, stride, size, marks=() if name == FAST else pytest.mark.slow)
        for name, _, stride, size, _ in NETWORKS
    ],
)
def test_logits(name: str, output_stride: int, size: tuple[int, int]) -> None:
    tensors = generate_tensors(golden.read_shapes(name))
    golden.assert_converted(tensors, name, kind="keras_hub", output_stride=output_stride, size=size)


@pytest.mark.parametrize(("name", "ours", "output_stride", "size", "classes"), NETWORKS)
def test_networks_are_told_by_their_tensors(
    name: str, ours: str, output_stride: int, size: tuple[int, int], classes: int
) -> None:
    tensor_map = keras_hub.recognise(golden.read_shapes(name), output_stride=None)
    assert tensor_map is not None
    assert (tensor_map.name, tensor_map.num_classes, tensor_map.output_stride) == (ours, classes, output_stride)
    # 6, 12 and 18 at any output stride; ours are stated at 16.
    assert tensor_map.options["aspp_rates"] == {8: (3, 6, 9), 16: (6, 12, 18), 32: (12, 24, 36)}[output_stride]
    assert tensor_map.options["decoder_convs"] == ((1, 256),)


def test_a_backbone_alone_gets_a_fresh_classifier() -> None:
    shapes = golden.read_shapes("keras_hub_resnet18_p4")
    tensor_map = keras_hub.recognise({k: s for k, s in shapes.items() if not k.startswith("task/")}, output_stride=None)
    assert tensor_map is not None
    assert (tensor_map.absent, tensor_map.num_classes) == (("classifier/",), 21)


def test_the_encoder_may_stand_where_older_files_have_it() -> None:
    shapes = golden.read_shapes("keras_hub_resnet18_p4")
    older = {key.replace("layers/functional/layers/", "image_encoder/layers/"): shape for key, shape in shapes.items()}
    tensor_map = keras_hub.recognise(older, output_stride=None)
    assert tensor_map is not None and tensor_map.name == "deeplabv3plus_resnet18"


@pytest.mark.parametrize(
    ("change", "output_stride", "message"),
    [
        ({}, 8, "output_stride=8: this network of KerasHub runs at 16; leave it out"),
        ({"layers/conv2d_1/kernel": None}, None, "without low-level features"),
        ({"layers/conv2d/kernel": (1, 1, 256, 48)}, None, "on other stages than P2 or P3"),
        ({f"{keras_hub.BRANCHES}/layers/conv2d/kernel": None}, None, "on other stages than P2 or P3"),
        ({f"{keras_hub.BRANCHES}/layers/conv2d/kernel": ()}, None, "on other stages than P2 or P3"),
        ({"layers/conv2d/kernel": ()}, None, "without low-level features"),
        ({"layers/conv2d_1/kernel": ()}, None, "without low-level features"),
        ({"layers/functional/layers/conv2d_20/kernel": (1, 1, 8, 8)}, None, "the encoder is none of resnet18"),
        ({"layers/functional/layers/conv2d/kernel": (3, 3, 3, 32)}, None, "the encoder is none of resnet18"),
        # A ResNet whose norms come before the convolutions has fewer.
        ({"layers/functional/layers/batch_normalization_19/gamma": None}, None, "the encoder is none of resnet18"),
    ],
)
def test_networks_that_are_not_ours_are_refused(
    change: dict[str, tuple[int, ...] | None], output_stride: int | None, message: str
) -> None:
    shapes = {**golden.read_shapes("keras_hub_resnet18_p4"), **change}
    with pytest.raises(UserError, match=message):
        keras_hub.recognise(
            {key: shape for key, shape in shapes.items() if shape is not None}, output_stride=output_stride
        )


def test_a_classifier_that_is_no_kernel_is_none() -> None:
    shapes = {**golden.read_shapes("keras_hub_resnet18_p4"), "task/layers/conv2d/kernel": ()}
    tensor_map = keras_hub.recognise(shapes, output_stride=None)
    assert tensor_map is not None and tensor_map.num_classes == 21


def test_other_networks_are_not_claimed() -> None:
    shapes = golden.read_shapes("keras_hub_resnet18_p4")
    encoder = {key: shape for key, shape in shapes.items() if key.startswith("layers/functional/")}
    assert keras_hub.recognise(encoder, output_stride=None) is None
    assert keras_hub.recognise({"backbone.conv1.weight": (64, 3, 7, 7)}, output_stride=None) is None


BACKBONE = {
    "image_encoder": {"config": {"block_type": "basic_block", "stackwise_num_strides": [1, 2, 2, 2]}},
    "spatial_pyramid_pooling_key": "P4",
    "low_level_feature_key": "P2",
    "projection_filters": 48,
    "upsampling_size": 4,
    "dilation_rates": [6, 12, 18],
}


def stated(backbone: dict[str, object], **others: dict[str, object]) -> dict[str, object]:
    files = {"config": {**BACKBONE, **backbone}, **{key: {"config": value} for key, value in others.items()}}
    return json.loads(json.dumps(files))


def test_the_configuration_is_applied() -> None:
    tensor_map = keras_hub.recognise(golden.read_shapes("keras_hub_resnet18_p4"), output_stride=None)
    assert tensor_map is not None
    converter = {"scale": [1 / 255 / 0.25, 1 / 255 / 0.5, 1 / 255], "offset": [-2.0, -1.0, 0.0]}
    applied = keras_hub.apply_config(
        tensor_map, stated({"dilation_rates": [2, 4, 6]}, task={"activation": "sigmoid"}, image_converter=converter)
    )
    assert (applied.options["aspp_rates"], applied.options["activation"]) == ((2, 4, 6), "sigmoid")
    assert applied.notes[0] == "rates 2, 4, 6 at any output stride"
    assert applied.options["mean"] == pytest.approx((0.5, 0.5, 0.0))
    assert applied.options["std"] == pytest.approx((0.25, 0.5, 1.0))
    # Without a converter, pixels go in as they are.
    pixels = np.asarray([[[0, 128, 255]]], np.uint8)
    plain = keras_hub.apply_config(tensor_map, stated({}))
    np.testing.assert_allclose(plain.model().preprocessing(pixels), [[[0.0, 128.0, 255.0]]], atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "others", "message"),
    [
        ({"spatial_pyramid_pooling_key": "P5"}, {}, "spatial_pyramid_pooling_key is 'P5'; only 'P4' can be converted"),
        ({"upsampling_size": [4, 2]}, {}, "upsampling_size is [4, 2]; only 4"),
        ({"dilation_rates": [6, 12]}, {}, "dilation_rates is [6, 12]; give three whole numbers"),
        ({"image_encoder": {"config": {"use_pre_activation": True}}}, {}, "use_pre_activation is True; only False"),
        ({"image_encoder": {"config": {"block_type": "basic_block_vd"}}}, {}, "block_type is 'basic_block_vd'"),
        ({"image_encoder": {"config": {"stackwise_num_strides": [1, 2, 2, 1]}}}, {}, "stackwise_num_strides is"),
        ({}, {"image_converter": {"scale": [1, 2]}}, "scale is [1, 2]; give null, a number, or 3 of them"),
        ({}, {"image_converter": {"scale": 0}}, "scale is 0; give numbers, of scale other than 0"),
        ({}, {"image_converter": {"scale": 10**400}}, "give numbers that float32 can hold"),
        ({}, {"image_converter": {"offset": [0, 0, -(10**400)]}}, "give numbers that float32 can hold"),
        ({}, {"image_converter": {"scale": float("inf")}}, "scale is inf; give numbers, of scale other than 0"),
        ({}, {"image_converter": {"scale": float("nan")}}, "scale is nan; give numbers, of scale other than 0"),
        ({}, {"image_converter": {"scale": 1e-320}}, "scale is 1e-320; give numbers, of scale other than 0"),
        ({}, {"image_converter": {"scale": 1e300}}, "scale is 1e+300; give numbers, of scale other than 0"),
        ({}, {"image_converter": {"offset": float("nan")}}, "offset is nan; give numbers"),
        ({}, {"image_converter": {"scale": 1e-30, "offset": 1e30}}, "offset is 1e+30; give numbers"),
        ({"dilation_rates": [6, 12, 10**400]}, {}, "give three whole numbers from 1 to 4096"),
        ({}, {"task": {"activation": "relu"}}, "activation is 'relu'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    backbone: dict[str, object], others: dict[str, dict[str, object]], message: str
) -> None:
    tensor_map = keras_hub.recognise(golden.read_shapes("keras_hub_resnet18_p4"), output_stride=None)
    assert tensor_map is not None
    with pytest.raises(UserError) as error:
        keras_hub.apply_config(tensor_map, stated(backbone, **others))
    assert message in str(error.value)
