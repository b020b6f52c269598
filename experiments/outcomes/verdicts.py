"""Decides whether the papers' claims about their rows hold here, by `RULE`.

Trainings are paired by their seed (`experiments/README.md`). Where both rows start from the same pretraining, a pair
also needs the same training of it: on another machine its weights differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from statistics import fmean

from experiments.outcomes.gather import RowResult, TableResult, Training
from experiments.outcomes.intervals import Error, Interval, errors, holm, over_images, over_seeds, p_value, widest
from experiments.outcomes.per_image import Counts, counts_file, read_counts
from experiments.tables import Claim

RULE = (
    "A claim holds where the 95% interval of our difference is above 0, and is refuted where it is below 0. Else it "
    "is undecided. So it is with a single training, and where two rows start from two plain networks, each trained "
    "once. The interval is Student's t over paired trainings and resampled images together, never narrower than over "
    'the trainings alone; "trainings only" marks rows without counts by image. A difference is the mean over the '
    "seeds that both rows have, so it can differ from that of the two means in a table."
)
HOLDS, REFUTED, UNDECIDED, NOT_RUN, NO_PAIR = "holds", "refuted", "undecided", "not run", "no pair"
WORDS = {1: HOLDS, -1: REFUTED, 0: UNDECIDED}


@dataclass(frozen=True)
class Verdict:
    """A claim and its verdict. Differences are in points.

    Attributes:
      result: the table in its regime.
      claim: the claim.
      paper: the difference in the paper, None where it gives none.
      differences: our difference for each pair of trainings; none where one of the rows was not run, or where no two
        trainings make a pair.
      seeds: the standard error over trainings; None where there are fewer than two pairs.
      images: the standard error over images; None where `seeds` is None, where the claim is not about mIoU, and where a
        training has no counts by image.
      run: whether both rows were run.
      kept: whether Holm's correction leaves the difference significant; see `corrected`.
    """

    result: TableResult
    claim: Claim
    paper: float | None
    differences: tuple[float, ...] = ()
    seeds: Error | None = None
    images: Error | None = None
    run: bool = False
    kept: bool = False

    @property
    def ours(self) -> float | None:
        """The mean difference, None where there is none."""
        return fmean(self.differences) if self.differences else None

    @property
    def interval(self) -> Interval | None:
        """The 95% interval of the mean difference, None for fewer than two pairs."""
        return None if self.seeds is None else widest(fmean(self.differences), errors(self.seeds, self.images))

    @property
    def p(self) -> float | None:
        """The p of the same test as the interval's, None for fewer than two pairs."""
        if self.seeds is None:
            return None
        return max(p_value(fmean(self.differences), error) for error in errors(self.seeds, self.images))

    @property
    def word(self) -> str:
        """The verdict, by `RULE`."""
        if not self.differences:
            return NO_PAIR if self.run else NOT_RUN
        return UNDECIDED if self.interval is None else WORDS[self.interval.side]

    @property
    def after_holm(self) -> str:
        """The verdict after Holm's correction."""
        return self.word if self.kept or not self.differences else UNDECIDED


def verdicts(result: TableResult) -> list[Verdict]:
    """Return the verdict on each of a table's claims."""
    rows = {one.row.cells: one for one in result.rows}
    claims = (claim for claim in result.table.claims if {claim.better, claim.worse} <= set(rows))
    return [_verdict(result, claim, rows[claim.better], rows[claim.worse]) for claim in claims]


def _verdict(result: TableResult, claim: Claim, better: RowResult, worse: RowResult) -> Verdict:
    name = claim.measure
    ours, theirs = ({one.seed: one for one in row.trainings if name in one.values} for row in (better, worse))
    same_start = _start(better) == _start(worse)
    paired = sorted(
        seed for seed in ours.keys() & theirs.keys() if not same_start or ours[seed].backbone == theirs[seed].backbone
    )
    differences = tuple(ours[seed].values[name] - theirs[seed].values[name] for seed in paired)
    several = same_start and name == "miou" and len(paired) > 1
    return Verdict(
        result,
        claim,
        result.table.difference(claim),
        differences,
        over_seeds(differences) if same_start else None,  # Else they do not tell how much another start would differ.
        _over_images(result, [(better, ours[seed], worse, theirs[seed]) for seed in paired]) if several else None,
        bool(ours and theirs),
    )


def _start(row: RowResult) -> str:
    """Return the name of the pretraining that a row starts from, "" where there is none."""
    return row.pretraining.name if row.pretraining else ""


def _over_images(result: TableResult, pairs: Iterable[tuple[RowResult, Training, RowResult, Training]]) -> Error | None:
    """Return the error over images, None where a training has no counts: those of the others are not of this mean."""
    found = [(_counts(result, *pair[:2]), _counts(result, *pair[2:])) for pair in pairs]
    whole = [(one, other) for one, other in found if one is not None and other is not None]
    return over_images(whole) if len(whole) == len(found) else None


def _counts(result: TableResult, row: RowResult, training: Training) -> Counts | None:
    return read_counts(counts_file(result.folder, training.name, row.evaluation), training.values["miou"] / 100)


def corrected(found: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts of a regime with Holm's correction for all of its claims that have several trainings."""
    kept = iter(holm([one.p for one in found if one.p is not None]))
    return [replace(one, kept=one.p is not None and next(kept)) for one in found]


def comparisons(found: Sequence[Verdict]) -> str:
    """Return a sentence on the number of comparisons, and on their verdicts before and after Holm's correction; `found`
    comes from `corrected`.
    """
    run = [one for one in found if one.differences]
    before, after = (
        ", ".join(f"{words.count(word)} {word}" for word in (HOLDS, REFUTED, UNDECIDED))
        for words in ([one.word for one in run], [one.after_holm for one in run])
    )
    tested = sum(one.p is not None for one in run)
    text = f"{len(run)} comparisons: {before} (after Holm's correction for {tested} with several trainings: {after})"
    for word, one, several, what in (
        (NOT_RUN, "claim needs", "claims need", "a row that was not run"),
        (NO_PAIR, "claim has", "claims have", "no pair of trainings"),
    ):
        if left := sum(verdict.word == word for verdict in found):
            text += f"; {left} {several if left > 1 else one} {what}"
    return f"{text}."


def all_verdicts(results: Iterable[TableResult]) -> list[Verdict]:
    """Return the verdicts on the claims of all tables, those of a regime beside each other in `results`."""
    regimes = groupby(results, key=lambda result: result.regime)
    return [one for _, tables in regimes for one in corrected(list(chain.from_iterable(map(verdicts, tables))))]
