"""DeepLabv3+, Table 2: the structure of the decoder, with 48 channels of low-level features."""

from experiments.tables.networks import deeplabv3plus
from experiments.tables.table import Claim, Row, Table

# (features of Conv3 too, structure) -> mIoU
PAPER = {
    (False, "[3x3, 256]"): 78.21,
    (False, "[3x3, 256] x 2"): 78.85,
    (False, "[3x3, 256] x 3"): 78.02,
    (False, "[3x3, 128]"): 77.25,
    (False, "[1x1, 256]"): 78.07,
    (True, "[3x3, 256]"): 78.61,
}
STRUCTURES = {
    "[3x3, 256]": ((3, 256),),
    "[3x3, 256] x 2": ((3, 256),) * 2,
    "[3x3, 256] x 3": ((3, 256),) * 3,
    "[3x3, 128]": ((3, 128),),
    "[1x1, 256]": ((1, 256),),
}

TABLE = Table(
    name="v3plus_table2",
    title="Decoder: structure of its convolutions, with Conv2 and with Conv3 as well, ResNet-101",
    source="arXiv 1802.02611, Table 2 (VOC 2012 val)",
    columns=("conv3", "structure"),
    rows=tuple(
        Row(
            (conv3, structure),
            {"miou": miou},
            train=deeplabv3plus(low_level=("conv2", "conv3") if conv3 else ("conv2",), convs=STRUCTURES[structure]),
        )
        for (conv3, structure), miou in PAPER.items()
    ),
    claims=(
        Claim(
            "two 3x3 convolutions are better than one", better=(False, "[3x3, 256] x 2"), worse=(False, "[3x3, 256]")
        ),
        Claim("two are better than three", better=(False, "[3x3, 256] x 2"), worse=(False, "[3x3, 256] x 3")),
        Claim("256 channels are better than 128", better=(False, "[3x3, 256]"), worse=(False, "[3x3, 128]")),
        Claim("3x3 kernels are better than 1x1", better=(False, "[3x3, 256]"), worse=(False, "[1x1, 256]")),
    ),
)
