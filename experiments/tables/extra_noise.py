"""The spread over seeds for shorter and longer trainings (not in the papers).

Each network is trained for several lengths, with and without the debiased average of the weights over about 100 steps.
`python -m experiments.spread` draws the spreads against the cost.
"""

from typing import Any

from experiments.tables.networks import deeplabv3, deeplabv3plus
from experiments.tables.table import Row, Table

AVERAGE = {"train.ema_decay": 0.99, "train.ema_debias": True}
TRAININGS: dict[str, dict[str, Any]] = {
    "150 steps": {"train.steps": 150},
    "450 steps": {"train.steps": 450},
    "450 steps, average": {"train.steps": 450, **AVERAGE},
    "900 steps, average": {"train.steps": 900, **AVERAGE},
}
NETWORKS = {"DeepLabv3": deeplabv3(), "DeepLabv3+": deeplabv3plus()}

TABLE = Table(
    name="extra_noise",
    title="The spread over seeds against the length of the training",
    source="not in the papers",
    columns=("network", "training"),
    rows=tuple(
        Row((network, training), train={**settings, **changes})
        for network, settings in NETWORKS.items()
        for training, changes in TRAININGS.items()
    ),
)
