"""Hugging Face transformers' MobileNetV2 for semantic segmentation (`google/deeplabv3_mobilenet_v2_1.0_513`)."""

import math
from dataclasses import replace
from typing import Any

from deeplab_jax.models.backbones.inverted_residual import scale_channels
from deeplab_jax.models.backbones.mobilenet_v2 import ROWS, STEM_CHANNELS
from deeplab_jax.weights.formats.read import mapping_of
from deeplab_jax.weights.importers.saved_config import Config, dropout_of, expect, mean_and_std, refused
from deeplab_jax.weights.importers.torch_names import COUNTERS, MOBILENET_V2_STAGES
from deeplab_jax.weights.tensor_map import Rule, Shapes, TensorMap, first_are_last

ROOT, HEAD = "mobilenet_v2.", "segmentation_head."
OUTPUT_STRIDE = 8  # From the published model's configuration; a state dict does not state it.
# The default of `layer_norm_eps`, and what the segmentation head has in any case.
EPSILON, HEAD_EPSILON = 1e-3, 1e-5
WIDTHS = (1.0, 0.75, 0.5, 0.35, 1.3, 1.4)
# Our layers of a unit, and theirs.
LAYERS = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}


def _layer(name: str) -> tuple[str, str]:
    return f"{name}.convolution", f"{name}.normalization"


def _unit(stage: int, unit: int, layer: str) -> tuple[str, str]:
    # The first unit belongs to their stem.
    return _layer(f"{ROOT}layer.{MOBILENET_V2_STAGES[stage] + unit - 2}.{LAYERS[layer]}")


STEM = _layer(f"{ROOT}conv_stem.first_conv")
RULES: tuple[Rule, ...] = (
    (r"backbone/stem", STEM),
    (r"backbone/conv1_unit1/(\w+)", lambda layer: _layer(f"{ROOT}conv_stem.{LAYERS[layer]}")),
    (r"backbone/conv(\d)_unit(\d+)/(\w+)", _unit),
    (r"context/branch_1x1", _layer(f"{HEAD}conv_aspp")),
    (r"context/image_pooling", _layer(f"{HEAD}conv_pool")),
    (r"context/projection", _layer(f"{HEAD}conv_projection")),
    (r"classifier", _layer(f"{HEAD}classifier")),
)


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of `MobileNetV2ForSemanticSegmentation`; return None for any other."""
    classifier = shapes.get(f"{HEAD}classifier.convolution.weight")
    projection = shapes.get(f"{HEAD}conv_projection.convolution.weight")
    width = _width(shapes)
    if not classifier or not projection or width is None:
        return None
    half = projection[1] // 2
    return TensorMap(
        name="deeplabv3_mobilenet_v2",
        num_classes=classifier[0],
        output_stride=OUTPUT_STRIDE if output_stride is None else output_stride,
        rules=RULES,
        options={
            "width": width,
            "aspp_rates": (),
            "aspp_channels": projection[0],
            "strided_padding": "same",
            "dropout": 0.8,
        },
        # They concatenate the image-level features first.
        inputs={"context/projection": first_are_last(half, 2 * half)},
        # The file has the classification network's last convolution, but their head does not use it.
        unused=(COUNTERS, rf"^{ROOT}conv_1x1\."),
        notes=(
            "a pyramid of a 1x1 convolution and image pooling, without atrous branches, and no decoder",
            "strided convolutions pad as TensorFlow's SAME",
            "theirs ends before the resize to the image; ours resizes with aligned corners, as TensorFlow's does",
        ),
    )


def apply_config(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """Return a network as its `config.json` states it; see `saved_config`.

    Raises:
      UserError: a field that contradicts the tensors, or stands for something that this package cannot build.
    """
    options = dict(tensor_map.options)
    facts = {"num_channels": options.get("in_channels", 3), "hidden_act": "relu6", "tf_padding": True}
    for field, value in (facts | {"depth_multiplier": options["width"]}).items():
        if field in stated:
            expect(field, stated[field], value)
    # It is the backbone's; that of the head is fixed there.
    epsilon = stated.get("layer_norm_eps", EPSILON)
    if epsilon == HEAD_EPSILON:
        options["norm_epsilon"] = HEAD_EPSILON
    elif epsilon != EPSILON:
        raise refused("layer_norm_eps", epsilon, f"only {EPSILON} and {HEAD_EPSILON} can be converted")
    if "classifier_dropout_prob" in stated:
        options["dropout"] = dropout_of(stated, "classifier_dropout_prob", options)
    options |= _of_processor(mapping_of(stated.get("preprocessor")), options.get("in_channels", 3))
    names = _names(stated.get("id2label"), tensor_map.num_classes)
    return replace(tensor_map, options=options, info={**tensor_map.info, **names})


def _of_processor(processor: Config, channels: int) -> dict[str, Any]:
    """Return our options for the images of transformers' MobileNetV2, whose processor makes -1 to 1 of them unless its
    file says otherwise.
    """
    for field in ("do_rescale", "do_normalize"):
        expect(field, processor.get(field, True), True)
    factor = processor.get("rescale_factor", 1 / 255)
    if not (type(factor) is float and math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        raise refused("rescale_factor", factor, "only 1/255 can be converted")
    if not {"image_mean", "image_std"} & processor.keys():
        return {}
    stated = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels, **processor}
    return mean_and_std(stated, "image_mean", "image_std", channels)


def _names(labels: Any, count: int) -> dict[str, Any]:
    """Return the class names of `id2label`; {} where transformers has numbered them itself."""
    if labels is None:
        return {}
    wanted = [str(index) for index in range(count)]
    if (
        not isinstance(labels, dict)
        or set(labels) != set(wanted)
        or not all(isinstance(v, str) and v.isprintable() for v in labels.values())
    ):
        raise refused("id2label", labels, f"the tensors have {count} classes; give one name for each, from 0")
    names = [labels[key] for key in wanted]
    return {} if names == [f"LABEL_{key}" for key in wanted] else {"class_names": names}


def _width(shapes: Shapes) -> float | None:
    found = [shapes.get(f"{name}.weight", (0,))[0] for name in (STEM[0], _unit(5, 4, "project")[0])]
    wanted = STEM_CHANNELS, ROWS[-1][1]
    for width in WIDTHS:
        if found == [scale_channels(channels, width) for channels in wanted]:
            return width
    return None
