"""mmsegmentation: its DeepLabv3, DeepLabv3+, PSPNet and FCN on ResNets (its ResNetV1c, and the plain `b` variants).

These are the networks of its configs, such as `deeplabv3plus_r50-d8`. The shapes show channels and depth. A state dict
holds neither the rates nor the output stride: they are those of the configs, unless the file's `meta` has its own.
"""

import ast
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.weights.formats.read import mapping_of
from deeplab_jax.weights.importers.saved_config import META, Config, expect, rates_at_16, refused
from deeplab_jax.weights.importers.torch_names import COUNTERS, RESNETS, resnet_rules, stride_of_8_or_16, which_resnet
from deeplab_jax.weights.peer_networks import option_of, rates_of, spelt
from deeplab_jax.weights.tensor_map import Names, Rule, Shapes, TensorMap, first_are_last

BACKBONE, HEAD, AUX = "backbone.", "decode_head.", "auxiliary_head."
STEM = f"{BACKBONE}stem.0.weight"
RATES = (6, 12, 18)
"""At output stride 16, as ours are stated; the configs for 8 have 12, 24 and 36."""
STAGES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}
"""Output stride to the strides and the dilations of the backbone's stages."""
CLASSES = {"deeplabv3": "ASPPHead", "deeplabv3plus": "DepthwiseSeparableASPPHead"}
"""Our architectures, and its classes of their heads."""
NOT_ALIGNED = "bilinear resizes do not align corners"
LONGEST_CONFIG = 2**17
"""Most characters of a config that is read; mmsegmentation's own have less than a quarter of it."""
ASPP_FIRST = f"{HEAD}aspp_modules.0.conv.weight"
LOGITS = f"{HEAD}conv_seg.weight"


def _module(name: str) -> Names:
    """Return the names of a ConvModule's convolution and norm."""
    return f"{name}.conv", f"{name}.bn"


DECODER: tuple[Rule, ...] = (
    (r"decoder/conv2_reduction", _module(f"{HEAD}c1_bottleneck")),
    (
        r"decoder/conv2_conv(\d)/(depthwise|pointwise)",
        lambda i, kind: _module(f"{HEAD}sep_bottleneck.{i - 1}.{kind}_conv"),
    ),
)
ASPP: tuple[Rule, ...] = (
    (r"context/branch_1x1", _module(f"{HEAD}aspp_modules.0")),
    (r"context/branch_atrous(\d)", lambda i: _module(f"{HEAD}aspp_modules.{i}")),
    (
        r"context/branch_atrous(\d)/(depthwise|pointwise)",
        lambda i, kind: _module(f"{HEAD}aspp_modules.{i}.{kind}_conv"),
    ),
    (r"context/image_pooling", _module(f"{HEAD}image_pool.1")),
    (r"context/projection", _module(f"{HEAD}bottleneck")),
)
HEADS: dict[str, tuple[Rule, ...]] = {
    "deeplabv3": ASPP,
    "deeplabv3plus": (*ASPP, *DECODER),
    "pspnet": (
        *((rf"context/bins{bins}", _module(f"{HEAD}psp_modules.{i}.1")) for i, bins in enumerate((1, 2, 3, 6))),
        (r"context/projection", _module(f"{HEAD}bottleneck")),
    ),
    "fcn": (
        (r"context/conv(\d)", lambda i: _module(f"{HEAD}convs.{i - 1}")),
        (r"context/joined", _module(f"{HEAD}conv_cat")),
    ),
}


