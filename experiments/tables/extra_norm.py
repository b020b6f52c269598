"""Group against batch normalisation as batches get small (not in the papers; Wu and He, arXiv 1803.08494)."""

from experiments.tables.networks import deeplabv3
from experiments.tables.table import Row, Table

TABLE = Table(
    name="extra_norm",
    title="Group against batch normalisation at small batches, output stride 16",
    source="not in the papers; batch norm at 4, 8 and 16 is DeepLabv3's Table 9",
    columns=("norm", "batch_size"),
    rows=tuple(
        Row((norm, batch), train={**deeplabv3(), "model.options.norm": norm, "train.batch_size": batch})
        for norm in ("batch", "group")
        for batch in (4, 8, 16)
    ),
)
