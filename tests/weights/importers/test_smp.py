"""What is told of segmentation_models_pytorch's networks by the names and shapes of their tensors."""

import re
from typing import Any

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.importers.smp import recognise
from deeplab_jax.weights.tensor_map import Shapes, TensorMap, their_name

HEAD = {"segmentation_head.0.weight": (5, 256, 1, 1), "segmentation_head.0.bias": (5,)}
RESNET18 = {
    "encoder.conv1.weight": (64, 3, 7, 7),
    **{f"encoder.layer{stage}.{unit}.conv1.weight": (64, 64, 3, 3) for stage in range(1, 5) for unit in range(2)},
}
MOBILENET_V2 = {
    "encoder.features.0.0.weight": (32, 3, 3, 3),
    "encoder.features.18.0.weight": (1280, 320, 1, 1),
}
UNET = {
    f"decoder.blocks.{index}.{name}": shape
    for index, width in enumerate((256, 128, 64, 32, 16))
    for name, shape in {
        "conv1.0.weight": (width, width, 3, 3),
        "conv1.1.running_mean": (width,),
        "conv2.0.weight": (width, width, 3, 3),
        "conv2.1.running_mean": (width,),
    }.items()
}


def deeplabv3(
    inputs: int = 512, *, channels: int = 256, aspp: str = "decoder.aspp", conv: str = "decoder.conv"
) -> Shapes:
    return {
        f"{aspp}.convs.0.0.weight": (channels, inputs, 1, 1),
        f"{aspp}.convs.1.0.weight": (channels, inputs, 3, 3),
        f"{conv}.weight": (channels, channels, 3, 3),
    }


def deeplabv3plus(inputs: int = 512) -> Shapes:
    return {
        "decoder.aspp.0.convs.0.0.weight": (256, inputs, 1, 1),
        "decoder.aspp.0.convs.1.0.0.weight": (inputs, 1, 3, 3),
    }


