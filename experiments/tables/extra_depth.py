"""How far the blocks of a cascade and a multi-grid see (not in the papers).

DeepLabv3's Tables 2 and 3 have both on photographs. These pictures have a cue at a controlled distance: strips of
65x513 pixels with a lamp at their left end. Road and water look the same, and so do car and boat, and only the lamp
tells them apart (`deeplab_jax/data/sets/scenes.py`). A network labels the things from which it sees the lamp; the strip
has 65 samples. Image pooling has unlimited context. In the control the lamp is off, so no network can succeed.

It runs in the regime `demo`, from random weights: `python -m experiments.run extra_depth --regime demo`.
"""

from typing import Any

from experiments.tables.networks import cascade
from experiments.tables.table import Claim, Row, Table

STRIP = (65, 513)  # pixels
AS_CROP = (257, 2049)  # The same crop in the papers' size: 513 pixels are 129 here.
PLAIN, GRID = (1, 1), (1, 2)  # A ResNet-18 has two units a block.


def _cascade(block: int, grid: tuple[int, ...] = PLAIN) -> dict[str, Any]:
    return cascade("resnet18", last_block=block, multi_grid=grid, output_stride=8)


NETWORKS: dict[str, dict[str, Any]] = {
    "block4": _cascade(4),
    "block5": _cascade(5),
    "block6": _cascade(6),
    "block4, multi-grid (1, 2)": _cascade(4, GRID),
    "block4, image pooling": {
        "model.name": "deeplabv3_resnet18",
        "model.output_stride": 8,
        "model.options.aspp_rates": (),
        "model.options.image_pooling": True,
    },
}


def _row(network: str, lamp: str) -> Row:
    data = {"data.options.size": STRIP, "data.options.lamp": lamp, "data.crop_size": AS_CROP}
    return Row((lamp, network), train={**NETWORKS[network], **data, "evaluate.pad_to": (STRIP,)})


TABLE = Table(
    name="extra_depth",
    title="Blocks and multi-grid where only a lamp at the picture's end tells classes apart",
    source="not in the papers; see DeepLabv3, Tables 2 and 3",
    columns=("lamp", "network"),
    rows=(*(_row(network, "end") for network in NETWORKS), _row("block6", "off")),
    measures=("miou", "lamp_iou"),
    claims=tuple(
        Claim(says, better=("end", better), worse=("end", worse), measure="lamp_iou")
        for says, better, worse in (
            ("block5 sees farther than block4", "block5", "block4"),
            ("block6 sees farther than block5", "block6", "block5"),
            ("multi-grid (1, 2) sees farther", "block4, multi-grid (1, 2)", "block4"),
        )
    ),
)
