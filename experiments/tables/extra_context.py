"""What a context module is worth where only the far surroundings tell (not in the papers).

In these scenes road and water look the same, and so do car and boat. Only a lamp somewhere in the picture tells them
apart (`deeplab_jax/data/sets/scenes.py`). A feature of a ResNet-18 up to conv3 depends on 49 pixels to each side. A
feature of the whole ResNet-18 depends on the whole picture in theory, but hardly on what is far away. Image pooling
sees everything, so its rows have unlimited context. In the controls the lamp is off, so no network can succeed.

It runs in the regime `demo`, from random weights: `python -m experiments.run extra_context --regime demo`. Maps have 17
samples a side, so the rates are a third of the papers' and all taps stay on the map.
"""

from typing import Any

from experiments.tables.table import Row, Table

CONTEXTS: dict[str, dict[str, Any]] = {
    "1x1 convolution": {"model.options.aspp_rates": (), "model.options.image_pooling": False},
    "image pooling": {"model.options.aspp_rates": (), "model.options.image_pooling": True},
    "ASPP": {"model.options.aspp_rates": (1, 2, 4), "model.options.image_pooling": False},  # 2, 4, 8 at stride 8
    "ASPP, image pooling": {"model.options.aspp_rates": (1, 2, 4), "model.options.image_pooling": True},
}
CONTROLS = (("conv3", "ASPP, image pooling"), ("conv5", "ASPP, image pooling"))


def _row(last: str, context: str, lamp: str) -> Row:
    return Row(
        (lamp, f"up to {last}", context),
        train={
            "model.name": "deeplabv3_resnet18",
            "model.output_stride": 8,
            "model.options.last_stage": last,
            "data.options.lamp": lamp,
            **CONTEXTS[context],
        },
    )


TABLE = Table(
    name="extra_context",
    title="Context modules where only a lamp tells classes apart",
    source="not in the papers",
    columns=("lamp", "backbone", "context"),
    rows=(
        *(_row(last, context, "on") for last in ("conv3", "conv5") for context in CONTEXTS),
        *(_row(last, context, "off") for last, context in CONTROLS),
    ),
    measures=("miou", "lamp_iou"),
)