def pspnet(inputs: int = 128, *, channels: int = 512) -> Shapes:
    return {
        "decoder.psp.blocks.0.pool.1.0.weight": (inputs // 4, inputs, 1, 1),
        "decoder.conv.0.weight": (channels, 2 * inputs, 1, 1),
        "decoder.conv.1.running_mean": (channels,),
    }


def tensor_map_of(*parts: Shapes, output_stride: int | None = None) -> TensorMap:
    tensor_map = recognise(
        {name: shape for part in (*parts, HEAD) for name, shape in part.items()}, output_stride=output_stride
    )
    assert tensor_map is not None
    return tensor_map


def names_of(tensor_map: TensorMap) -> dict[str, str]:
    """Return our variables' paths and their names."""
    shapes = {name: leaf.shape for name, leaf in flatten_variables(abstract_variables(tensor_map.model())).items()}
    return {
        name.split("/", 1)[1]: their_name(name, rules=tensor_map.rules, layout=tensor_map.layout)[0]
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    "shapes",
    [{}, HEAD, {"backbone.conv1.weight": (64, 3, 7, 7), "classifier.4.weight": (21, 256, 1, 1)}, RESNET18 | UNET],
)
def test_other_state_dicts_are_not_its_own(shapes: Shapes) -> None:
    assert recognise(shapes, output_stride=None) is None


@pytest.mark.parametrize(
    ("parts", "asked", "name", "stride", "rates"),
    [
        ((RESNET18, deeplabv3()), None, "deeplabv3_resnet18", 8, (6, 12, 18)),
        ((RESNET18, deeplabv3()), 16, "deeplabv3_resnet18", 16, (12, 24, 36)),
        ((RESNET18, deeplabv3plus()), None, "deeplabv3plus_resnet18", 16, (12, 24, 36)),
        ((MOBILENET_V2, deeplabv3plus(1280)), 8, "deeplabv3plus_mobilenet_v2", 8, (6, 12, 18)),
        # Three halvings make 8, whatever is asked for.
        ((MOBILENET_V2, deeplabv3(32)), 16, "deeplabv3_mobilenet_v2", 8, (6, 12, 18)),
        ((RESNET18, pspnet()), None, "pspnet_resnet18", 8, None),
        ((RESNET18, pspnet(256)), 16, "pspnet_resnet18", 16, None),
        ((MOBILENET_V2, UNET), None, "unet_mobilenet_v2", 32, None),
    ],
)
def test_the_network_and_its_stride(
    parts: tuple[Shapes, ...], asked: int | None, name: str, stride: int, rates: tuple[int, ...] | None
) -> None:
    """12, 24 and 36 at any output stride are half of it where they are stated at 16."""
    tensor_map = tensor_map_of(*parts, output_stride=asked)
    assert (tensor_map.name, tensor_map.num_classes, tensor_map.output_stride) == (name, 5, stride)
    assert tensor_map.options.get("aspp_rates") == rates
    model = tensor_map.model()
    assert model.preprocessing == IMAGENET
    assert model.settings.align_corners
    assert model.backbone.first_unit_rate == "stage"
    for settings in (model.settings, model.backbone.settings):
        assert (settings.norm_epsilon, settings.norm_momentum) == (1e-5, 0.9)


def test_shapes_tell_the_options() -> None:
    options = tensor_map_of(RESNET18, deeplabv3(256, channels=64)).options
    assert (options["aspp_channels"], options["head_convs"]) == (64, ((3, 64),))
    assert (options["last_stage"], options["aspp_separable"], options["multi_grid"]) == ("conv4", False, (1, 1))
    options = tensor_map_of(MOBILENET_V2, deeplabv3plus(1280)).options
    assert (options["last_channels"], options["separable"], options["aspp_separable"]) == (1280, True, True)
    assert "last_stage" not in options
    assert "multi_grid" not in options
    assert tensor_map_of(RESNET18, pspnet(channels=64)).options["context_channels"] == 64
    assert tensor_map_of(RESNET18, UNET).options["decoder_channels"] == (256, 128, 64, 32, 16)
    assert tensor_map_of(MOBILENET_V2, UNET).options["skips"] == ("conv4", "conv3", "conv2", "conv1", "")


def test_a_decoder_without_norms() -> None:
    bare = {name: shape for name, shape in UNET.items() if not name.endswith("running_mean")}
    tensor_map = tensor_map_of(RESNET18, bare, {"decoder.blocks.0.conv1.0.bias": (256,)})
    assert (tensor_map.options["norm"], tensor_map.options["backbone_norm"]) == ("none", "batch")
    assert names_of(tensor_map)["decoder/step2_conv1/conv/bias"] == "decoder.blocks.1.conv1.0.bias"


def test_names_of_mobilenet_v2() -> None:
    names = names_of(tensor_map_of(MOBILENET_V2, deeplabv3plus(1280)))
    features = {
        "stem/conv": "0.0", "stem/norm/batch": "0.1",
        "conv1_unit1/depthwise/conv": "1.conv.0.0", "conv1_unit1/project/conv": "1.conv.1",
        "conv1_unit1/project/norm/batch": "1.conv.2", "conv2_unit1/expand/norm/batch": "2.conv.0.1",
        "conv2_unit1/depthwise/conv": "2.conv.1.0", "conv2_unit2/project/conv": "3.conv.2",
        "conv3_unit3/project/norm/batch": "6.conv.3", "conv4_unit1/expand/conv": "7.conv.0.0",
        "conv4_unit7/depthwise/norm/batch": "13.conv.1.1", "conv5_unit4/project/conv": "17.conv.2",
        "last/conv": "18.0", "last/norm/batch": "18.1",
    }  # fmt: skip
    for ours, theirs in features.items():
        leaf, suffix = ("kernel", "weight") if ours.endswith("conv") else ("mean", "running_mean")
        assert names[f"backbone/{ours}/{leaf}"] == f"encoder.features.{theirs}.{suffix}", ours
    assert len(set(names.values())) == len(names)


def test_names_of_decoders() -> None:
    names = names_of(tensor_map_of(RESNET18, deeplabv3plus()))
    assert names["context/branch_atrous2/depthwise/kernel"] == "decoder.aspp.0.convs.2.0.0.weight"
    assert names["context/branch_atrous2/pointwise/norm/batch/scale"] == "decoder.aspp.0.convs.2.1.weight"
    assert names["context/head1/pointwise/conv/kernel"] == "decoder.aspp.1.1.weight"
    assert names["decoder/conv2_conv1/depthwise/kernel"] == "decoder.block2.0.0.weight"
    assert names["classifier/bias"] == "segmentation_head.0.bias"
    names = names_of(tensor_map_of(RESNET18, pspnet()))
    assert names["context/bins1/conv/bias"] == "decoder.psp.blocks.0.pool.1.0.bias"
    assert names["context/bins6/norm/batch/var"] == "decoder.psp.blocks.3.pool.1.1.running_var"


def test_names_of_older_versions() -> None:
    """DeepLabV3's decoder was a plain sequence."""
    names = names_of(tensor_map_of(RESNET18, deeplabv3(aspp="decoder.0", conv="decoder.1")))
    assert names["context/projection/conv/kernel"] == "decoder.0.project.0.weight"
    assert names["context/head1/conv/kernel"] == "decoder.1.weight"
    assert names["context/head1/norm/batch/bias"] == "decoder.2.bias"


def test_the_order_of_pspnets_concatenation() -> None:
    """There: pooled regions, then the map. `inputs` says which of their channels each of ours is."""
    order = tensor_map_of(RESNET18, pspnet()).inputs["context/projection"]
    assert order[:2] == (128, 129)
    assert order[128:130] == (0, 1)
    assert sorted(order) == list(range(256))
    assert tensor_map_of(RESNET18, UNET).inputs == {}


@pytest.mark.parametrize(
    ("encoder", "used", "unused"),
    [
        (RESNET18, "encoder.layer2.1.conv1.weight", "encoder.layer3.0.conv1.weight"),
        (MOBILENET_V2, "encoder.features.6.conv.2.weight", "encoder.features.18.0.weight"),
    ],
)
def test_what_lies_beyond_a_shorter_encoder_is_left_out(encoder: Shapes, used: str, unused: str) -> None:
    inputs = 128 if encoder is RESNET18 else 32
    patterns = tensor_map_of(encoder, pspnet(inputs)).unused
    assert any(re.search(pattern, unused) for pattern in patterns)
    assert any(re.search(pattern, "classification_head.3.weight") for pattern in patterns)
    assert not any(re.search(pattern, used) for pattern in patterns)
    whole = tensor_map_of(RESNET18, deeplabv3()).unused
    assert not any(re.search(pattern, "encoder.layer4.1.conv1.weight") for pattern in whole)


@pytest.mark.parametrize(
    ("parts", "asked", "words"),
    [
        ((RESNET18 | {"encoder.conv1.weight": (64,)}, UNET), None, "has the shape (64,), no convolution's"),
        (
            (RESNET18 | {"encoder.layer1.0.conv1.weight": (128, 64, 1, 1)}, UNET),
            None,
            "the encoder is none of resnet18",
        ),
        (({"encoder.stem.weight": (64, 3, 7, 7)}, UNET), None, "the encoder is none of resnet18"),
        ((RESNET18, UNET | {"decoder.blocks.0.attention1.x": (1,)}), None, "the decoder is none of DeepLabV3"),
        ((RESNET18, UNET | {"decoder.pab.top_conv.weight": (1, 1, 1, 1)}), None, "the decoder is none of DeepLabV3"),
        ((RESNET18, deeplabv3()), 32, "output_stride=32: smp's networks run at 8 or 16"),
        ((RESNET18, deeplabv3()), 0, "output_stride=0: smp's networks run at 8 or 16"),
        ((RESNET18, pspnet()), 16, "output_stride=16: smp's pspnet with this encoder runs at 8 only"),
        ((RESNET18, UNET), 16, "output_stride=16: smp's unet with this encoder runs at 32 only"),
        ((RESNET18, pspnet(64)), None, "only encoder_depth 3, 4 and 5"),
        ((RESNET18, deeplabv3(77)), None, "only encoder_depth 3, 4 and 5"),
        (
            (RESNET18, {name: shape for name, shape in UNET.items() if not name.endswith("running_mean")}),
            None,
            "decoder_use_norm is neither batch norm nor none",
        ),
    ],
)
def test_what_cannot_be_converted_says_so(parts: tuple[dict[str, Any], ...], asked: int | None, words: str) -> None:
    with pytest.raises(UserError) as error:
        tensor_map_of(*parts, output_stride=asked)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