def rules_of(name: str) -> tuple[Rule, ...]:
    """Return mmsegmentation's names for the layers of one of our models; none if it has no such network."""
    architecture, _, backbone = name.partition("_")
    if architecture not in HEADS or backbone not in RESNETS:
        return ()
    return (
        (r"backbone/stem_conv(\d)", lambda i: (f"{BACKBONE}stem.{3 * i - 3}", f"{BACKBONE}stem.{3 * i - 2}")),
        *resnet_rules(BACKBONE),
        *HEADS[architecture],
        (r"classifier", (f"{HEAD}conv_seg", "")),
        (r"aux_head/conv", _module(f"{AUX}convs.0")),
        (r"aux_head/classifier", (f"{AUX}conv_seg", "")),
    )


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of one of mmsegmentation's networks; return None for any other.

    Raises:
      UserError: one of its networks, but with a backbone, a head or an output stride that is not supported.
    """
    if LOGITS not in shapes or not any(name.startswith(BACKBONE) for name in shapes):
        return None
    backbone = which_resnet(shapes, BACKBONE)
    first = shapes.get(f"{BACKBONE}layer1.0.conv2.weight")
    if backbone is None or first != (64, 64, 3, 3):
        raise UserError(f"mmsegmentation: the backbone is none of {', '.join(RESNETS)}; only these can be converted")
    architecture, options, inputs, notes = _head(shapes)
    stride = stride_of_8_or_16(output_stride, default=8, whose="mmsegmentation's")
    if architecture == "fcn" and not RESNETS[backbone][1]:
        raise UserError("mmsegmentation's FCN can be converted only on resnet50 and resnet101")
    if shapes[LOGITS][0] == 1:
        notes.append("its own code takes the object where the sigmoid is above 0.3; here --threshold 0.3 does so")
    if STEM in shapes:
        options["deep_stem"] = True
        notes.append("three 3x3 convolutions in the stem (ResNetV1c)")
    if not RESNETS[backbone][1]:
        options["dilate_second"] = False
        notes.append("the second 3x3 convolution of a unit is not dilated")
    name = f"{architecture}_{backbone}"
    return TensorMap(
        name=name,
        num_classes=shapes[LOGITS][0],
        output_stride=stride,
        options={
            "align_corners": False,
            "first_unit_rate": "previous",
            "norm_epsilon": 1e-5,
            "norm_momentum": 0.9,
            "dropout": 0.1,
            **({"multi_grid": (1,) * RESNETS[backbone][0][3]} if architecture.startswith("deeplab") else {}),
            **options,
            "aux_head": f"{AUX}conv_seg.weight" in shapes,
        },
        rules=rules_of(name),
        inputs=inputs,
        unused=(COUNTERS,),
        notes=(NOT_ALIGNED, "no multi-grid", *notes),
    )


def stated_stride(stated: Config) -> int | None:
    """Return the output stride of the config in `meta`; None if it is not known."""
    return _stages(mapping_of(network_of(stated).get("backbone")))[1]


def apply_config(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """Return a network with the class names, and what the config that trained it says; its rates are those at its own
    stride.

    Raises:
      UserError: a field that contradicts the tensors, or stands for something that this package cannot build.
    """
    options, notes = dict(tensor_map.options), list(tensor_map.notes)
    network = network_of(stated)
    backbone, head = mapping_of(network.get("backbone")), mapping_of(network.get("decode_head"))
    stages, stride = _stages(backbone)
    if backbone:
        if stride is None:
            raise refused("backbone.(strides, dilations)", stages, "only those of output strides 8 and 16 are known")
        expect("backbone.style", backbone.get("style", "pytorch"), "pytorch")
        expect("backbone.contract_dilation", backbone.get("contract_dilation", False), True)
        # These are the rates themselves; ours multiply that of the stage.
        expect("backbone.multi_grid", backbone.get("multi_grid"), None)
    aligned = head.get("align_corners", False)
    if type(aligned) is not bool:
        raise refused("decode_head.align_corners", aligned, "only True and False can be converted")
    if aligned:
        options["align_corners"] = True
        notes.remove(NOT_ALIGNED)
    if "dilations" in head and "aspp_rates" in options:
        stride, rates = stride or tensor_map.output_stride, head["dilations"]
        if isinstance(rates, tuple) and rates[:1] == (1,):  # That of the 1x1 convolution.
            rates = list(rates[1:])
        options["aspp_rates"] = rates_at_16(rates, stride, field="decode_head.dilations")
        said = f"rates {', '.join(map(str, rates))} at output stride {stride}"
        notes = [said if note.startswith("rates ") else note for note in notes]
    return replace(
        tensor_map,
        options=options,
        notes=tuple(notes),
        info={**tensor_map.info, **labels_of(stated, tensor_map.num_classes)},
    )


def _stages(backbone: Config) -> tuple[Any, int | None]:
    """Return the strides and dilations of mmsegmentation's ResNet, and their output stride if it is known."""
    stages = backbone.get("strides", (1, 2, 2, 2)), backbone.get("dilations", (1, 1, 1, 1))
    return stages, next((stride for stride, known in STAGES.items() if known == stages), None)


