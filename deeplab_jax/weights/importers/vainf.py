"""The networks of the repository VainF/DeepLabV3Plus-Pytorch: DeepLabv3 and v3+ on ResNet, MobileNetV2, Xception."""

from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.weights.importers.torch_names import (
    COUNTERS,
    aspp_rules,
    mobilenet_v2_rules,
    resnet_rules,
    stride_of_8_or_16,
    which_resnet,
    xception_rules,
)
from deeplab_jax.weights.tensor_map import Rule, Shapes, TensorMap, first_are_last

BACKBONE, HEAD = "backbone.", "classifier."
ASPP_CHANNELS, LOW_LEVEL_CHANNELS = 256, 48
# The first so many entries of MobileNetV2's `features` are called `low_level_features`, the rest `high_level_features`.
LOW_LEVEL_UNITS = 4


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of deeplabv3 or deeplabv3plus; return None for any other.

    Raises:
      UserError: an HRNetV2 backbone, or an output stride that the repository does not have.
    """
    plus = f"{HEAD}project.0.weight" in shapes
    aspp = f"{HEAD}aspp" if plus else f"{HEAD}classifier.0"
    logits = shapes.get(f"{HEAD}classifier.{3 if plus else 4}.weight")
    if logits is None or f"{aspp}.convs.0.0.weight" not in shapes:
        return None
    if f"{BACKBONE}transition1.0.0.weight" in shapes:
        raise UserError("VainF's HRNetV2 is not converted; its networks on ResNet, MobileNetV2 and Xception are")
    backbone = _backbone(shapes)
    if backbone is None:
        return None
    stride = stride_of_8_or_16(output_stride, default=16, whose="VainF's")
    name, backbone_options, backbone_rules, backbone_notes = backbone
    separable = f"{aspp}.convs.1.0.body.0.weight" in shapes
    options: dict[str, Any] = {
        "align_corners": False,
        "aspp_rates": (6, 12, 18),
        "dropout": 0.1,
        "separable": separable,
        "norm_epsilon": 1e-5,
        "norm_momentum": 0.99,
        **IMAGENET.normalisation,
        **backbone_options,
    }
    notes = [
        "bilinear resizes do not align corners",
        *backbone_notes,
        "running statistics decay by 0.99 in the head too, VainF's there by 0.9",
    ]
    if separable:
        options["depthwise_norm"] = False
        notes.append("nothing between the depthwise and the pointwise convolutions of the head")
    if plus:
        options["decoder_convs"] = ((3, ASPP_CHANNELS),)
        notes.append("one 3x3 convolution in the decoder")
    else:
        options["head_convs"] = ((3, ASPP_CHANNELS),)
        notes.append("one more 3x3 convolution after the pyramid")
    return TensorMap(
        name=f"{'deeplabv3plus' if plus else 'deeplabv3'}_{name}",
        num_classes=logits[0],
        output_stride=stride,
        options=options,
        rules=(*backbone_rules, *_head_rules(aspp, plus=plus)),
        # There the low-level features come first.
        inputs=dict.fromkeys(
            [f"decoder/conv2_conv1{part}" for part in ("", "/depthwise", "/pointwise")],
            first_are_last(LOW_LEVEL_CHANNELS, LOW_LEVEL_CHANNELS + ASPP_CHANNELS),
        ),
        unused=(COUNTERS,),
        notes=tuple(notes),
    )


def _backbone(shapes: Shapes) -> tuple[str, dict[str, Any], tuple[Rule, ...], tuple[str, ...]] | None:
    """Return our backbone's name, options and rules, and its notes."""
    if resnet := which_resnet(shapes, BACKBONE):
        options: dict[str, Any] = {"multi_grid": (1, 1, 1), "first_unit_rate": "previous"}
        return resnet, options, resnet_rules(BACKBONE), ("no multi-grid",)
    if f"{BACKBONE}high_level_features.17.conv.2.weight" in shapes:
        options = {"first_unit_rate": "previous", "stem_padding": "valid", "pad_input": True}
        notes = ("the first convolution is not padded", "inverted residuals are padded before their expansion")
        return "mobilenet_v2", options, mobilenet_v2_rules(BACKBONE, features=_features), notes
    if f"{BACKBONE}block12.skip.weight" in shapes:
        options = {"first_unit_rate": "stage", "form": "original"}
        notes = (
            "the original Xception with max pooling, its first two convolutions not padded",
            "the last two separable convolutions crop the map, and no batch norm or ReLU follows the second",
        )
        return "xception41", options, (*_exit_rules(), *xception_rules(BACKBONE, units=12, bare=1)), notes
    return None


def _features(place: int) -> str:
    """Return the name of an entry of MobileNetV2's `features`, which it has in two halves."""
    return f"{'low' if place < LOW_LEVEL_UNITS else 'high'}_level_features.{place}"


def _exit_rules() -> tuple[Rule, ...]:
    exit_flow = r"backbone/conv5_unit2/separable"
    return (
        (rf"{exit_flow}1/depthwise", (f"{BACKBONE}conv3.conv1", "")),
        (rf"{exit_flow}1/pointwise", (f"{BACKBONE}conv3.pointwise", f"{BACKBONE}bn3")),
        (rf"{exit_flow}2_depthwise", (f"{BACKBONE}conv4.conv1", "")),
        (rf"{exit_flow}2_pointwise", (f"{BACKBONE}conv4.pointwise", "")),
    )


def _head_rules(aspp: str, *, plus: bool) -> tuple[Rule, ...]:
    classifier = f"{HEAD}classifier."
    # For the one 3x3 after the pyramid, or in the decoder.
    layer, number = ("decoder/conv2_conv1", 0) if plus else ("context/head1", 1)
    names = f"{classifier}{number}", f"{classifier}{number + 1}"
    return (
        *aspp_rules(aspp, inside="body."),
        (r"decoder/conv2_reduction", (f"{HEAD}project.0", f"{HEAD}project.1")),
        (layer, names),
        (f"{layer}/depthwise", (f"{names[0]}.body.0", "")),
        (f"{layer}/pointwise", (f"{names[0]}.body.1", names[1])),
        (r"classifier", (f"{classifier}{number + 3}", "")),
    )
