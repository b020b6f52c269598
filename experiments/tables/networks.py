"""The networks of the papers' tables, as changes to a training configuration.

The changes always contain every option that some table varies. So two rows with the same network have the same changes,
and share one training.
"""

from typing import Any

# The scales of the papers' multi-scale inference (DeepLabv3, sec. 4.1, and its Cityscapes experiments).
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
CITYSCAPES_SCALES = (0.75, 1.0, 1.25)

ASPP_RATES = (6, 12, 18)
DECODER = ((3, 256), (3, 256))

Convs = tuple[tuple[int, int], ...]


def cascade(
    backbone: str, *, last_block: int = 7, multi_grid: tuple[int, ...] = (1, 1, 1), output_stride: int = 16
) -> dict[str, Any]:
    """Return DeepLabv3's cascade (sec. 3.2): blocks 5 to `last_block` are copies of block 4."""
    return {
        "model.name": f"cascade_{backbone}",
        "model.output_stride": output_stride,
        "model.options.last_block": last_block,
        "model.options.multi_grid": multi_grid,
    }


def deeplabv3(
    backbone: str = "resnet101",
    *,
    multi_grid: tuple[int, ...] = (1, 2, 4),
    rates: tuple[int, ...] = ASPP_RATES,
    image_pooling: bool = True,
    separable: bool = False,
    output_stride: int = 16,
) -> dict[str, Any]:
    """Return DeepLabv3 (sec. 3.3), by default in its final form.

    Xception has no multi-grid (DeepLabv3+, sec. 4). Only with Xception the tables vary `separable`, for the ASPP's
    convolutions.
    """
    xception = backbone.startswith("xception")
    varied = {"model.options.separable": separable} if xception else {"model.options.multi_grid": multi_grid}
    return {
        "model.name": f"deeplabv3_{backbone}",
        "model.output_stride": output_stride,
        **varied,
        "model.options.aspp_rates": rates,
        "model.options.image_pooling": image_pooling,
    }


def deeplabv3plus(
    backbone: str = "resnet101",
    *,
    low_level: tuple[str, ...] = ("conv2",),
    low_level_channels: int = 48,
    convs: Convs = DECODER,
    image_pooling: bool = True,
    separable: bool = False,
    output_stride: int = 16,
) -> dict[str, Any]:
    """Return DeepLabv3+ (sec. 3.1), by default in its final form. `separable` is for the convolutions of ASPP and
    decoder.
    """
    return {
        **deeplabv3(backbone, image_pooling=image_pooling, separable=separable, output_stride=output_stride),
        "model.name": f"deeplabv3plus_{backbone}",
        "model.options.low_level": low_level,
        "model.options.low_level_channels": low_level_channels,
        "model.options.decoder_convs": convs,
    }


def inference(
    output_stride: int, *, multi_scale: bool = False, flip: bool = False, scales: tuple[float, ...] = MULTI_SCALE
) -> dict[str, Any]:
    """Return the papers' three settings of inference, as changes to the section `evaluate`."""
    return {"output_stride": output_stride, "scales": scales if multi_scale else (1.0,), "flip": flip}
