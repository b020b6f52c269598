"""What practitioners add to the training of DeepLabv3+, one ingredient at a time (not in the papers).

Every row is the first one with a single change; the last rows have class weights and a second change. The first one has
the cross-entropy of all pixels alike, poly, and the debiased average of the weights, which makes trainings differ less
by chance. "Rare classes" are pole, sign symbol and pedestrian, which have 2.1% of the labelled pixels of CamVid's
validation split.
"""

from typing import Any

from experiments.tables.networks import deeplabv3plus
from experiments.tables.table import Row, Table

STEPS = 600
BASE: dict[str, Any] = {
    **deeplabv3plus(),
    "train.steps": STEPS,
    "train.evaluate_every": STEPS,
    "train.class_weights": "none",
    "train.loss": "cross_entropy",
    "optimizer.learning_rate": 2e-3,
    "train.ema_decay": 0.99,
    "train.ema_debias": True,
}
INGREDIENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "class weights": {"train.class_weights": "balanced"},
    "focal": {"train.loss": "focal"},
    "Dice + cross-entropy": {"train.loss": "cross_entropy + dice"},
    "Lovász + cross-entropy": {"train.loss": "cross_entropy + lovasz"},
    # By default 100,000 pixels of an image are kept at least, more than a crop has here; this is a fifth of a crop.
    "OHEM": {"train.loss": "ohem", "train.loss_options.ohem_min_kept": 13_000},
    "rare-class crops": {"data.augment.cat_max_ratio": 0.75, "data.class_temperature": 0.01},
    "vertical flip": {"data.augment.vertical_flip": True},
    "cosine": {"optimizer.schedule": "cosine"},
    "no average of weights": {"train.ema_decay": 0.0, "train.ema_debias": False},
    "copy-paste": {"data.augment.copy_paste": 0.5, "data.augment.copy_paste_classes": "rare"},
    "mosaic": {"data.augment.mosaic": 0.5},
}
WEIGHTS = INGREDIENTS["class weights"]
# Class weights gain most, so these stand on top of them. Crops are stated in the papers' size, 513, and batches of 16.
ON_TOP: dict[str, dict[str, Any]] = {
    "Dice + cross-entropy": INGREDIENTS["Dice + cross-entropy"],
    "rare-class crops": INGREDIENTS["rare-class crops"],
    "learning rate 0.004": {"optimizer.learning_rate": 4e-3},
    "scales 0.75 to 2": {"data.scale_range": (0.75, 2.0)},
    "fewer, larger crops": {"data.crop_size": (641, 833), "train.batch_size": 8},
}
ROWS = {**INGREDIENTS, **{f"class weights, {name}": {**WEIGHTS, **changes} for name, changes in ON_TOP.items()}}

TABLE = Table(
    name="extra_recipes",
    title="Losses, sampling and schedules for DeepLabv3+ on CamVid",
    source="not in the papers",
    columns=("ingredient",),
    rows=tuple(Row((name,), train={**BASE, **changes}) for name, changes in ROWS.items()),
    measures=("miou", "rare_iou"),
)
