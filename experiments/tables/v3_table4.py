"""DeepLabv3, Table 4: inference of the best cascade of Table 3."""

from experiments.tables.networks import cascade, inference
from experiments.tables.table import Claim, Row, Table

# (evaluation's output stride, multi-scale, flip) -> mIoU
PAPER = {
    (16, False, False): 76.66,
    (8, False, False): 78.05,
    (8, True, False): 78.93,
    (8, True, True): 79.35,
}

TABLE = Table(
    name="v3_table4",
    title="Inference of the cascade with block7 and multi-grid (1, 2, 1)",
    source="arXiv 1706.05587, Table 4 (VOC 2012 val)",
    columns=("eval_os", "ms", "flip"),
    rows=tuple(
        Row(
            (stride, multi_scale, flip),
            {"miou": miou},
            train=cascade("resnet101", multi_grid=(1, 2, 1)),
            evaluate=inference(stride, multi_scale=multi_scale, flip=flip),
        )
        for (stride, multi_scale, flip), miou in PAPER.items()
    ),
    claims=(
        Claim("evaluation at output stride 8 helps", better=(8, False, False), worse=(16, False, False)),
        Claim("scales help", better=(8, True, False), worse=(8, False, False)),
        Claim("the mirrored image helps", better=(8, True, True), worse=(8, True, False)),
    ),
)
