"""DeepLabv3, Table 5: the ASPP with multi-grid, more rates and image-level features."""

from experiments.tables.networks import deeplabv3
from experiments.tables.table import Claim, Row, Table

# (multi-grid, rates, image pooling) -> mIoU
PAPER = {
    ((1, 1, 1), (6, 12, 18), False): 75.36,
    ((1, 2, 1), (6, 12, 18), False): 75.93,
    ((1, 2, 4), (6, 12, 18), False): 76.58,
    ((1, 2, 4), (6, 12, 18, 24), False): 76.46,
    ((1, 2, 4), (6, 12, 18), True): 77.21,
}

TABLE = Table(
    name="v3_table5",
    title="ASPP with multi-grid and image-level features, ResNet-101, output stride 16",
    source="arXiv 1706.05587, Table 5 (VOC 2012 val)",
    columns=("multi_grid", "aspp_rates", "image_pooling"),
    rows=tuple(
        Row(
            (str(grid), str(rates), pooling),
            {"miou": miou},
            train=deeplabv3(multi_grid=grid, rates=rates, image_pooling=pooling),
        )
        for (grid, rates, pooling), miou in PAPER.items()
    ),
    claims=tuple(
        Claim(text, better=(str(grid), str(rates), pooling), worse=(str(to_grid), str(to_rates), False))
        for text, (grid, rates, pooling), (to_grid, to_rates) in (
            ("multi-grid (1, 2, 1) helps", ((1, 2, 1), (6, 12, 18), False), ((1, 1, 1), (6, 12, 18))),
            ("multi-grid (1, 2, 4) is better still", ((1, 2, 4), (6, 12, 18), False), ((1, 2, 1), (6, 12, 18))),
            ("three rates are better than four", ((1, 2, 4), (6, 12, 18), False), ((1, 2, 4), (6, 12, 18, 24))),
            ("image-level features help", ((1, 2, 4), (6, 12, 18), True), ((1, 2, 4), (6, 12, 18))),
        )
    ),
)
