"""DeepLabv3, Table 3: multi-grid in the cascade."""

from experiments.tables.networks import cascade
from experiments.tables.table import Claim, Row, Table

PAPER = {
    (1, 1, 1): {4: 68.39, 5: 73.21, 6: 75.34, 7: 75.76},
    (1, 2, 1): {4: 70.23, 5: 75.67, 6: 76.09, 7: 76.66},
    (1, 2, 3): {4: 73.14, 5: 75.78, 6: 75.96, 7: 76.11},
    (1, 2, 4): {4: 73.45, 5: 75.74, 6: 75.85, 7: 76.02},
    (2, 2, 2): {4: 71.45, 5: 74.3, 6: 74.7, 7: 74.62},
}

TABLE = Table(
    name="v3_table3",
    title="Multi-grid in the cascade on ResNet-101, output stride 16",
    source="arXiv 1706.05587, Table 3 (VOC 2012 val)",
    columns=("multi_grid", "last_block"),
    rows=tuple(
        Row((str(grid), block), {"miou": miou}, train=cascade("resnet101", last_block=block, multi_grid=grid))
        for grid, blocks in PAPER.items()
        for block, miou in blocks.items()
    ),
    claims=(
        Claim("multi-grid (1, 2, 4) helps without more blocks", better=("(1, 2, 4)", 4), worse=("(1, 1, 1)", 4)),
        Claim("multi-grid (1, 2, 1) helps with block7", better=("(1, 2, 1)", 7), worse=("(1, 1, 1)", 7)),
        Claim(
            "multi-grid (1, 1, 1) is better than (2, 2, 2) with block7", better=("(1, 1, 1)", 7), worse=("(2, 2, 2)", 7)
        ),
        Claim("more blocks help with multi-grid", better=("(1, 2, 1)", 7), worse=("(1, 2, 1)", 4)),
    ),
)