def how_to_build(model: Segmenter) -> str:
    """Return the config of mmsegmentation that fits, and the values to set in it."""
    described = describe(model)
    architecture, backbone = described["name"].split("_", 1)
    options = described["options"]
    strides, dilations = STAGES[model.output_stride]
    widening = 4 if RESNETS[backbone][1] else 1  # of a unit's last convolution
    values: dict[str, Any] = {
        "backbone.type": "ResNetV1c" if options.get("deep_stem") else "ResNet",
        "backbone.depth": int(backbone.removeprefix("resnet")),
        "backbone.in_channels": model.in_channels,
        "backbone.strides": strides,
        "backbone.dilations": dilations,
        "decode_head.in_channels": 512 * widening,
        "decode_head.num_classes": model.num_classes,
        "decode_head.align_corners": model.settings.align_corners,
    }
    if architecture.startswith("deeplab"):
        values |= {
            "decode_head.type": CLASSES[architecture],
            "decode_head.channels": option_of(model, "aspp_channels"),
            "decode_head.dilations": (1, *rates_of(model)),
        }
        if architecture == "deeplabv3plus":
            values["decode_head.c1_channels"] = option_of(model, "low_level_channels")
            values["decode_head.c1_in_channels"] = 64 * widening
    elif architecture == "pspnet":
        values["decode_head.channels"] = option_of(model, "context_channels")
    if model.aux_features is not None:
        values["auxiliary_head.in_channels"] = 256 * widening
        values["auxiliary_head.channels"] = 64 * widening
        values["auxiliary_head.num_classes"] = model.num_classes
    else:
        values["auxiliary_head"] = None
    return f"configs/_base_/models/{architecture}_r50-d8.py with {spelt(values)}"


def network_of(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `model` of the config that the file's `meta` holds; {} if there is none that can be read.

    The config is a Python text, which is not run: a value that is no literal becomes `...`.
    """
    meta = mapping_of(tree.get(META))
    text = meta.get("cfg", meta.get("config"))  # Since version 1, and before.
    if not isinstance(text, str) or len(text) > LONGEST_CONFIG:
        return {}
    try:
        with warnings.catch_warnings(action="ignore"):  # They concern unusual escapes and numbers.
            statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: Any = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id="model")], value=value):
                found = _value(value)
    return mapping_of(found)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(map(_value, items))
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
            return {word.arg: _value(word.value) for word in words}
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    return ...


def labels_of(tree: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Return the class names and colours that the file's `meta` states, if they are of this network, in which one logit
    has two classes.
    """
    count, meta = max(num_classes, 2), mapping_of(tree.get(META))
    now = mapping_of(meta.get("dataset_meta"))  # Since version 1.
    classes = _listed(now.get("classes") or meta.get("CLASSES"), count)
    palette = [_listed(colour, 3) for colour in _listed(now.get("palette") or meta.get("PALETTE"), count)]
    info: dict[str, Any] = {}
    if classes and all(isinstance(name, str) and name.isprintable() for name in classes):
        info["class_names"] = classes
    if palette and all(colour and all(type(v) is int and 0 <= v <= 255 for v in colour) for colour in palette):
        info["palette"] = palette
    return info


def _listed(value: Any, length: int) -> list[Any]:
    """Return a list or tuple of that length as a list; [] for anything else."""
    return list(value) if isinstance(value, list | tuple) and len(value) == length else []


Head = tuple[str, dict[str, Any], dict[str, tuple[int, ...]], list[str]]


def _head(shapes: Shapes) -> Head:
    """Return our architecture, its options, the order of inputs, and notes."""
    if ASPP_FIRST in shapes and f"{HEAD}image_pool.1.conv.weight" in shapes:
        return _aspp(shapes)
    if f"{HEAD}psp_modules.3.1.conv.weight" in shapes:
        return "pspnet", {"context_channels": shapes[LOGITS][1]}, {}, []
    if f"{HEAD}conv_cat.conv.weight" in shapes and f"{HEAD}convs.2.conv.weight" not in shapes:
        return "fcn", {"join_input": True}, {}, ["three 3x3 convolutions; the last also takes their input"]
    raise UserError(
        "mmsegmentation: the decode head is none of ASPPHead, DepthwiseSeparableASPPHead, PSPHead and FCNHead; only "
        "these can be converted"
    )


def _aspp(shapes: Shapes) -> Head:
    channels = shapes[ASPP_FIRST][0]
    separable = f"{HEAD}aspp_modules.1.depthwise_conv.conv.weight" in shapes
    options: dict[str, Any] = {"aspp_channels": channels, "aspp_rates": RATES, "projection_kernel": 3}
    notes = ["rates 12, 24, 36 at output stride 8, and half of them at 16", "3x3 instead of 1x1 after the pyramid"]
    # There the pooled image comes first.
    inputs = {"context/projection": first_are_last(channels, 5 * channels)}
    low = shapes.get(f"{HEAD}c1_bottleneck.conv.weight")
    if low is None and separable:
        raise UserError(
            "mmsegmentation: a separable pyramid without low-level features cannot be converted: its head has two more "
            "separable convolutions (sep_bottleneck), which no DeepLabv3 here has"
        )
    if low is None:
        return "deeplabv3", options, inputs, notes
    notes.append("its dropout stands before the classifier, this one after the pyramid")
    options |= {"separable": True, "low_level_channels": low[0], "decoder_convs": ((3, channels), (3, channels))}
    return "deeplabv3plus", options, inputs, notes
