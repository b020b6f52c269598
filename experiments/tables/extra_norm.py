"""Group normalisation against batch normalisation at small batches (not in the papers; Wu and He, arXiv 1803.08494)."""

from experiments.tables.networks import deeplabv3
from experiments.tables.table import Row, Table

# Batch norm is the default. Its rows change nothing, so that they share the trainings of other tables.
NORMS: dict[str, dict[str, str]] = {"batch": {}, "group": {"model.options.norm": "group"}}

TABLE = Table(
    name="extra_norm",
    title="Group against batch normalisation at small batches, output stride 16",
    source="not in the papers; batch norm at 4, 8 and 16 is DeepLabv3's Table 9",
    columns=("norm", "batch_size"),
    rows=tuple(
        Row((norm, batch), train={**deeplabv3(), **change, "train.batch_size": batch})
        for norm, change in NORMS.items()
        for batch in (4, 8, 16)
    ),
)
