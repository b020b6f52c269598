"""DeepLabv3, Table 8: crop size, upsampled logits and batch-norm training.

In rows without "fine-tuned batch norm", the backbone keeps its pre-trained statistics, scales and offsets. The norms of
the head learn scales and offsets only, and use no statistics of the batch, as in the authors' code.
"""

from experiments.tables.networks import deeplabv3
from experiments.tables.table import Claim, Row, Table

# (crop size, logits upsampled in the loss, batch norm fine-tuned) -> mIoU
PAPER = {
    (513, True, True): 77.21,
    (513, True, False): 75.95,
    (513, False, True): 76.01,
    (321, True, True): 67.22,
}
FROZEN = {"model.options.norm": "frozen", "optimizer.freeze": (r"^backbone/.*norm/batch/(scale|bias)$",)}

TABLE = Table(
    name="v3_table8",
    title="Hyper-parameters of training, output stride 16",
    source="arXiv 1706.05587, Table 8 (VOC 2012 val)",
    columns=("crop_size", "upsampled_logits", "fine_tuned_bn"),
    rows=tuple(
        Row(
            (crop, upsampled, tuned),
            {"miou": miou},
            train={
                **deeplabv3(),
                "data.crop_size": (crop, crop),
                "train.upsample_logits": upsampled,
                **({} if tuned else FROZEN),
            },
        )
        for (crop, upsampled, tuned), miou in PAPER.items()
    ),
    claims=(
        Claim("larger crops help", better=(513, True, True), worse=(321, True, True)),
        Claim("the loss of upsampled logits helps", better=(513, True, True), worse=(513, False, True)),
        Claim("fine-tuned batch norm helps", better=(513, True, True), worse=(513, True, False)),
    ),
)
