"""Whether what the papers say of their rows holds here.

The rule, for each claim that one row is better than another: the claim holds where our difference is above 0 in both
95% intervals, Student's t over paired trainings and the bootstrap over images; it is refuted where it is below 0 in
both; all else is undecided. One training alone decides nothing. Where a claim is not about mIoU, or no counts by image
were kept, trainings alone decide.

Trainings are paired by their seed: it gives both rows the same images in the same order with the same augmentation, and
the same initial weights wherever a tensor has one name and shape in both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from experiments.report.gather import RowResult, TableResult
from experiments.report.intervals import Interval, holm, over_images, over_seeds, p_value
from experiments.run.per_image import Counts, counts_file, read_counts
from experiments.tables import Claim

RULE = (
    "A claim holds where our difference is above 0 in both 95% intervals, over paired trainings (Student's t) and over "
    "images (bootstrap), and is refuted where it is below 0 in both. All else is undecided: one training decides "
    "nothing. Where a claim is not about mIoU, or no counts by image were kept, trainings alone decide."
)
HOLDS, REFUTED, UNDECIDED, NOT_RUN = "holds", "refuted", "undecided", "not run"
WORDS = {1: HOLDS, -1: REFUTED, 0: UNDECIDED}


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it. Differences are in points.

    Attributes:
      result: the table in its regime.
      claim: the paper's.
      paper: the paper's difference.
      differences: ours, of each training that both rows have; none where one of them was not run.
      seeds: the interval over trainings.
      images: the interval over images.
      p: of the t-test over trainings.
      compared: keys of the two rows and the measure, for two tables may compare the same; empty: not known.
    """

    result: TableResult
    claim: Claim
    paper: float
    differences: tuple[float, ...] = ()
    seeds: Interval | None = None
    images: Interval | None = None
    p: float | None = None
    compared: tuple[str, ...] = ()

    @property
    def ours(self) -> float | None:
        """The mean difference, None where there is none."""
        return fmean(self.differences) if self.differences else None

    @property
    def word(self) -> str:
        """The verdict, by the rule of this module."""
        if not self.differences:
            return NOT_RUN
        known = {one.side for one in (self.seeds, self.images) if one is not None}
        return UNDECIDED if self.seeds is None or len(known) > 1 else WORDS[known.pop()]


def verdicts(result: TableResult) -> list[Verdict]:
    """Return the verdict on each of a table's claims."""
    rows = {one.row.cells: one for one in result.rows}
    claims = (claim for claim in result.table.claims if {claim.better, claim.worse} <= set(rows))
    return [_verdict(result, claim, rows[claim.better], rows[claim.worse]) for claim in claims]


def _verdict(result: TableResult, claim: Claim, better: RowResult, worse: RowResult) -> Verdict:
    ours, theirs = (_by_seed(row, claim.measure) for row in (better, worse))
    paired = sorted(ours.keys() & theirs.keys())
    differences = tuple(ours[seed] - theirs[seed] for seed in paired)
    counts = [
        (_counts(result, better, seed, ours[seed]), _counts(result, worse, seed, theirs[seed])) for seed in paired
    ]
    whole = [(one, other) for one, other in counts if one is not None and other is not None]
    return Verdict(
        result,
        claim,
        result.table.difference(claim),
        differences,
        over_seeds(differences),
        over_images(whole) if claim.measure == "miou" and whole else None,
        p_value(differences),
        (better.training, better.evaluation, worse.training, worse.evaluation, claim.measure) if differences else (),
    )


def _by_seed(row: RowResult, measure: str) -> dict[int, float]:
    values = row.values.get(measure, ())
    return {one.seed: value for one, value in zip(row.trainings, values, strict=len(values) > 0)}


def _counts(result: TableResult, row: RowResult, seed: int, miou: float) -> Counts | None:
    name = next(one.name for one in row.trainings if one.seed == seed)
    return read_counts(counts_file(result.folder, name, row.evaluation), miou / 100)


def comparisons(found: Sequence[Verdict]) -> str:
    """Return a sentence on how many claims were compared, and what a correction for so many of them leaves. What two
    tables compare alike counts once.
    """
    found = list({one.compared or id(one): one for one in found}.values())
    run = [one for one in found if one.word != NOT_RUN]
    tested = [one for one in run if one.p is not None]
    decided = [one.word in (HOLDS, REFUTED) for one in tested]
    kept = sum(map(all, zip(decided, holm([one.p for one in tested if one.p is not None]), strict=True)))
    counts = ", ".join(f"{sum(one.word == word for one in found)} {word}" for word in (HOLDS, REFUTED, UNDECIDED))
    text = f"{len(run)} comparisons: {counts}"
    if left := len(found) - len(run):
        text += f"; {left} {'claims need' if left > 1 else 'claim needs'} a row that was not run"
    text += f". {len(tested)} have several trainings; Holm's correction for so many leaves"
    return f"{text} {kept} of the {sum(decided)} decided."


def all_verdicts(results: Iterable[TableResult]) -> list[Verdict]:
    """Return the verdicts on the claims of all tables."""
    return list(chain.from_iterable(map(verdicts, results)))
