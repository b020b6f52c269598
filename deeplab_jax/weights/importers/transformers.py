"""Hugging Face transformers' MobileNetV2 for semantic segmentation (`google/deeplabv3_mobilenet_v2_1.0_513`)."""

from deeplab_jax.models.backbones.inverted_residual import scale_channels
from deeplab_jax.models.backbones.mobilenet_v2 import ROWS, STEM_CHANNELS
from deeplab_jax.weights.importers.torch_names import COUNTERS, MOBILENET_V2_STAGES
from deeplab_jax.weights.tensor_map import Rule, Shapes, TensorMap, first_are_last

ROOT, HEAD = "mobilenet_v2.", "segmentation_head."
OUTPUT_STRIDE = 8  # From the published model's configuration; a state dict does not state it.
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
        kind="transformers",
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


def _width(shapes: Shapes) -> float | None:
    found = [shapes.get(f"{name}.weight", (0,))[0] for name in (STEM[0], _unit(5, 4, "project")[0])]
    wanted = STEM_CHANNELS, ROWS[-1][1]
    for width in WIDTHS:
        if found == [scale_channels(channels, width) for channels in wanted]:
            return width
    return None
