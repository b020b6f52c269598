"""segmentation_models_pytorch: its DeepLabV3, DeepLabV3Plus, PSPNet and Unet on ResNets and MobileNetV2.

These are the networks of version 0.6, as from `smp.DeepLabV3("resnet50")`. The shapes show channels, depth and
separable convolutions. A state dict does not hold the rates, the output stride, the interpolation of Unet or an
activation of the logits: they are taken as smp's defaults.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.weights.importers.saved_config import (
    META,
    Config,
    check_activation,
    dropout_of,
    expect,
    rates_at_16,
    refused,
)
from deeplab_jax.weights.importers.torch_names import (
    COUNTERS,
    RESNETS,
    aspp_rules,
    mobilenet_v2_rules,
    resnet_rules,
    stride_of_8_or_16,
    which_resnet,
)
from deeplab_jax.weights.peer_networks import option_of, rates_of, spelt
from deeplab_jax.weights.tensor_map import Names, Rule, Shapes, TensorMap, first_are_last

RATES = (12, 24, 36)
RATES_NOTE = "rates 12, 24, 36 at any output stride, unless it was trained with others"
DILATION_NOTE = "every convolution of a stage that lost its stride is dilated, and no multi-grid"
DEPTHS = (3, 4, 5)
# Channels after each halving of the image's size.
CHANNELS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnet101": (64, 256, 512, 1024, 2048),
    "mobilenet_v2": (16, 24, 32, 96, 1280),
}
HEAD = "segmentation_head.0"
CLASSES = {"deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3Plus", "pspnet": "PSPNet", "unet": "Unet"}
"""Our architectures, and its classes of them."""
# Fields of `config.json` that the shapes show, too, or that leave the logits as they are.
KNOWN_FIELDS = ("encoder_weights", "aux_params", "decoder_aspp_dropout", "psp_dropout", "encoder_output_stride")


def _pair(block: str) -> Names:
    """Return the names of a block's convolution and of the norm after it."""
    return f"{block}.0", f"{block}.1"


# Of DeepLabV3: its ASPP, and the convolution and norm after it. Older versions numbered them.
DEEPLABV3 = ("decoder.aspp", "decoder.conv", "decoder.bn")
NUMBERED = ("decoder.0", "decoder.1", "decoder.2")
DECODERS: dict[str, tuple[Rule, ...]] = {
    "deeplabv3": (*aspp_rules(DEEPLABV3[0]), (r"context/head1", DEEPLABV3[1:])),
    "deeplabv3plus": (
        *aspp_rules("decoder.aspp.0"),
        (r"context/head1/depthwise", ("decoder.aspp.1.0", "")),
        (r"context/head1/pointwise", ("decoder.aspp.1.1", "decoder.aspp.2")),
        (r"decoder/conv2_reduction", _pair("decoder.block1")),
        (r"decoder/conv2_conv1/depthwise", ("decoder.block2.0.0", "")),
        (r"decoder/conv2_conv1/pointwise", ("decoder.block2.0.1", "decoder.block2.1")),
    ),
    "pspnet": (
        *((rf"context/bins{bins}", _pair(f"decoder.psp.blocks.{i}.pool.1")) for i, bins in enumerate((1, 2, 3, 6))),
        (r"context/projection", _pair("decoder.conv")),
    ),
    "unet": ((r"decoder/step(\d)_conv(\d)", lambda step, conv: _pair(f"decoder.blocks.{step - 1}.conv{conv}")),),
}


def rules_of(name: str) -> tuple[Rule, ...]:
    """Return smp's names for the layers of one of our models; none if smp has no such network."""
    architecture, _, encoder = name.partition("_")
    if architecture not in DECODERS or encoder not in CHANNELS:
        return ()
    names = mobilenet_v2_rules if encoder == "mobilenet_v2" else resnet_rules
    return (*names("encoder."), *DECODERS[architecture], (r"classifier", (HEAD, "")))


def _older_rules(name: str) -> tuple[Rule, ...]:
    """Return the names of DeepLabV3's layers in older versions."""
    return (*aspp_rules(NUMBERED[0]), (r"context/head1", NUMBERED[1:]), *rules_of(name))


