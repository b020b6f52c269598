"""DeepLabv3, Figure 4: the number of weights of a 3x3 kernel that lie on a 65x65 map, by rate.

The rows are computed without a network. The paper draws curves and gives no numbers.
"""

from collections.abc import Mapping
from functools import partial

from deeplab_jax.ops.geometry import valid_weight_counts
from experiments.tables.table import Row, Table

SIZE = 65
RATES = (1, *range(2, 33, 2), 33, 34, *range(36, 65, 4), 65, 72, 80, 100)
TAPS = (9, 6, 4, 3, 2, 1)


def shares(rate: int) -> Mapping[str, float]:
    """Return the positions by their number of valid weights, in percent of all positions."""
    counts = valid_weight_counts(SIZE, 3, rate)
    return {f"valid_{taps}": 100 * float(counts[taps - 1]) / SIZE**2 for taps in TAPS}


TABLE = Table(
    name="v3_figure4",
    title=f"Valid weights of a 3x3 kernel on a {SIZE}x{SIZE} map, in percent of the positions",
    source="arXiv 1706.05587, Fig. 4",
    columns=("rate",),
    rows=tuple(Row((rate,), compute=partial(shares, rate)) for rate in RATES),
    measures=tuple(f"valid_{taps}" for taps in TAPS),
    along="rate",
)
