"""DeepLabv3+, Table 1: channels of the 1x1 convolution on the low-level features; the decoder is one [3x3, 256]."""

from experiments.tables.networks import deeplabv3plus
from experiments.tables.table import Claim, Row, Table

PAPER = {8: 77.61, 16: 77.92, 32: 78.16, 48: 78.21, 64: 77.94}

TABLE = Table(
    name="v3plus_table1",
    title="Decoder: 1x1 channels on Conv2, ResNet-101",
    source="arXiv 1802.02611, Table 1 (VOC 2012 val)",
    columns=("channels",),
    rows=tuple(
        Row((channels,), {"miou": miou}, train=deeplabv3plus(low_level_channels=channels, convs=((3, 256),)))
        for channels, miou in PAPER.items()
    ),
    claims=tuple(Claim(f"48 channels are better than {other}", better=(48,), worse=(other,)) for other in (8, 16, 64)),
)