@dataclass(frozen=True)
class _Decoder:
    """What is known of a decoder before the encoder's depth is known.

    Attributes:
      architecture: our name.
      inputs: channels that it takes from the encoder's last features.
      options: options for `create_model`.
      notes: its differences from the paper's decoder.
    """

    architecture: str
    inputs: int
    options: Mapping[str, Any]
    notes: tuple[str, ...]


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of one of smp's networks; return None for any other.

    Raises:
      UserError: one of smp's networks, but with an encoder, a decoder or an output stride that is not supported.
    """
    if f"{HEAD}.weight" not in shapes or not any(name.startswith("encoder.") for name in shapes):
        return None
    encoder = _encoder(shapes)
    decoder = _decoder(shapes, encoder)
    depth = 1 + CHANNELS[encoder].index(decoder.inputs) if decoder.inputs in CHANNELS[encoder] else 0
    if depth not in DEPTHS:
        raise UserError(f"smp's {decoder.architecture}_{encoder}: only encoder_depth 3, 4 and 5 can be converted")
    stride = _stride(decoder.architecture, depth, output_stride)
    options = {**decoder.options, **_encoder_options(encoder, depth), **_norms(shapes, decoder.architecture)}
    if decoder.architecture.startswith("deeplab"):
        # The rates are the same at any output stride; ours are stated at 16.
        options["aspp_rates"] = tuple(rate * stride // 16 for rate in RATES)
        if encoder != "mobilenet_v2":
            options["multi_grid"] = (1,) * RESNETS[encoder][0][3]
    if decoder.architecture == "unet":
        finest = "conv1" if encoder == "mobilenet_v2" else "stem"
        options["skips"] = ("conv4", "conv3", "conv2", finest, "")[5 - depth :]
    name = f"{decoder.architecture}_{encoder}"
    return TensorMap(
        name=name,
        num_classes=_kernel(shapes, HEAD)[0],
        output_stride=stride,
        options=options,
        rules=_older_rules(name) if f"{NUMBERED[0]}.convs.0.0.weight" in shapes else rules_of(name),
        inputs=_inputs(decoder),
        # An auxiliary classifier of whole images, and the part that a shortened encoder does not run.
        unused=(COUNTERS, r"^classification_head\.", *_unused(encoder, depth)),
        notes=decoder.notes,
    )


def apply_config(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """Return a network as its `config.json` states it; see `saved_config`.

    Raises:
      UserError: a field that contradicts the tensors, or stands for something that this package cannot build.
    """
    architecture, encoder = tensor_map.name.split("_", 1)
    options, notes = dict(tensor_map.options), list(tensor_map.notes)
    depth = int(str(options.get("last_stage", "conv5"))[-1])
    facts: dict[str, Any] = {
        "_model_class": CLASSES[architecture],
        "encoder_name": encoder,
        "encoder_depth": depth,
        "in_channels": options.get("in_channels", 3),
        "classes": tensor_map.num_classes,
        "decoder_attention_type": None,
        "decoder_interpolation": "nearest",
    }
    if architecture.startswith("deeplab"):
        facts |= {"decoder_channels": options["aspp_channels"], "decoder_aspp_separable": options["aspp_separable"]}
        stride = stated.get("encoder_output_stride") or tensor_map.output_stride
        # None is the factor that leads to the image's size.
        facts["upsampling"] = 4 if architecture == "deeplabv3plus" else min(stride, 2**depth)
    elif architecture == "pspnet":
        facts |= {"psp_out_channels": options["context_channels"], "upsampling": 2**depth}
    else:
        facts["decoder_channels"] = list(options["decoder_channels"])
    checked: dict[str, Callable[[Any], None]] = {
        "activation": lambda value: check_activation(value, options, notes),
        "decoder_use_norm": _check_norm,
        "decoder_use_batchnorm": _check_norm,
        "psp_use_batchnorm": _check_norm,
        "decoder_atrous_rates": lambda value: options.update(aspp_rates=rates_at_16(value, tensor_map.output_stride)),
    }
    for field, value in stated.items():
        if field in ("preprocessor", META):  # Other programs write these: a file in the folder, and what they save.
            continue
        if field in facts:
            if not (field == "upsampling" and value is None):
                expect(field, value, facts[field])
        elif field in checked:
            checked[field](value)
        elif field not in KNOWN_FIELDS:
            raise refused(field, value, "it is not known here; remove the line if it changes no logits")
    if "dropout" in options:
        options["dropout"] = dropout_of(
            stated, "psp_dropout" if architecture == "pspnet" else "decoder_aspp_dropout", options
        )
    if "decoder_atrous_rates" in stated:
        rates = ", ".join(map(str, stated["decoder_atrous_rates"]))
        notes = [f"rates {rates} at any output stride" if note.startswith("rates ") else note for note in notes]
    return replace(tensor_map, options=options, notes=tuple(notes))


def _check_norm(value: Any) -> None:
    kind = value["type"] if isinstance(value, dict) and set(value) == {"type"} else value
    if kind not in (True, False, "batchnorm", "identity"):
        raise refused("decoder_use_norm", value, "only batch norm and none can be converted")


def how_to_build(model: Segmenter) -> str:
    """Return the call that builds the network of segmentation_models_pytorch, as `smp`."""
    described = describe(model)
    architecture, encoder = described["name"].split("_", 1)
    options = described["options"]
    depth = (
        len(option_of(model, "decoder_channels"))
        if architecture == "unet"
        else int((option_of(model, "last_stage") or "conv5")[-1])
    )
    arguments: dict[str, Any] = {"encoder_weights": None, "encoder_depth": depth}
    if architecture.startswith("deeplab"):
        branches = option_of(model, "aspp_separable")
        arguments |= {
            "encoder_output_stride": 8 if model.output_stride == 8 and depth > 3 else 16,
            "decoder_channels": option_of(model, "aspp_channels"),
            "decoder_aspp_separable": bool(option_of(model, "separable") if branches is None else branches),
            "decoder_atrous_rates": rates_of(model),
        }
    elif architecture == "pspnet":
        arguments |= {"psp_out_channels": option_of(model, "context_channels"), "upsampling": 2**depth}
    else:
        arguments["decoder_channels"] = tuple(option_of(model, "decoder_channels"))
    if options.get("norm") == "none":
        arguments["decoder_use_norm"] = False
    arguments |= {"in_channels": model.in_channels, "classes": model.num_classes}
    return f"smp.{CLASSES[architecture]}({encoder!r}, {spelt(arguments)})"


def _encoder(shapes: Shapes) -> str:
    encoder, stem = which_resnet(shapes, "encoder."), "encoder.conv1"
    if shapes.get("encoder.features.18.0.weight", ())[:1] == (CHANNELS["mobilenet_v2"][-1],):
        encoder, stem = "mobilenet_v2", "encoder.features.0.0"
    # ResNeXt networks have the units of ResNets, but wider; others have the same units but another stem.
    elif shapes.get("encoder.layer1.0.conv1.weight", ())[:1] != (64,):
        encoder = None
    if encoder is None or f"{stem}.weight" not in shapes:
        raise UserError(f"smp: the encoder is none of {', '.join(CHANNELS)}; only models on these can be converted")
    _kernel(shapes, stem)
    return encoder


def _kernel(shapes: Shapes, layer: str) -> tuple[int, ...]:
    """Return the shape of a convolution's kernel: outputs, inputs, height, width."""
    shape = shapes[f"{layer}.weight"]
    if len(shape) != 4 or min(shape) < 1:
        raise UserError(f"smp: {layer}.weight has the shape {shape}, no convolution's; the file is damaged")
    return shape


