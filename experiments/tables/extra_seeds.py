"""How far apart seeds lie: what a difference between two rows of the other tables has to be compared with."""

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
