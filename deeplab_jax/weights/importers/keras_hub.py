"""KerasHub's DeepLabV3Plus: a `DeepLabV3Backbone` with a decoder on its ResNets, alone or in an image segmenter.

Keras numbers the layers of a kind in the order in which the network is built, so a layer's name here is a number. Each
residual unit builds its projection just before its last convolution.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.weights.formats.keras_weights import TASK
from deeplab_jax.weights.formats.read import mapping_of
from deeplab_jax.weights.importers.saved_config import (
    FLOAT32,
    Config,
    check_activation,
    expect,
    per_channel,
    rates_at_16,
    refused,
)
from deeplab_jax.weights.importers.torch_names import RESNETS
from deeplab_jax.weights.tensor_map import KERAS, Names, Rule, Shapes, TensorMap

PYRAMID = "layers/spatial_pyramid_pooling/"
BRANCHES = f"{PYRAMID}aspp_parallel_channels/sequential"
# Where the encoder's layers stand, by the version of Keras that wrote the file.
ENCODERS = ("layers/functional/layers/", "image_encoder/layers/")
# Where the classifier stands in the task's file, likewise.
CLASSIFIERS = (f"{TASK}layers/conv2d/kernel", f"{TASK}output_conv/kernel")
CLASSES = 21  # For a backbone without a task.
RATES = (6, 12, 18)
"""At any output stride: those of the published preset, unless `config.json` states others."""
BACKBONE_EPSILON, HEAD_EPSILON = 1e-5, 1e-3


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe the weights of a DeepLabV3Plus preset; return None for any other network.

    Raises:
      UserError: a DeepLabV3 of KerasHub that this package does not have, or another output stride than its own.
    """
    encoder = next((root for root in ENCODERS if f"{root}conv2d/kernel" in shapes), None)
    if encoder is None or f"{PYRAMID}projection/layers/conv2d/kernel" not in shapes:
        return None
    backbone = _which_resnet(shapes, encoder)
    channels = 4 if RESNETS[backbone][1] else 1
    stages = {64 * channels: "conv2", 128 * channels: "conv3", 256 * channels: "conv4", 512 * channels: "conv5"}
    names = (f"{BRANCHES}/layers/conv2d", "layers/conv2d", "layers/conv2d_1")
    branch, reduction, merge = (_kernel(shapes, f"{name}/kernel") for name in names)
    if not merge or not reduction:
        raise UserError(
            "a DeepLabV3 of KerasHub without low-level features: it has a convolution between two resizes, which no "
            "network here has; only its DeepLabV3Plus can be converted"
        )
    last, low = stages.get(branch[2]) if branch else None, stages.get(reduction[2])
    if not branch or last not in ("conv3", "conv4", "conv5") or low not in ("conv2", "conv3") or low >= last:
        raise UserError("a DeepLabV3Plus of KerasHub on other stages than P2 or P3 with a pyramid on P3, P4 or P5")
    stride = 2 ** int(last[-1])
    if output_stride not in (None, stride):
        raise UserError(f"output_stride={output_stride}: this network of KerasHub runs at {stride}; leave it out")
    classifier = next((name for name in CLASSIFIERS if _kernel(shapes, name)), None)
    return TensorMap(
        name=f"deeplabv3plus_{backbone}",
        num_classes=shapes[classifier][-1] if classifier else CLASSES,
        output_stride=stride,
        options={
            "align_corners": False,
            "multi_grid": (1,) * RESNETS[backbone][0][3],
            "last_stage": last,
            "norm_epsilon": BACKBONE_EPSILON,
            "norm_momentum": 0.9,
            "aspp_rates": tuple(rate * stride // 16 for rate in RATES),
            "aspp_channels": branch[-1],
            "low_level": (low,),
            "low_level_channels": reduction[-1],
            "decoder_convs": ((1, merge[-1]),),
        },
        rules=_rules(backbone, encoder, classifier or "", low),
        layout=KERAS,
        unused=(rf"^{TASK}", *((rf"^{encoder}",) if last < "conv5" else ())),  # The encoder keeps all of its stages.
        absent=() if classifier else (r"classifier/",),
        notes=(
            f"rates {', '.join(map(str, RATES))} at its output stride of {stride}",
            "one 1x1 convolution in the decoder, and no bias in the classifier",
            "running statistics decay by 0.9 in the head too, KerasHub's there by 0.99",
            "the head's variances are larger by 0.00099, which is what its epsilon of 0.001 does; in further training "
            "its epsilon is 0.00001",
        ),
        prepare=partial(_prepare, classifier=classifier, encoder=encoder),
    )


def apply_config(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """Return a network as its `config.json` states it; see `saved_config`.

    Raises:
      UserError: a field that contradicts the tensors, or stands for something that this package cannot build.
    """
    options, notes = dict(tensor_map.options), list(tensor_map.notes)
    backbone = _inside(stated)
    encoder = _inside(backbone.get("image_encoder"))
    last, low = int(options["last_stage"][-1]), int(options["low_level"][0][-1])
    size = backbone.get("upsampling_size", 2 ** (last - low))
    facts = {
        "spatial_pyramid_pooling_key": f"P{last}",
        "low_level_feature_key": f"P{low}",
        "projection_filters": options["low_level_channels"],
    }
    for field, value in facts.items():
        expect(field, backbone.get(field, value), value)
    expect("upsampling_size", size[0] if isinstance(size, list) and size[:1] == size[1:] else size, 2 ** (last - low))
    expect("use_pre_activation", encoder.get("use_pre_activation", False), False)
    expect("stackwise_num_strides", encoder.get("stackwise_num_strides", [1, 2, 2, 2]), [1, 2, 2, 2])
    if str(block := encoder.get("block_type")).endswith("_vd"):
        raise refused("block_type", block, "only blocks that are not of the kind 'vd' can be converted")
    if "dilation_rates" in backbone:
        rates = backbone["dilation_rates"]
        options["aspp_rates"] = rates_at_16(rates, tensor_map.output_stride, field="dilation_rates")
        notes = [f"rates {', '.join(map(str, rates))} at any output stride", *notes[1:]]
    check_activation(_inside(stated.get("task")).get("activation"), options, notes)
    options |= _normalisation(_inside(stated.get("image_converter")), options.get("in_channels", 3))
    return replace(tensor_map, options=options, notes=tuple(notes))


def _inside(saved: Any) -> Config:
    """Return the arguments of an object that Keras has written; {} if there are none."""
    return mapping_of(mapping_of(saved).get("config"))


def _normalisation(converter: Config, channels: int) -> dict[str, Any]:
    """Return our options for pixels (0 to 255) times a scale plus an offset, each None, a number or one per channel."""
    scale, offset = (
        per_channel(converter, field, default, channels) for field, default in (("scale", 1.0), ("offset", 0.0))
    )
    std = tuple(1 / s / 255 if s else math.inf for s in scale)
    mean = tuple(-o * deviation for o, deviation in zip(offset, std, strict=True))
    for field, values, least in (("scale", std, float(FLOAT32.tiny)), ("offset", mean, 0)):
        if not all(least <= abs(value) <= float(FLOAT32.max) for value in values):  # False for NaN.
            raise refused(field, converter.get(field), "give numbers, of scale other than 0, that float32 can hold")
    return {"value_range": (0.0, 1.0), "mean": mean, "std": std}


def _kernel(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Return the shape of a convolution's kernel, () if there is none."""
    shape = shapes.get(name, ())
    return shape if len(shape) == 4 else ()


def _which_resnet(shapes: Shapes, encoder: str) -> str:
    """Return the name of the ResNet whose convolutions these are."""
    kernels = {key for key in shapes if key.startswith(encoder) and key.endswith("/kernel")}
    for name, (units, bottleneck) in RESNETS.items():
        per_unit, projections = (3, 4) if bottleneck else (2, 3)
        count = 1 + per_unit * sum(units) + projections
        wanted = {encoder + _numbered("conv2d", index) + "/kernel" for index in range(count)}
        if wanted != kernels or shapes[f"{encoder}conv2d/kernel"][:2] != (7, 7):
            continue
        norms = f"{encoder}{_numbered('batch_normalization', count - 1)}/gamma" in shapes  # Fewer before activations.
        if norms and (shapes[f"{encoder}conv2d_1/kernel"][:2] == (1, 1)) == bottleneck:
            return name
    raise UserError(f"KerasHub: the encoder is none of {', '.join(RESNETS)}; only these can be converted")


def _numbered(kind: str, index: int) -> str:
    return f"{kind}_{index}" if index else kind


def _named(scope: str, index: int = 0) -> Names:
    return scope + _numbered("conv2d", index), scope + _numbered("batch_normalization", index)


def numbers_of(backbone: str) -> Mapping[tuple[int, int, str], int]:
    """Return the number of each convolution, by its stage, unit and our name."""
    units, bottleneck = RESNETS[backbone]
    found: dict[tuple[int, int, str], int] = {}
    last = 3 if bottleneck else 2
    for stage, count in enumerate(units, 2):
        for unit in range(1, count + 1):
            names = [f"conv{number}" for number in range(1, last + 1)]
            if unit == 1 and (bottleneck or stage > 2):
                names.insert(-1, "shortcut")
            for name in names:
                found[stage, unit, name] = len(found) + 1
    return found


def _rules(backbone: str, encoder: str, classifier: str, low: str) -> tuple[Rule, ...]:
    indices = numbers_of(backbone)

    def branch(index: int) -> Names:
        return _named(f"{_numbered(BRANCHES, index)}/layers/")

    return (
        (r"backbone/conv1", _named(encoder)),
        (r"backbone/conv(\d)_unit(\d+)/(conv\d|shortcut)", lambda s, u, name: _named(encoder, indices[s, u, name])),
        (r"context/branch_1x1", branch(0)),
        (r"context/branch_atrous(\d)", branch),
        (r"context/image_pooling", branch(4)),
        (r"context/projection", _named(f"{PYRAMID}projection/layers/")),
        (rf"decoder/{low}_reduction", _named("layers/")),
        (rf"decoder/{low}_conv1", _named("layers/", 1)),
        (r"classifier", (classifier.removesuffix("/kernel"), "")),
    )


def _prepare(tensors: Mapping[str, np.ndarray], *, classifier: str | None, encoder: str) -> dict[str, np.ndarray]:
    """Return the tensors with one epsilon for all norms, and with a bias of the classifier.

    A variance and its epsilon are only used as a sum.
    """
    prepared = {
        name: value + np.float32(HEAD_EPSILON - BACKBONE_EPSILON)
        if name.endswith("/moving_variance") and not name.startswith(encoder)
        else value
        for name, value in tensors.items()
    }
    if classifier:
        bias = classifier.removesuffix("kernel") + "bias"
        prepared.setdefault(bias, np.zeros(tensors[classifier].shape[-1], np.float32))
    return prepared