def _decoder(shapes: Shapes, encoder: str) -> _Decoder:
    if "decoder.aspp.0.convs.0.0.weight" in shapes:
        return _deeplab("deeplabv3plus", shapes, "decoder.aspp.0")
    for aspp, conv, _ in (DEEPLABV3, NUMBERED):
        if f"{aspp}.convs.0.0.weight" in shapes and f"{conv}.weight" in shapes:
            return _deeplab("deeplabv3", shapes, aspp)
    if "decoder.psp.blocks.0.pool.1.0.weight" in shapes and "decoder.conv.0.weight" in shapes:
        return _pspnet(shapes)
    if all(re.match(r"decoder\.blocks\.\d\.conv", name) for name in shapes if name.startswith("decoder.")):
        return _unet(shapes, encoder)
    raise UserError(
        "smp: the decoder is none of DeepLabV3, DeepLabV3Plus, PSPNet and Unet (without attention); only these can be "
        "converted"
    )


def _deeplab(architecture: str, shapes: Shapes, aspp: str) -> _Decoder:
    channels, inputs = _kernel(shapes, f"{aspp}.convs.0.0")[:2]
    options: dict[str, Any] = {
        "aspp_channels": channels,
        "head_convs": ((3, channels),),
        "aspp_separable": f"{aspp}.convs.1.0.0.weight" in shapes,
        "depthwise_norm": False,
        "dropout": 0.5,
    }
    notes: tuple[str, ...] = ("one more 3x3 convolution after the pyramid",)
    if architecture == "deeplabv3plus":
        options |= {"decoder_convs": ((3, channels),), "separable": True}
        notes = (
            "one more separable 3x3 convolution after the pyramid, and one instead of two in the decoder",
            "nothing between the depthwise and the pointwise convolution of a separable one",
        )
    return _Decoder(architecture, inputs, options, (RATES_NOTE, *notes, DILATION_NOTE))


