"""How far apart seeds lie under cheaper and dearer trainings: the curve of spread against cost (not in the papers).

Each network is trained for longer, with and without the debiased average of the weights, and with larger batches. The
average spans about a fifth of the training. A batch is stated in the papers' size, 16.
"""

from typing import Any

from experiments.tables.networks import deeplabv3, deeplabv3plus
from experiments.tables.table import Row, Table

AVERAGE_OF_30 = {"train.ema_decay": 0.967, "train.ema_debias": True}
AVERAGE_OF_100 = {"train.ema_decay": 0.99, "train.ema_debias": True}
TRAININGS: dict[str, dict[str, Any]] = {
    "150 steps": {"train.steps": 150},
    "150 steps, average": {"train.steps": 150, **AVERAGE_OF_30},
    "450 steps": {"train.steps": 450},
    "450 steps, average": {"train.steps": 450, **AVERAGE_OF_100},
    "450 steps, average, batch 32": {"train.steps": 450, **AVERAGE_OF_100, "train.batch_size": 32},
    "900 steps, average": {"train.steps": 900, **AVERAGE_OF_100},
}
NETWORKS = {"DeepLabv3": deeplabv3(), "DeepLabv3+": deeplabv3plus()}

TABLE = Table(
    name="extra_noise",
    title="The spread over seeds against the length of the training",
    source="not in the papers",
    columns=("network", "training"),
    rows=tuple(
        Row((network, training), train={**own, **changes})
        for network, own in NETWORKS.items()
        for training, changes in TRAININGS.items()
    ),
)
