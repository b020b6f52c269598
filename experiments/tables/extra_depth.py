"""What more blocks and a multi-grid are worth where only the far surroundings tell (not in the papers).

DeepLabv3's Table 3 has both on photographs. The pictures here have a cue at a controlled place: road and water look the
same, and so do car and boat, and only a lamp somewhere in the picture tells them apart
(`deeplab_jax/data/sets/scenes.py`). On maps of 17 samples a side, block 4 hardly sees it. Each block more doubles the
rate, and a multi-grid raises the rates within a block. In the control the lamp is off, so no depth can succeed.

It runs in the regime `demo`, from random weights: `python -m experiments.run extra_depth --regime demo`. The networks
with unlimited context are those with image pooling in `extra_context`, on the same backbone and pictures.
"""

from experiments.tables.networks import cascade
from experiments.tables.table import Claim, Row, Table

PLAIN, GRID = (1, 1), (1, 2)  # A ResNet-18 has two units a block.


def _cells(lamp: str, block: int, grid: tuple[int, ...]) -> tuple[str, str, int]:
    return lamp, str(grid), block


def _row(lamp: str, block: int, grid: tuple[int, ...]) -> Row:
    network = cascade("resnet18", last_block=block, multi_grid=grid, output_stride=8)
    return Row(_cells(lamp, block, grid), train={**network, "data.options.lamp": lamp})


TABLE = Table(
    name="extra_depth",
    title="Blocks and multi-grid where only a lamp tells classes apart",
    source="not in the papers; see DeepLabv3, Table 3",
    columns=("lamp", "multi_grid", "last_block"),
    rows=(
        *(_row("on", block, PLAIN) for block in (4, 5, 6, 7)),
        *(_row("on", block, GRID) for block in (4, 5)),
        _row("off", 6, PLAIN),
    ),
    measures=("miou", "lamp_iou"),
    claims=(
        Claim("block5 brings context", _cells("on", 5, PLAIN), _cells("on", 4, PLAIN), "lamp_iou"),
        Claim("block6 brings more", _cells("on", 6, PLAIN), _cells("on", 5, PLAIN), "lamp_iou"),
        Claim(
            "multi-grid (1, 2) brings context with block4", _cells("on", 4, GRID), _cells("on", 4, PLAIN), "lamp_iou"
        ),
    ),
)
