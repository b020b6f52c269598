"""TensorFlow's official DeepLab releases (the repository tensorflow/models, research/deeplab), by slim's names."""

from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.inverted_residual import scale_channels
from deeplab_jax.models.backbones.mobilenet_v2 import ROWS, STEM_CHANNELS
from deeplab_jax.models.preprocessing import CAFFE, SYMMETRIC
from deeplab_jax.weights.importers.torch_names import MOBILENET_V2_STAGES
from deeplab_jax.weights.tensor_map import SLIM, Names, Rule, Shapes, TensorMap, first_are_last

OUTPUT_STRIDE = 16  # The one of their training; a checkpoint does not state it.
LOGITS = "logits/semantic"
CLASSES = 21  # For a network without a classifier in the file.
NORM = "/BatchNorm"
# Variables that training adds: optimizers' slots, averages, counters.
SLOTS = (r"/(Momentum|RMSProp|Adam|Adagrad)(_\d)?$", r"/ExponentialMovingAverage$", r"^global_step$")
# Units of the entry flow's blocks, by our names.
XCEPTION_ENTRIES = {
    "xception_41": ("conv2_unit1", "conv3_unit1", "conv4_unit1"),
    "xception_65": ("conv2_unit1", "conv3_unit1", "conv4_unit1"),
    "xception_71": ("conv2_unit1", "conv2_unit2", "conv3_unit1", "conv3_unit2", "conv4_unit1"),
}
RESNETS = {"resnet_v1_50": "resnet50", "resnet_v1_101": "resnet101"}
MOBILENET = "MobilenetV2"
# Widths that they released or that others use, then any; the first one with the right channel counts applies.
WIDTHS = (1.0, 0.5, 0.35, 0.75, 1.3, 1.4, *(hundredths / 100 for hundredths in range(5, 201)))
# The channels of the end points to which a decoder is attached, at stride 4 and 8.
LOW_LEVEL = {"conv2": (256,), "conv3": (512, 728)}
# Their decoders, from the coarsest level to the finest, which is the order of their variables. The usual one is first.
DECODERS = (("conv2",), ("conv3",), ("conv3", "conv2"))
REDUCTIONS = ("decoder/feature_projection0/weights", "decoder/feature_projection0_1/weights")


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a checkpoint of DeepLabv3 or v3+ on ResNet-50/101, Xception-41/65/71 or MobileNetV2, or of one of these
    backbones trained on ImageNet; return None for any other.

    Batch norms may have been folded into the convolutions, which then have biases.

    Raises:
      UserError: a network of theirs that this package does not have.
    """
    scope = next((name for name in (*RESNETS, *XCEPTION_ENTRIES, MOBILENET) if _has_scope(shapes, name)), None)
    if scope is None:
        return None
    if scope in RESNETS:
        backbone, rules, options, notes = _resnet(shapes, scope)
    elif scope in XCEPTION_ENTRIES:
        backbone, rules, options, notes = _xception(scope)
    else:
        backbone, rules, options, notes = _mobilenet(shapes)
    options["align_corners"] = True
    if not any(NORM in name for name in shapes):
        options["norm"] = "none"
    architecture = "deeplabv3plus"
    inputs: dict[str, tuple[int, ...]] = {}
    logits = shapes.get(f"{LOGITS}/weights")
    if logits is None:
        notes.append("only the backbone is from the file, the rest starts at random")
    else:
        head = _head(shapes)
        rules = (*rules, *_head_rules(head.get("low_level", ())[::-1]))
        options, notes = options | head, notes + _head_notes(head, shapes)
        architecture = "deeplabv3plus" if "low_level" in head else "deeplabv3"
        inputs = _pooling_first(shapes)
    return TensorMap(
        name=f"{architecture}_{backbone}",
        num_classes=logits[-1] if logits else CLASSES,
        output_stride=OUTPUT_STRIDE if output_stride is None else output_stride,
        options=options,
        rules=rules,
        layout=SLIM,
        inputs=inputs,
        unused=(*SLOTS, rf"^{scope}/(logits|Logits|Conv_1)/"),
        absent=() if logits else (r"(?!backbone/)",),
        notes=tuple(notes),
    )


def _has_scope(shapes: Shapes, scope: str) -> bool:
    return any(name.startswith(f"{scope}/") for name in shapes)


def _named(name: str) -> Names:
    return name, name + NORM


def _resnet(shapes: Shapes, scope: str) -> tuple[str, tuple[Rule, ...], dict[str, Any], list[str]]:
    beta = f"{scope}/conv1_1/weights" in shapes

    def unit(stage: int, number: int, layer: str) -> Names:
        return _named(f"{scope}/block{stage - 1}/unit_{number}/bottleneck_v1/{layer}")

    path = r"backbone/conv(\d)_unit(\d+)"
    rules: tuple[Rule, ...] = (
        (r"backbone/conv1", _named(f"{scope}/conv1")),
        (r"backbone/stem_conv(\d)", lambda i: _named(f"{scope}/conv1_{i}")),
        (f"{path}/shortcut", lambda s, u: unit(s, u, "shortcut")),
        (rf"{path}/conv(\d)", lambda s, u, c: unit(s, u, f"conv{c}")),
    )
    options: dict[str, Any] = {
        "multi_grid": (1, 2, 4),
        "first_unit_rate": "last_unit",
        "pool_padding": "same",
        "norm_momentum": 0.95,
        # The authors' code subtracts the mean only from the images of the plain form.
        **(SYMMETRIC if beta else CAFFE).normalisation,
    }
    notes = [
        "multi-grid (1, 2, 4), which the checkpoint does not say",
        "the first pooling pads as TensorFlow does, which at even sides differs from symmetric padding",
        "running statistics decay by 0.95 in the head too, the authors' there by 0.9997",
    ]
    return RESNETS[scope] + ("_beta" if beta else ""), rules, options, notes


def _xception(scope: str) -> tuple[str, tuple[Rule, ...], dict[str, Any], list[str]]:
    middle = 8 if scope == "xception_41" else 16
    units = {name: f"entry_flow/block{i}/unit_1" for i, name in enumerate(XCEPTION_ENTRIES[scope], 1)}
    units |= {f"conv4_unit{i + 1}": f"middle_flow/block1/unit_{i}" for i in range(1, middle + 1)}
    units |= {f"conv5_unit{i}": f"exit_flow/block{i}/unit_1" for i in (1, 2)}

    def unit(name: str, layer: str) -> Names:
        return _named(f"{scope}/{units[name]}/xception_module/{layer}")

    path = r"backbone/(conv\d_unit\d+)"
    rules: tuple[Rule, ...] = (
        (r"backbone/stem_conv(\d)", lambda i: _named(f"{scope}/entry_flow/conv1_{i}")),
        (f"{path}/shortcut", lambda u: unit(u, "shortcut")),
        (rf"{path}/separable(\d)/(depthwise|pointwise)", lambda u, c, part: unit(u, f"separable_conv{c}_{part}")),
    )
    options = {"depthwise_activation": False, "norm_momentum": 0.9997, **SYMMETRIC.normalisation}
    notes = ["no ReLU after the depthwise convolutions of the units with a shortcut"]
    return scope.replace("_", ""), rules, options, notes


def _mobilenet(shapes: Shapes) -> tuple[str, tuple[Rule, ...], dict[str, Any], list[str]]:
    def unit(stage: int, number: int, layer: str) -> Names:
        index = MOBILENET_V2_STAGES[stage] + number - 1
        return _named(f"{MOBILENET}/expanded_conv{f'_{index}' if index else ''}/{layer}")

    rules: tuple[Rule, ...] = (
        (r"backbone/stem", _named(f"{MOBILENET}/Conv")),
        (r"backbone/conv(\d)_unit(\d+)/(expand|depthwise|project)", unit),
    )
    width, divisor = _mobilenet_width(shapes)
    options = {
        "width": width,
        "channel_divisor": divisor,
        "first_unit_rate": "previous",
        "strided_padding": "same",
        "norm_momentum": 0.997,
        **SYMMETRIC.normalisation,
    }
    notes = [
        "strided convolutions pad as TensorFlow does, which at even sides differs from symmetric padding",
        "running statistics decay by 0.997 in the head too, the authors' there by 0.9997",
    ]
    return "mobilenet_v2", rules, options, notes


def _mobilenet_width(shapes: Shapes) -> tuple[float, int]:
    """Return the depth multiplier that makes these channel counts, and the divisor to which they are rounded."""
    rows = [(STEM_CHANNELS, "Conv")]
    units = 0
    for _, channels, count, _, _ in ROWS:
        rows.append((channels, f"expanded_conv{f'_{units}' if units else ''}/project"))
        units += count
    found = [shapes.get(f"{MOBILENET}/{name}/weights", (0,))[-1] for _, name in rows]
    for width in WIDTHS:
        for divisor in (8, 1):
            if found == [scale_channels(channels, width, divisor=divisor) for channels, _ in rows]:
                return width, divisor
    raise UserError(f"{MOBILENET} with {found} channels: no depth multiplier between 0.05 and 2 makes these")


def _head(shapes: Shapes) -> dict[str, Any]:
    """Return the options of a head."""
    projection, branch = (shapes.get(f"{name}/weights") for name in ("concat_projection", "aspp0"))
    if not projection or not branch:
        raise UserError(
            "this DeepLab for TensorFlow has no pyramid like DeepLabv3's (aspp0, concat_projection): its head "
            "is not converted"
        )
    pyramid = [name for name in shapes if name.startswith("aspp") and name.endswith(("/weights", "/depthwise_weights"))]
    atrous = {name.split("/")[0].removesuffix("_pointwise").removesuffix("_depthwise") for name in pyramid} - {"aspp0"}
    if len(atrous) not in (0, 3):
        raise UserError(
            f"a pyramid with {len(atrous)} atrous branches: its rates are not in the file, and only those of "
            "three (6, 12, 18) are known"
        )
    separable = "aspp1_depthwise/depthwise_weights" in shapes
    options: dict[str, Any] = {
        "aspp_rates": (6, 12, 18) if atrous else (),
        "aspp_channels": branch[-1],
        "image_pooling": "image_pooling/weights" in shapes,
        "separable": separable,
        "dropout": 0.1,
    }
    return options | _decoder(shapes, separable) if _has_scope(shapes, "decoder") else options


def _decoder(shapes: Shapes, aspp_separable: bool) -> dict[str, Any]:
    levels = _levels(shapes)
    separable = "decoder/decoder_conv0_depthwise/depthwise_weights" in shapes
    last = "decoder/decoder_conv1_pointwise" if separable else "decoder/decoder_conv0/decoder_conv0_2"
    channels = shapes.get(f"{last}/weights", (0,))[-1]
    if not channels:
        raise UserError(f"a decoder without {last}: only that of DeepLabv3+, of two convolutions, is converted")
    return {
        "low_level": levels[::-1],
        "low_level_channels": shapes[REDUCTIONS[0]][-1],
        "decoder_convs": ((3, channels), (3, channels)),
        "separable": separable,
        "aspp_separable": aspp_separable,
        **({"low_level_within": True} if _has_scope(shapes, MOBILENET) else {}),
    }


def _levels(shapes: Shapes) -> tuple[str, ...]:
    """Return which of our features a decoder takes, coarsest first; where several may be meant, the usual ones."""
    taken = [shapes[name][2] for name in REDUCTIONS if name in shapes]
    channels = _low_level(shapes)
    for levels in DECODERS:
        if len(levels) == len(taken) and all(n in channels[level] for n, level in zip(taken, levels, strict=True)):
            return levels
    raise UserError("only a decoder on features of stride 4, 8 or both is converted; this one uses others")


def _low_level(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the channels that each of our features may have, which tell them apart."""
    if not _has_scope(shapes, MOBILENET):
        return LOW_LEVEL
    # Within the last units of stride 4 and 8.
    return {
        level: shapes.get(f"{MOBILENET}/expanded_conv_{unit}/depthwise/depthwise_weights", (0, 0, 0))[2:3]
        for level, unit in (("conv2", 2), ("conv3", 5))
    }


