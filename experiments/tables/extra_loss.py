"""Class weights and hard-pixel mining in the loss of DeepLabv3+ (not in the papers).

"balanced" weights are the square roots of median-frequency weights (Eigen and Fergus, arXiv 1411.4734). `check-data`
prints the same weights.
"""

from experiments.tables.networks import deeplabv3plus
from experiments.tables.table import Row, Table

# (class weights, share of the hardest pixels)
LOSSES = (("none", 1.0), ("balanced", 1.0), ("none", 0.25), ("balanced", 0.25))

TABLE = Table(
    name="extra_loss",
    title="Class weights and hard pixels in the loss of DeepLabv3+",
    source="not in the papers",
    columns=("class_weights", "top_k"),
    rows=tuple(
        Row((weights, top_k), train={**deeplabv3plus(), "train.class_weights": weights, "train.top_k": top_k})
        for weights, top_k in LOSSES
    ),
)
