"""TensorFlow's DeepLab (tensorflow/models, research/deeplab), which cannot be installed: its networks' outputs are kept
in `golden`.

They are of the last version of that code, run with TensorFlow 2.20 and tf_slim 1.1.0: `model.multi_scale_logits` and
the resize of `model.predict_labels`, with the options of the released checkpoints' READMEs, on weights of
`golden.generate` made smaller by `SCALES`; `golden.images` go in behind the preprocessing.
"""

import re

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.preprocessing import CAFFE, SYMMETRIC
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.importers import slim
from deeplab_jax.weights.tensor_map import Shapes, TensorMap, their_name
from tests.weights.importers import golden

# The last norms of residual branches, so that their sums stay small and every offset matters.
SCALES = (
    (r"bottleneck_v1/conv3/BatchNorm/gamma$", 0.25),
    (r"separable_conv3_pointwise/BatchNorm/gamma$", 0.25),
    (r"xception_module/separable_conv._depthwise/depthwise_weights$", 0.7),
)
# Golden file, our name, the decoder's levels.
NETWORKS = [
    ("mobilenet_v2", "deeplabv3_mobilenet_v2", ()),
    ("mobilenet_v2_035", "deeplabv3_mobilenet_v2", ()),
    ("mobilenet_v2_050", "deeplabv3_mobilenet_v2", ()),
    ("mobilenet_v2_140", "deeplabv3_mobilenet_v2", ()),
    ("mobilenet_v2_decoder", "deeplabv3plus_mobilenet_v2", ("conv2",)),
    ("mobilenet_v2_decoder_two", "deeplabv3plus_mobilenet_v2", ("conv2", "conv3")),
    ("resnet50_beta", "deeplabv3plus_resnet50_beta", ("conv2",)),
    ("resnet50_beta_two", "deeplabv3plus_resnet50_beta", ("conv2", "conv3")),
    ("resnet50_plain", "deeplabv3plus_resnet50", ("conv2",)),
    ("resnet101_beta", "deeplabv3_resnet101_beta", ()),
    ("xception41", "deeplabv3plus_xception41", ("conv2",)),
    ("xception65", "deeplabv3plus_xception65", ("conv2",)),
    ("xception71", "deeplabv3plus_xception71", ("conv2",)),
]
# Also even sizes, where TensorFlow's padding is not symmetric.
FAST = [("mobilenet_v2_035", 8, (102, 130))]
SLOW = [
    ("resnet50_beta", 8, (128, 160)),
    ("mobilenet_v2", 16, (128, 160)),
    ("mobilenet_v2", 16, (97, 131)),
    ("mobilenet_v2", 8, (97, 131)),
    ("mobilenet_v2", 8, (128, 160)),
    ("mobilenet_v2", 16, (321, 241)),
    ("mobilenet_v2", 8, (321, 241)),
    ("mobilenet_v2_035", 16, (97, 131)),
    ("mobilenet_v2_050", 16, (97, 131)),
    ("mobilenet_v2_140", 16, (97, 131)),
    ("mobilenet_v2_decoder", 16, (97, 131)),
    ("mobilenet_v2_decoder_two", 8, (97, 131)),
    ("resnet50_beta", 16, (97, 131)),
    ("resnet50_beta_two", 16, (97, 131)),
    ("resnet50_plain", 16, (128, 160)),
    ("resnet101_beta", 16, (97, 131)),
    ("xception41", 16, (97, 131)),
    ("xception65", 16, (97, 131)),
    ("xception65", 8, (98, 131)),
    ("xception71", 8, (98, 130)),
]


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return generate_tensors(golden.read_shapes(f"slim_{name}"))


def generate_tensors(shapes: Shapes) -> dict[str, np.ndarray]:
    tensors = golden.generate(shapes)
    for pattern, factor in SCALES:
        tensors = {
            key: np.asarray(value * factor, np.float32) if re.search(pattern, key) else value
            for key, value in tensors.items()
        }
    return tensors


def tensor_map_of(shapes: Shapes, output_stride: int | None = None) -> TensorMap:
    tensor_map = slim.recognise(shapes, output_stride=output_stride)
    assert tensor_map is not None
    return tensor_map


