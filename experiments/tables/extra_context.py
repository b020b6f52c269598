"""What a context module is worth where the backbone sees little, and where it sees everything (not in the papers).

A paddock of `scenes` is a meadow inside a round hedge, up to 45 pixels from its middle. A feature of a ResNet-18 up to
conv3 depends on 49 pixels to each side, and on most of them weakly, so it needs a pyramid or image pooling for that. A
feature of the whole ResNet-18 depends on the whole picture. The first row is the control without the cue, and the rows
of conv5 are those with unlimited context.

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

TABLE = Table(
    name="extra_context",
    title="Context modules on a backbone that sees little",
    source="not in the papers",
    columns=("backbone", "context"),
    rows=tuple(
        Row(
            (f"up to {last}", context),
            train={
                "model.name": "deeplabv3_resnet18",
                "model.output_stride": 8,
                "model.options.last_stage": last,
                **changes,
            },
        )
        for last in ("conv3", "conv5")
        for context, changes in CONTEXTS.items()
    ),
    measures=("miou", "paddock_iou"),
)
