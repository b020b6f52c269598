"""DeepLabv3+ of the repository jfzhang95/pytorch-deeplab-xception, on ResNet-101, Xception and MobileNetV2."""

from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.weights.importers.torch_names import (
    COUNTERS,
    MOBILENET_V2_STAGES,
    resnet_rules,
    stride_of_8_or_16,
    which_resnet,
    xception_rules,
)
from deeplab_jax.weights.tensor_map import Names, Rule, Shapes, TensorMap

BACKBONE = "backbone."
HEAD: tuple[Rule, ...] = (
    (r"context/branch_1x1", ("aspp.aspp1.atrous_conv", "aspp.aspp1.bn")),
    (r"context/branch_atrous(\d)", lambda i: (f"aspp.aspp{i + 1}.atrous_conv", f"aspp.aspp{i + 1}.bn")),
    (r"context/image_pooling", ("aspp.global_avg_pool.1", "aspp.global_avg_pool.2")),
    (r"context/projection", ("aspp.conv1", "aspp.bn1")),
    (r"decoder/conv2_reduction", ("decoder.conv1", "decoder.bn1")),
    (r"decoder/conv2_conv1", ("decoder.last_conv.0", "decoder.last_conv.1")),
    (r"decoder/conv2_conv2", ("decoder.last_conv.4", "decoder.last_conv.5")),
    (r"classifier", ("decoder.last_conv.8", "")),
)


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of its DeepLabv3+; return None for any other.

    Raises:
      UserError: a DRN backbone, or an output stride that the repository does not have.
    """
    logits = shapes.get("decoder.last_conv.8.weight")
    if logits is None or "aspp.aspp1.atrous_conv.weight" not in shapes:
        return None
    if f"{BACKBONE}layer0.0.weight" in shapes:
        raise UserError("jfzhang95's DRN is not converted; its networks on ResNet-101, Xception and MobileNetV2 are")
    backbone = _backbone(shapes)
    if backbone is None:
        return None
    stride = stride_of_8_or_16(output_stride, default=16, whose="jfzhang95's")
    name, backbone_options, backbone_rules, notes = backbone
    options: dict[str, Any] = {
        "align_corners": True,
        "aspp_rates": (6, 12, 18),
        "dropout": 0.5,
        "norm_epsilon": 1e-5,
        "norm_momentum": 0.9,
        **IMAGENET.normalisation,
        **backbone_options,
    }
    return TensorMap(
        name=f"deeplabv3plus_{name}",
        num_classes=logits[0],
        output_stride=stride,
        options=options,
        rules=(*backbone_rules, *HEAD),
        # MobileNetV2's tensors occur twice.
        unused=(COUNTERS, rf"^{BACKBONE}features\."),
        notes=(*notes, "no dropout in the decoder, where jfzhang95's has 0.5 and 0.1 in training"),
    )


def _backbone(shapes: Shapes) -> tuple[str, dict[str, Any], tuple[Rule, ...], tuple[str, ...]] | None:
    """Return our backbone's name, options and rules, and its notes."""
    notes: tuple[str, ...]
    if resnet := which_resnet(shapes, BACKBONE):
        options: dict[str, Any] = {"multi_grid": (1, 2, 4), "first_unit_rate": "stage"}
        return resnet, options, resnet_rules(BACKBONE), ("every convolution of a dilated stage dilated",)
    if f"{BACKBONE}high_level_features.17.conv.6.weight" in shapes:
        options = {"first_unit_rate": "next_stage", "pad_input": True}
        notes = (
            "inverted residuals are padded before their expansion",
            "the stage that loses its stride keeps the rate before it",
        )
        return "mobilenet_v2", options, _mobilenet_rules(), notes
    if f"{BACKBONE}block20.skip.weight" in shapes:
        options = {"first_unit_rate": "previous", "form": "rectified"}
        notes = (
            "every sum of Xception is rectified, and no ReLU follows a depthwise convolution",
            "low-level features are the first unit's output",
            "the exit flow's third separable convolution is never dilated",
        )
        return "xception65", options, (*_exit_rules(), *xception_rules(BACKBONE, units=20, bare=2)), notes
    return None


def _mobilenet_rules() -> tuple[Rule, ...]:
    def layer(stage: int, unit: int, position: int) -> Names:
        number = MOBILENET_V2_STAGES[stage] + unit
        conv = f"{BACKBONE}{'low' if stage < 3 else 'high'}_level_features.{number}.conv"
        return f"{conv}.{position}", f"{conv}.{position + 1}"

    stem = f"{BACKBONE}low_level_features.0"
    unit = r"backbone/conv(\d)_unit(\d+)"
    # The first unit does not expand, so its other layers come earlier.
    return (
        (r"backbone/stem", (f"{stem}.0", f"{stem}.1")),
        (r"backbone/conv1_unit1/depthwise", layer(1, 1, 0)),
        (r"backbone/conv1_unit1/project", layer(1, 1, 3)),
        (f"{unit}/expand", lambda s, u: layer(s, u, 0)),
        (f"{unit}/depthwise", lambda s, u: layer(s, u, 3)),
        (f"{unit}/project", lambda s, u: layer(s, u, 6)),
    )


def _exit_rules() -> tuple[Rule, ...]:
    exit_flow = r"backbone/conv5_unit2/separable(\d)"
    return (
        (f"{exit_flow}/depthwise", lambda i: (f"{BACKBONE}conv{i + 2}.conv1", f"{BACKBONE}conv{i + 2}.bn")),
        (f"{exit_flow}/pointwise", lambda i: (f"{BACKBONE}conv{i + 2}.pointwise", f"{BACKBONE}bn{i + 2}")),
    )