@pytest.mark.parametrize(
    ("name", "output_stride", "size"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_logits(name: str, output_stride: int, size: tuple[int, int]) -> None:
    golden.assert_converted(tensors_of(name), f"slim_{name}", kind="tensorflow", output_stride=output_stride, size=size)


@pytest.mark.parametrize(("name", "ours", "low_level"), NETWORKS)
def test_recognised(name: str, ours: str, low_level: tuple[str, ...]) -> None:
    shapes = golden.read_shapes(f"slim_{name}")

    tensor_map = tensor_map_of(shapes)

    assert tensor_map.name == ours
    assert tensor_map.num_classes == shapes["logits/semantic/weights"][-1]
    assert tensor_map.output_stride == 16
    assert tensor_map.options.get("low_level", ()) == low_level
    preprocessing = (CAFFE if name == "resnet50_plain" else SYMMETRIC).normalisation
    assert {option: tensor_map.options[option] for option in preprocessing} == preprocessing


@pytest.mark.parametrize(
    ("name", "width", "divisor"), [("", 1.0, 8), ("_035", 0.35, 1), ("_050", 0.5, 1), ("_140", 1.4, 1)]
)
def test_depth_multipliers(name: str, width: float, divisor: int) -> None:
    options = tensor_map_of(golden.read_shapes(f"slim_mobilenet_v2{name}")).options

    assert (options["width"], options["channel_divisor"]) == (width, divisor)


# Channels of MobileNetV2 at depth multiplier 0.5, rounded to multiples of 8, by those at 1.
HALVED = {16: 8, 24: 16, 32: 16, 64: 32, 96: 48, 144: 96, 160: 80, 192: 96, 320: 160, 384: 192, 576: 288, 960: 480}


def halved(decoder: str) -> Shapes:
    """Return a network whose features of stride 4 and 8 both have 96 channels, with the decoder of a golden one."""
    found = {}
    for name, shape in golden.read_shapes("slim_mobilenet_v2_decoder").items():
        if name.startswith("MobilenetV2/"):
            found[name] = tuple(HALVED.get(size, size) for size in shape)
        elif name in ("aspp0/weights", "image_pooling/weights"):
            found[name] = (1, 1, 160, shape[3])
        elif not name.startswith("decoder/"):
            found[name] = shape
    for name, shape in golden.read_shapes(f"slim_{decoder}").items():
        if name.startswith("decoder/"):
            reduces = re.fullmatch(r"decoder/feature_projection0(_1)?/weights", name)
            found[name] = (1, 1, 96, shape[3]) if reduces else shape
    return found


@pytest.mark.parametrize(
    ("name", "low_level", "noted"),
    [("mobilenet_v2_decoder", ("conv2",), True), ("mobilenet_v2_decoder_two", ("conv2", "conv3"), False)],
)
def test_a_decoder_on_features_of_equal_channels_takes_the_usual_ones(
    name: str, low_level: tuple[str, ...], noted: bool
) -> None:
    tensors = generate_tensors(halved(name))

    model, variables, info = convert(tensors)

    assert tuple(describe(model)["options"]["low_level"]) == low_level
    assert info["source"]["unused"] == info["source"]["random"] == []
    assert any("taken to be of stride 4" in note for note in info["source"]["notes"]) == noted
    # The first projection is of the coarsest level.
    for level, suffix in zip(reversed(low_level), ("", "_1"), strict=False):
        kernel = variables["params"]["decoder"][f"{level}_reduction"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, tensors[f"decoder/feature_projection0{suffix}/weights"])


def test_a_decoder_on_features_of_own_channels_needs_no_note() -> None:
    for name in ("mobilenet_v2_decoder", "resnet50_beta"):
        assert not any("taken to be" in note for note in tensor_map_of(golden.read_shapes(f"slim_{name}")).notes)


def test_what_training_adds_is_left_out() -> None:
    tensors = tensors_of("mobilenet_v2_035")
    extra = ["aspp0/weights/Momentum", "MobilenetV2/Conv/weights/ExponentialMovingAverage", "global_step"]

    _, _, info = convert(tensors | {name: np.zeros(1) for name in extra})

    assert sorted(info["source"]["unused"]) == sorted(extra)
    with pytest.raises(UserError, match="unexpected aspp0/surprise"):
        convert(tensors | {"aspp0/surprise": np.zeros(1)})


def test_missing_tensors_are_named() -> None:
    tensors = tensors_of("mobilenet_v2_035")
    del tensors["concat_projection/BatchNorm/beta"]

    with pytest.raises(UserError, match="missing concat_projection/BatchNorm/beta"):
        convert(tensors)


def test_folded_norms() -> None:
    """As the `.tflite` of the same network has them."""
    shapes = golden.read_shapes("slim_mobilenet_v2_050")
    folded = {name: shape for name, shape in shapes.items() if "BatchNorm" not in name}
    for name in list(folded):
        if name.endswith("weights"):
            channels = shapes[name][2] if name.endswith("depthwise_weights") else shapes[name][3]
            folded[f"{name.rsplit('/', 1)[0]}/biases"] = (channels,)

    model, variables, info = convert(golden.generate(folded), output_stride=8)

    assert (model.settings.norm, model.output_stride) == ("none", 8) and "class_names" not in info
    assert "batch_stats" not in variables
    assert info["source"]["unused"] == info["source"]["random"] == []


@pytest.mark.parametrize(
    ("name", "ours", "classifier"),
    [
        ("mobilenet_v2", "mobilenet_v2", ("MobilenetV2/Conv_1/weights", "MobilenetV2/Logits/Conv2d_1c_1x1/weights")),
        ("resnet50_beta", "resnet50_beta", ("resnet_v1_50/logits/weights",)),
        ("xception65", "xception65", ("xception_65/logits/weights", "xception_65/logits/biases")),
    ],
)
def test_imagenet_checkpoints_are_backbones(name: str, ours: str, classifier: tuple[str, ...]) -> None:
    shapes = golden.read_shapes(f"slim_{name}")
    backbone = {key: shape for key, shape in shapes.items() if key.startswith(("Mobilenet", "resnet", "xception"))}

    tensor_map = tensor_map_of(backbone | dict.fromkeys(classifier, (1,)))

    assert tensor_map.name == f"deeplabv3plus_{ours}"
    assert tensor_map.absent and "only the backbone is from the file, the rest starts at random" in tensor_map.notes
    assert all(any(re.search(pattern, key) for pattern in tensor_map.unused) for key in classifier)
    assert not any(re.search(pattern, key) for pattern in tensor_map.unused for key in backbone)


def test_the_first_kernel_of_grey_images_is_not_depthwise() -> None:
    """It has the shape of a depthwise one, `[3, 3, 1, 16]`."""
    shapes = golden.read_shapes("slim_mobilenet_v2_035")
    tensor_map = tensor_map_of(shapes)
    stem = their_name("params/backbone/stem/conv/kernel", rules=tensor_map.rules, layout=tensor_map.layout)
    assert stem == ("MobilenetV2/Conv/weights", tensor_map.layout.kernel)
    unit = "params/backbone/conv2_unit1/depthwise/conv/kernel"
    name, leaf = their_name(unit, rules=tensor_map.rules, layout=tensor_map.layout)
    assert name.endswith("expanded_conv_1/depthwise/depthwise_weights") and leaf == tensor_map.layout.depthwise


def test_an_imagenet_checkpoint_gives_the_whole_backbone_and_nothing_else() -> None:
    shapes = golden.read_shapes("slim_mobilenet_v2_035")
    tensor_map = tensor_map_of({key: shape for key, shape in shapes.items() if key.startswith("MobilenetV2")})

    variables = flatten_variables(abstract_variables(tensor_map.model(num_classes=5)))

    for name in variables:
        path = name.split("/", 1)[1]
        absent = any(re.match(pattern, path) for pattern in tensor_map.absent)
        assert absent != path.startswith("backbone/")
        if not absent:
            theirs, _ = their_name(name, rules=tensor_map.rules, layout=tensor_map.layout)
            assert theirs in shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/feature_projection0/weights": (1, 1, 96, 48)}, "only a decoder on features of stride 4, 8 or both"),
        ({"aspp1/weights": (3, 3, 320, 256)}, "a pyramid with 1 atrous branches"),
        ({"concat_projection/weights": None}, "no pyramid"),
        ({"MobilenetV2/Conv/weights": (3, 3, 3, 31)}, "no depth multiplier"),
    ],
)
def test_networks_that_are_not_ours_are_refused(change: dict[str, tuple[int, ...] | None], message: str) -> None:
    shapes = {**golden.read_shapes("slim_mobilenet_v2"), **change}

    with pytest.raises(UserError, match=message):
        slim.recognise({name: shape for name, shape in shapes.items() if shape}, output_stride=None)


def test_other_networks_are_not_claimed() -> None:
    assert slim.recognise({"backbone.conv1.weight": (64, 3, 7, 7)}, output_stride=None) is None
    assert slim.recognise({"MobilenetV1/Conv2d_0/weights": (3, 3, 3, 32)}, output_stride=None) is None
