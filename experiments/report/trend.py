"""Whether the paper's order of rows holds here: pair by pair, beside the distance between seeds."""

from itertools import combinations
from statistics import mean

from experiments.report.gather import RowResult, TableResult

MEASURE = "miou"


def trend(result: TableResult) -> str:
    """Return a sentence on how many pairs of rows have the paper's order here; "" where there is no pair.

    Rows count by the mean over their seeds. Pairs that lie no further apart than seeds tell nothing. Evaluations of
    the same weights are compared training by training: they are ordered where all trainings agree.
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
    verdicts = [_verdict(better, worse, distance) for worse, better in pairs]
    gains = [(_ours(better) - _ours(worse), better, worse) for worse, better in pairs]
    same = verdicts.count(1)
    against = [found for found, verdict in zip(gains, verdicts, strict=True) if verdict == -1]
    text = f"Pairs of rows that the paper orders: {len(gains)}; in the same order here: {same}; "
    text += f"in the opposite one: {len(against)}"
    if against:
        gain, better, worse = min(against, key=lambda found: found[0])
        text += f" (by most, {-gain:.2f}: {worse.label} above {better.label})"
    shared = [verdict for pair, verdict in zip(pairs, verdicts, strict=True) if _same_weights(*pair)]
    if shared:
        text += f"; of the same weights, so that no seed sets them apart: {len(shared)}"
        text += f", of which trainings disagree on {shared.count(0)}" if shared.count(0) else ""
    if len(shared) == len(pairs):
        return f"{text}."
    if result.seed_distance is None:
        return f"{text}; how far seeds lie apart was not measured."
    near = verdicts.count(0) - shared.count(0)
    return f"{text}; no further apart than seeds of one row in this regime ({result.seed_distance:.2f}): {near}."


def _verdict(better: RowResult, worse: RowResult, distance: float) -> int:
    """Return 1 where the row that is better in the paper is so here, -1 where the other one is, 0 where neither."""
    if _same_weights(better, worse):
        gains = [one - other for one, other in zip(better.values[MEASURE], worse.values[MEASURE], strict=True)]
        return all(gain > 0 for gain in gains) - all(gain < 0 for gain in gains)
    gain = _ours(better) - _ours(worse)
    return (gain > distance) - (gain < -distance)


def _same_weights(first: RowResult, second: RowResult) -> bool:
    return [one.name for one in first.trainings] == [one.name for one in second.trainings]


def _paper(row: RowResult) -> float:
    return row.row.paper[MEASURE]


def _ours(row: RowResult) -> float:
    return mean(row.values[MEASURE])
