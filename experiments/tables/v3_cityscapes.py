"""DeepLabv3, Table 12: Cityscapes, trained on the fine annotations only."""

from experiments.tables.networks import CITYSCAPES_SCALES, deeplabv3, inference
from experiments.tables.table import Claim, Row, Table

# (evaluation's output stride, multi-scale, flip) -> mIoU
PAPER = {
    (16, False, False): 77.23,
    (8, False, False): 77.82,
    (8, True, False): 79.06,
    (8, True, True): 79.3,
}

TABLE = Table(
    name="v3_cityscapes",
    title="DeepLabv3 on Cityscapes, trained on train_fine",
    source="arXiv 1706.05587, Table 12 (Cityscapes val)",
    columns=("eval_os", "ms", "flip"),
    rows=tuple(
        Row(
            (stride, multi_scale, flip),
            {"miou": miou},
            train=deeplabv3(),
            evaluate=inference(stride, multi_scale=multi_scale, flip=flip, scales=CITYSCAPES_SCALES),
            repeats="v3_table6",
        )
        for (stride, multi_scale, flip), miou in PAPER.items()
    ),
    data="cityscapes",
    claims=(
        Claim("evaluation at output stride 8 helps", better=(8, False, False), worse=(16, False, False)),
        Claim("scales help", better=(8, True, False), worse=(8, False, False)),
        Claim("the mirrored image helps", better=(8, True, True), worse=(8, True, False)),
    ),
)
