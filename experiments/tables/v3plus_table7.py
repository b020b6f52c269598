"""DeepLabv3+, Table 7(a): Cityscapes, trained on the fine annotations only.

The table does not say whether the convolutions of ASPP and decoder are separable. Here they are: the model that the
authors released for the second row has their multiply-adds (418.64 * 10^9 at 1025x2049 and output stride 16).
"""

from experiments.tables.networks import deeplabv3, deeplabv3plus
from experiments.tables.table import Claim, Row, Table

# (backbone, decoder, image-level features) -> mIoU; all have the ASPP
PAPER = {
    ("X-65", False, True): 77.33,
    ("X-65", True, True): 78.79,
    ("X-65", True, False): 79.14,
    ("X-71", True, False): 79.55,
}
BACKBONES = {"X-65": "xception65", "X-71": "xception71"}


def _train(backbone: str, decoder: bool, image_level: bool) -> dict[str, object]:
    network = deeplabv3plus if decoder else deeplabv3
    return network(BACKBONES[backbone], image_pooling=image_level, separable=True)


TABLE = Table(
    name="v3plus_table7",
    title="DeepLabv3+ on Cityscapes, trained on train_fine",
    source="arXiv 1802.02611, Table 7(a) (Cityscapes val)",
    columns=("backbone", "decoder", "image_level"),
    rows=tuple(
        Row((backbone, decoder, image_level), {"miou": miou}, train=_train(backbone, decoder, image_level))
        for (backbone, decoder, image_level), miou in PAPER.items()
    ),
    data="cityscapes",
    claims=(
        Claim("the decoder helps", better=("X-65", True, True), worse=("X-65", False, True)),
        Claim(
            "the network without image-level features is better",
            better=("X-65", True, False),
            worse=("X-65", True, True),
        ),
        Claim("the deeper Xception is better", better=("X-71", True, False), worse=("X-65", True, False)),
    ),
)
