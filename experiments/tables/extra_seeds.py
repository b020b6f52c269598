"""The spread over seeds. Compare differences between rows of the other tables with it."""

from experiments.tables.networks import deeplabv3, deeplabv3plus
from experiments.tables.table import Row, Table

TABLE = Table(
    name="extra_seeds",
    title="The spread over seeds",
    source="not in the papers, which give no spread",
    columns=("network",),
    rows=(
        Row(("DeepLabv3",), train=deeplabv3()),
        Row(("DeepLabv3+",), train=deeplabv3plus()),
    ),
)
