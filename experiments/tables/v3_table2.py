"""DeepLabv3, Table 2: the number of blocks in the cascade."""

from experiments.tables.networks import cascade
from experiments.tables.table import Claim, Row, Table

PAPER = {
    "ResNet-50": {4: 64.81, 5: 72.14, 6: 74.29, 7: 73.88},
    "ResNet-101": {4: 68.39, 5: 73.21, 6: 75.34, 7: 75.76},
}
BACKBONES = {"ResNet-50": "resnet50", "ResNet-101": "resnet101"}

TABLE = Table(
    name="v3_table2",
    title="Going deeper with atrous convolution, output stride 16",
    source="arXiv 1706.05587, Table 2 (VOC 2012 val)",
    columns=("network", "last_block"),
    rows=tuple(
        Row((network, block), {"miou": miou}, train=cascade(BACKBONES[network], last_block=block))
        for network, blocks in PAPER.items()
        for block, miou in blocks.items()
    ),
    claims=tuple(
        Claim(f"{network}: {text}", better=(network, better), worse=(network, worse))
        for network, text, better, worse in (
            ("ResNet-50", "block5 helps", 5, 4),
            ("ResNet-50", "block6 helps", 6, 5),
            ("ResNet-50", "block6 is better than block7", 6, 7),
            ("ResNet-101", "block5 helps", 5, 4),
            ("ResNet-101", "block6 helps", 6, 5),
            ("ResNet-101", "block7 helps", 7, 6),
        )
    ),
)
