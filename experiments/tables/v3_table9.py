"""DeepLabv3, Table 9: the batch size, which is also that of batch normalisation."""

from experiments.tables.networks import deeplabv3
from experiments.tables.table import Claim, Row, Table

PAPER = {4: 64.43, 8: 75.76, 12: 76.49, 16: 77.21}

TABLE = Table(
    name="v3_table9",
    title="Batch size, output stride 16 in training and evaluation",
    source="arXiv 1706.05587, Table 9 (VOC 2012 val)",
    columns=("batch_size",),
    rows=tuple(
        Row((batch,), {"miou": miou}, train={**deeplabv3(), "train.batch_size": batch}) for batch, miou in PAPER.items()
    ),
    claims=tuple(
        Claim(f"batches of {larger} are better than of {smaller}", better=(larger,), worse=(smaller,))
        for larger, smaller in ((8, 4), (12, 8), (16, 12))
    ),
)
