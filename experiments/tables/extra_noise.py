"""The spread over seeds for shorter and longer trainings (not in the papers).

Each network is trained for several lengths, with and without the debiased average of the weights, with a lower learning
rate, and once with larger batches. The average spans about a fifth of the training. The papers' batch has 16 images, so
32 means twice the usual batch. `python -m experiments.spread` draws the spreads against the cost.
"""

from typing import Any

from experiments.tables.networks import deeplabv3, deeplabv3plus
from experiments.tables.table import Row, Table

AVERAGE_OF_30 = {"train.ema_decay": 0.967, "train.ema_debias": True}
AVERAGE_OF_100 = {"train.ema_decay": 0.99, "train.ema_debias": True}
LOW_RATE = {"optimizer.learning_rate": 0.003}  # 0.01 is usual in the regime `scenes`.
TRAININGS: dict[str, dict[str, Any]] = {
    "150 steps": {"train.steps": 150},
    "150 steps, average": {"train.steps": 150, **AVERAGE_OF_30},
    "150 steps, average, low rate": {"train.steps": 150, **AVERAGE_OF_30, **LOW_RATE},
    "450 steps": {"train.steps": 450},
    "450 steps, average": {"train.steps": 450, **AVERAGE_OF_100},
    "450 steps, average, low rate": {"train.steps": 450, **AVERAGE_OF_100, **LOW_RATE},
    "450 steps, average, low rate, batch 32": {
        "train.steps": 450,
        **AVERAGE_OF_100,
        **LOW_RATE,
        "train.batch_size": 32,
    },
    "900 steps, average": {"train.steps": 900, **AVERAGE_OF_100},
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
