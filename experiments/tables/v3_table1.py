"""DeepLabv3, Table 1: the cascade at larger and larger output strides. Each row is trained and evaluated at its own."""

from experiments.tables.networks import cascade
from experiments.tables.table import Claim, Row, Table

PAPER = {8: 75.18, 16: 73.88, 32: 70.06, 64: 59.99, 128: 42.34, 256: 20.29}

TABLE = Table(
    name="v3_table1",
    title="ResNet-50 with block7, varying output stride",
    source="arXiv 1706.05587, Table 1 (VOC 2012 val)",
    columns=("output_stride",),
    rows=tuple(
        Row((stride,), {"miou": miou}, train=cascade("resnet50", output_stride=stride))
        for stride, miou in PAPER.items()
    ),
    claims=tuple(
        Claim(f"output stride {finer} is better than {coarser}", better=(finer,), worse=(coarser,))
        for finer, coarser in ((8, 16), (16, 32), (32, 64), (64, 128), (128, 256))
    ),
)
