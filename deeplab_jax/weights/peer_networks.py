"""How other code bases build the network that takes an exported state dict: what the tensors do not say."""

from typing import Any

import numpy as np

from deeplab_jax.models.catalog import describe
from deeplab_jax.models.contexts.aspp import rates_at
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.weights.importers.mmsegmentation import STAGES
from deeplab_jax.weights.importers.smp import CLASSES
from deeplab_jax.weights.importers.torch_names import RESNETS

MMSEGMENTATION_HEADS = {"deeplabv3": "ASPPHead", "deeplabv3plus": "DepthwiseSeparableASPPHead"}


def torchvision(model: Segmenter) -> str:
    """Return the call that builds torchvision's network."""
    described = describe(model)
    arguments: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": model.num_classes}
    if not described["name"].startswith("lraspp"):
        arguments["aux_loss"] = model.aux_features is not None
    return f"torchvision.models.segmentation.{described['name']}({_spelt(arguments)})"


def smp(model: Segmenter) -> str:
    """Return the call that builds the network of segmentation_models_pytorch, as `smp`."""
    described = describe(model)
    architecture, encoder = described["name"].split("_", 1)
    options = described["options"]
    depth = (
        len(_field(model, "decoder_channels"))
        if architecture == "unet"
        else int((_field(model, "last_stage") or "conv5")[-1])
    )
    arguments: dict[str, Any] = {"encoder_weights": None, "encoder_depth": depth}
    if architecture.startswith("deeplab"):
        branches = _field(model, "aspp_separable")
        arguments |= {
            "encoder_output_stride": 8 if model.output_stride == 8 and depth > 3 else 16,
            "decoder_channels": _field(model, "aspp_channels"),
            "decoder_aspp_separable": bool(_field(model, "separable") if branches is None else branches),
            "decoder_atrous_rates": _rates(model),
        }
    elif architecture == "pspnet":
        arguments |= {"psp_out_channels": _field(model, "context_channels"), "upsampling": 2**depth}
    else:
        arguments["decoder_channels"] = tuple(_field(model, "decoder_channels"))
    if options.get("norm") == "none":
        arguments["decoder_use_norm"] = False
    arguments |= {"in_channels": model.in_channels, "classes": model.num_classes}
    return f"smp.{CLASSES[architecture]}({encoder!r}, {_spelt(arguments)})"


def mmsegmentation(model: Segmenter) -> str:
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
            "decode_head.type": MMSEGMENTATION_HEADS[architecture],
            "decode_head.channels": _field(model, "aspp_channels"),
            "decode_head.dilations": (1, *_rates(model)),
        }
        if architecture == "deeplabv3plus":
            values["decode_head.c1_channels"] = _field(model, "low_level_channels")
            values["decode_head.c1_in_channels"] = 64 * widening
    elif architecture == "pspnet":
        values["decode_head.channels"] = _field(model, "context_channels")
    if model.aux_features is not None:
        values["auxiliary_head.in_channels"] = 256 * widening
        values["auxiliary_head.channels"] = 64 * widening
        values["auxiliary_head.num_classes"] = model.num_classes
    else:
        values["auxiliary_head"] = None
    return f"configs/_base_/models/{architecture}_r50-d8.py with {_spelt(values)}"


def normalisation(model: Segmenter) -> str:
    """Return how the caller of such a network prepares images."""
    how = model.preprocessing
    low, high = how.value_range
    mean, std = (
        ", ".join(np.format_float_positional(value, trim="-") for value in values) for values in (how.mean, how.std)
    )
    bands = f"bands {', '.join(map(str, how.channels))} (from 0) of a file as " if how.channels else ""
    stored = (
        f", which stored values of {how.stored_range[0]} to {how.stored_range[1]} become" if how.stored_range else ""
    )
    return f"{bands}images of {low:g} to {high:g}{stored}, minus the mean ({mean}), divided by ({std})"


def _rates(model: Segmenter) -> tuple[int, ...]:
    """Return the rates at the model's output stride, which is how others state them."""
    return rates_at(_field(model, "aspp_rates"), model.output_stride)


def _field(model: Segmenter, name: str) -> Any:
    """Return an option of a part as it is in the network, given or by default; None if no part has it."""
    parts = (model.backbone, model.context, model.decoder)
    return next((getattr(part, name) for part in parts if hasattr(part, name)), None)


def _spelt(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
