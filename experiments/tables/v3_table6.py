"""DeepLabv3, Table 6: inference of the best network of Table 5."""

from experiments.tables.networks import deeplabv3, inference
from experiments.tables.table import Claim, Row, Table

# (evaluation's output stride, multi-scale, flip, pre-trained on COCO) -> mIoU
PAPER = {
    (16, False, False, False): 77.21,
    (8, False, False, False): 78.51,
    (8, True, False, False): 79.45,
    (8, True, True, False): 79.77,
    (8, True, True, True): 82.7,
}

TABLE = Table(
    name="v3_table6",
    title="Inference of DeepLabv3: multi-grid (1, 2, 4), ASPP (6, 12, 18), image pooling",
    source="arXiv 1706.05587, Table 6 (VOC 2012 val)",
    columns=("eval_os", "ms", "flip", "coco"),
    rows=tuple(
        Row(
            (stride, multi_scale, flip, coco),
            {"miou": miou},
            train=deeplabv3(),
            evaluate=inference(stride, multi_scale=multi_scale, flip=flip),
            needs="COCO" if coco else "",
        )
        for (stride, multi_scale, flip, coco), miou in PAPER.items()
    ),
    claims=(
        Claim("evaluation at output stride 8 helps", better=(8, False, False, False), worse=(16, False, False, False)),
        Claim("scales help", better=(8, True, False, False), worse=(8, False, False, False)),
        Claim("the mirrored image helps", better=(8, True, True, False), worse=(8, True, False, False)),
    ),
)
