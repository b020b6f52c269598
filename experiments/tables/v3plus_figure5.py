"""DeepLabv3+, Figure 5(a): mIoU within a band around object boundaries, with the decoder and with bilinear upsampling.

The paper draws curves. Its text only gives the gain from the decoder in the narrowest band.
"""

from experiments.tables.networks import deeplabv3, deeplabv3plus, inference
from experiments.tables.table import Claim, Row, Table

WIDTHS = (1, 2, 4, 8, 16, 32)
BACKBONES = {"ResNet-101": "resnet101", "Xception": "xception65"}
GAINS = {"ResNet-101": 4.8, "Xception": 5.4}  # points of mIoU within 1 pixel

TABLE = Table(
    name="v3plus_figure5",
    title="mIoU in a trimap by width, output stride 16 in training and evaluation",
    source="arXiv 1802.02611, Fig. 5(a) (VOC 2012 val)",
    columns=("backbone", "decoder"),
    rows=tuple(
        Row(
            (backbone, decoder),
            train=(deeplabv3plus if decoder else deeplabv3)(name),
            evaluate={**inference(16), "trimap": WIDTHS},
        )
        for backbone, name in BACKBONES.items()
        for decoder in (False, True)
    ),
    measures=tuple(f"trimap_{width}" for width in WIDTHS),
    claims=tuple(
        Claim(
            f"{backbone}: the decoder helps in the narrowest band",
            better=(backbone, True),
            worse=(backbone, False),
            measure="trimap_1",
            paper=gain,
        )
        for backbone, gain in GAINS.items()
    ),
)