def _head_rules(levels: tuple[str, ...]) -> tuple[Rule, ...]:
    suffixes = {level: f"_{stage}" if stage else "" for stage, level in enumerate(levels)}

    def repeated(level: str, conv: int) -> Names:
        block = f"decoder_conv0{suffixes[level]}"
        return _named(f"decoder/{block}/{block}_{conv}")

    def separated(level: str, conv: int, part: str) -> Names:
        return _named(f"decoder/decoder_conv{conv - 1}{suffixes[level]}_{part}")

    return (
        (r"context/branch_1x1", _named("aspp0")),
        (r"context/branch_atrous(\d)", lambda i: _named(f"aspp{i}")),
        (r"context/branch_atrous(\d)/(depthwise|pointwise)", lambda i, kind: _named(f"aspp{i}_{kind}")),
        (r"context/image_pooling", _named("image_pooling")),
        (r"context/projection", _named("concat_projection")),
        (r"decoder/(conv\d)_reduction", lambda level: _named(f"decoder/feature_projection0{suffixes[level]}")),
        (r"decoder/(conv\d)_conv(\d)", repeated),
        (r"decoder/(conv\d)_conv(\d)/(depthwise|pointwise)", separated),
        (r"classifier", (LOGITS, "")),
    )


def _pooling_first(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the order of the projection's inputs: theirs begin with the image pooling, ours end with it."""
    if "image_pooling/weights" not in shapes:
        return {}
    pooled, inputs = shapes["image_pooling/weights"][-1], shapes["concat_projection/weights"][2]
    return {"context/projection": first_are_last(pooled, inputs)}


def _head_notes(head: dict[str, Any], shapes: Shapes) -> list[str]:
    notes = []
    if not head["aspp_rates"]:
        notes.append("no atrous branches in the pyramid")
    if head["separable"]:
        notes.append("separable convolutions in the head")
    if head.get("low_level_within"):
        notes.append("the decoder's features are from within the last units of their stages")
        if head["low_level"] == ("conv2",) and len(set(_low_level(shapes).values())) == 1:
            notes.append("the decoder's features are taken to be of stride 4; those of stride 8 have as many channels")
    return notes
