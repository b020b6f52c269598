"""Whether the paper's order of rows holds here: pair by pair, beside the distance between seeds."""

from itertools import combinations
from statistics import mean

from experiments.report.gather import RowResult, TableResult

MEASURE = "miou"


def trend(result: TableResult) -> str:
    """Return a sentence on how many pairs of rows have the paper's order here; "" where there is no pair.

    Rows count by the mean over their seeds. Pairs that lie no further apart than seeds do tell nothing, but for
    evaluations of the same weights, which no seed sets apart.
    """
    rows = [row for row in result.rows if MEASURE in row.row.paper and row.values.get(MEASURE)]
    pairs = [
        (worse, better) if _paper(worse) < _paper(better) else (better, worse)
        for worse, better in combinations(rows, 2)
        if _paper(worse) != _paper(better)
    ]
    if not pairs:
        return ""
    distance = result.seed_distance or 0.0
    limits = [0.0 if _same_weights(*pair) else distance for pair in pairs]
    gains = [(_ours(better) - _ours(worse), better, worse) for worse, better in pairs]
    same = sum(gain > limit for (gain, *_), limit in zip(gains, limits, strict=True))
    against = [found for found, limit in zip(gains, limits, strict=True) if found[0] < -limit]
    text = f"Pairs of rows that the paper orders: {len(gains)}; in the same order here: {same}; "
    text += f"in the opposite one: {len(against)}"
    if against:
        gain, better, worse = min(against, key=lambda found: found[0])
        text += f" (by most, {-gain:.2f}: {worse.label} above {better.label})"
    weights = sum(_same_weights(*pair) for pair in pairs)
    if weights:
        text += f"; of the same weights, so that no seed sets them apart: {weights}"
    if weights == len(pairs):
        return f"{text}."
    if result.seed_distance is None:
        return f"{text}; how far seeds lie apart was not measured."
    near = len(gains) - same - len(against)
    return f"{text}; no further apart than seeds of one row at this scale ({result.seed_distance:.2f}): {near}."


def _same_weights(first: RowResult, second: RowResult) -> bool:
    return {one.name for one in first.trainings} == {one.name for one in second.trainings}


def _paper(row: RowResult) -> float:
    return row.row.paper[MEASURE]


def _ours(row: RowResult) -> float:
    return mean(row.values[MEASURE])
