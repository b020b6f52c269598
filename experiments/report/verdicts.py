"""Decides whether the papers' claims about their rows hold here, by `RULE`.

Trainings are paired by their seed (`experiments/README.md`). Where both rows start from the same pretraining, a pair
also needs the same training of it: on another machine its weights differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from experiments.report.gather import RowResult, TableResult, Training
from experiments.report.intervals import Interval, holm, over_images, over_seeds, p_value
from experiments.run.per_image import Counts, counts_file, read_counts
from experiments.tables import Claim

RULE = (
    "Our difference has two 95% intervals: over paired trainings (Student's t) and over images (bootstrap). A claim "
    "holds where both intervals are above 0. It is refuted where both are below 0. Otherwise it is undecided. A single "
    "training decides nothing. Where a claim is not about mIoU, or no counts by image were kept, the interval over "
    "trainings decides alone."
)
HOLDS, REFUTED, UNDECIDED, NOT_RUN, NO_PAIR = "holds", "refuted", "undecided", "not run", "no pair"
WORDS = {1: HOLDS, -1: REFUTED, 0: UNDECIDED}


@dataclass(frozen=True)
class Verdict:
    """A claim and its verdict. Differences are in points.

    Attributes:
      result: the table in its regime.
      claim: the claim.
      paper: the difference in the paper.
      differences: our difference for each pair of trainings; none where one of the rows was not run, or where no two
        trainings make a pair.
      seeds: the interval over trainings.
      images: the interval over images.
      p: p of the t-test over trainings.
      compared: keys of the two rows and the measure, which show that two tables make the same comparison; empty where
        there is no difference.
      run: whether both rows were run.
    """

    result: TableResult
    claim: Claim
    paper: float
    differences: tuple[float, ...] = ()
    seeds: Interval | None = None
    images: Interval | None = None
    p: float | None = None
    compared: tuple[str, ...] = ()
    run: bool = False

    @property
    def ours(self) -> float | None:
        """The mean difference, None where there is none."""
        return fmean(self.differences) if self.differences else None

    @property
    def word(self) -> str:
        """The verdict, by `RULE`."""
        if not self.differences:
            return NO_PAIR if self.run else NOT_RUN
        known = {one.side for one in (self.seeds, self.images) if one is not None}
        return UNDECIDED if self.seeds is None or len(known) > 1 else WORDS[known.pop()]


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
    counts = [
        (_counts(result, better, ours[seed]), _counts(result, worse, theirs[seed]))
        for seed in (paired if name == "miou" else ())
    ]
    return Verdict(
        result,
        claim,
        result.table.difference(claim),
        differences,
        over_seeds(differences),
        over_images([(one, other) for one, other in counts if one is not None and other is not None]),
        p_value(differences),
        (better.training, better.evaluation, worse.training, worse.evaluation, name) if differences else (),
        bool(ours and theirs),
    )


def _start(row: RowResult) -> str:
    """Return the name of the pretraining that a row starts from, "" where there is none."""
    return row.pretraining.name if row.pretraining else ""


def _counts(result: TableResult, row: RowResult, training: Training) -> Counts | None:
    return read_counts(counts_file(result.folder, training.name, row.evaluation), training.values["miou"] / 100)


def comparisons(found: Sequence[Verdict]) -> str:
    """Return sentences on the number of comparisons, and on their verdicts before and after Holm's correction. A
    comparison that two tables make of the same trainings counts once.
    """
    found = list({(one.compared, one.differences) if one.compared else id(one): one for one in found}.values())
    run = [one for one in found if one.differences]
    tested = [one for one in run if one.p is not None]
    decided = [one.word in (HOLDS, REFUTED) for one in tested]
    kept = sum(map(all, zip(decided, holm([one.p for one in tested if one.p is not None]), strict=True)))
    counts = ", ".join(f"{sum(one.word == word for one in found)} {word}" for word in (HOLDS, REFUTED, UNDECIDED))
    text = f"{len(run)} comparisons: {counts}"
    for word, one, several, what in (
        (NOT_RUN, "claim needs", "claims need", "a row that was not run"),
        (NO_PAIR, "claim has", "claims have", "no pair of trainings"),
    ):
        if left := sum(verdict.word == word for verdict in found):
            text += f"; {left} {several if left > 1 else one} {what}"
    text += f". {len(tested)} have several trainings; Holm's correction for all of them leaves"
    return f"{text} {kept} of their {sum(decided)} decided verdicts."


def all_verdicts(results: Iterable[TableResult]) -> list[Verdict]:
    """Return the verdicts on the claims of all tables."""
    return list(chain.from_iterable(map(verdicts, results)))