def _pspnet(shapes: Shapes) -> _Decoder:
    channels, both = _kernel(shapes, "decoder.conv.0")[:2]
    return _Decoder(
        "pspnet",
        both // 2,
        {
            "context_channels": channels,
            "context_kernel": 1,
            "classifier_kernel": 3,
            "norm_single": False,
            "dropout": 0.2,
        },
        (
            "an encoder that ends early instead of dilated stages",
            "1x1 after the pyramid and 3x3 before the logits, where the paper has 3x3 and 1x1",
            "no norm at the level of one region",
            "its dropout takes whole channels, this one single values",
        ),
    )


def _unet(shapes: Shapes, encoder: str) -> _Decoder:
    blocks = [f"decoder.blocks.{index}.conv2.0" for index in range(max(DEPTHS))]
    channels = tuple(_kernel(shapes, block)[0] for block in blocks if f"{block}.weight" in shapes)
    return _Decoder(
        "unet",
        # One block for every halving; the inputs of the first one's kernel include a skip.
        CHANNELS[encoder][len(channels) - 1] if channels else 0,
        {"decoder_channels": channels, "upsampling": "nearest", "dropout": 0.0},
        ("the skips are those of an ImageNet encoder", "upsampling repeats pixels, unless it was trained otherwise"),
    )


def _inputs(decoder: _Decoder) -> dict[str, tuple[int, ...]]:
    if decoder.architecture != "pspnet":
        return {}
    # There the pooled regions come first and the map last.
    return {"context/projection": first_are_last(decoder.inputs, 2 * decoder.inputs)}


def _stride(architecture: str, depth: int, asked: int | None) -> int:
    """Return the output stride at which smp's network runs."""
    deepest = 2**depth
    if not architecture.startswith("deeplab"):
        if asked not in (None, deepest):
            raise UserError(f"output_stride={asked}: smp's {architecture} with this encoder runs at {deepest} only")
        return deepest
    return min(stride_of_8_or_16(asked, default=8 if architecture == "deeplabv3" else 16, whose="smp's"), deepest)


def _encoder_options(encoder: str, depth: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "first_unit_rate": "stage",
        "norm_epsilon": 1e-5,
        "norm_momentum": 0.9,
        "align_corners": True,
        **IMAGENET.normalisation,
    }
    if depth < 5:
        options["last_stage"] = f"conv{depth}"
    elif encoder == "mobilenet_v2":
        options["last_channels"] = CHANNELS[encoder][-1]
    return options


def _unused(encoder: str, depth: int) -> tuple[str, ...]:
    """Return patterns of the encoder's tensors beyond its depth, which smp keeps but does not run."""
    if encoder == "mobilenet_v2":
        first = {3: 7, 4: 14}.get(depth, 19)
        return tuple(rf"^encoder\.features\.{index}\." for index in range(first, 19))
    return tuple(rf"^encoder\.layer{stage}\." for stage in range(depth, 5))


def _norms(shapes: Shapes, architecture: str) -> dict[str, Any]:
    """Return the options of a decoder without norms (decoder_use_norm=False).

    Raises:
      UserError: another norm than batch norm, whose tensors have other names.
    """
    conv = {"pspnet": "decoder.conv", "unet": "decoder.blocks.0.conv1"}.get(architecture)
    if conv is None or f"{conv}.1.running_mean" in shapes:
        return {}
    if f"{conv}.0.bias" in shapes and f"{conv}.1.weight" not in shapes:
        return {"norm": "none", "backbone_norm": "batch"}
    raise UserError(
        f"smp's {architecture}: decoder_use_norm is neither batch norm nor none; only these can be converted"
    )
