"""DeepLabv3, Table 10: the output stride in training and in evaluation. The batch sizes are what fits into memory."""

from experiments.tables.networks import deeplabv3, inference
from experiments.tables.table import Claim, Row, Table

# (output stride in training, in evaluation) -> mIoU
PAPER = {(8, 16): 74.45, (16, 16): 77.21, (32, 16): 75.9, (8, 8): 75.62, (16, 8): 78.51, (32, 8): 75.75}
BATCH_SIZE = {8: 6, 16: 16, 32: 24}  # by the output stride in training

TABLE = Table(
    name="v3_table10",
    title="Output stride in training and in evaluation",
    source="arXiv 1706.05587, Table 10 (VOC 2012 val)",
    columns=("train_os", "eval_os"),
    rows=tuple(
        Row(
            (train, evaluation),
            {"miou": miou},
            train={**deeplabv3(output_stride=train), "train.batch_size": BATCH_SIZE[train]},
            evaluate=inference(evaluation),
        )
        for (train, evaluation), miou in PAPER.items()
    ),
    claims=(
        Claim("training at output stride 16 is better than at 8", better=(16, 8), worse=(8, 8)),
        Claim("training at output stride 16 is better than at 32", better=(16, 8), worse=(32, 8)),
        Claim("after training at 8, evaluation at 8 is better than at 16", better=(8, 8), worse=(8, 16)),
        Claim("after training at 32, evaluation at 16 is better than at 8", better=(32, 16), worse=(32, 8)),
    ),
)
