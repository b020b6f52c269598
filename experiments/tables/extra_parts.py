"""The gain from each part of DeepLabv3+ on the demo's network (not in the papers). The first row has all parts, and
each other row lacks one.

It runs in the regime `demo`, from random weights: `python -m experiments.run extra_parts --regime demo`.
"""

from experiments.tables.table import Row, Table

PLUS = {"model.name": "deeplabv3plus_resnet18", "model.output_stride": 16}

TABLE = Table(
    name="extra_parts",
    title="Parts of DeepLabv3+ on the demo's network",
    source="not in the papers",
    columns=("network",),
    rows=(
        Row(("DeepLabv3+, output stride 16",), train=PLUS),
        Row(
            ("without the ASPP (1x1 only)",),
            train={**PLUS, "model.options.aspp_rates": (), "model.options.image_pooling": False},
        ),
        Row(("without the decoder (DeepLabv3)",), train={**PLUS, "model.name": "deeplabv3_resnet18"}),
        Row(("output stride 32",), train={**PLUS, "model.output_stride": 32}),
    ),
)
