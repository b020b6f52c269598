"""The cells of tables and claims, for Markdown and HTML.

A table has the paper's columns, then for each measure the paper's number, ours and the spread; in the regime `paper`
their difference as well. A claim has the paper's difference, ours, its interval and the verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from deeplab_jax.provenance import short
from experiments.outcomes.gather import RowResult, TableResult, Training
from experiments.outcomes.verdicts import Verdict
from experiments.tables.table import MEASURES, Cell


@dataclass(frozen=True)
class Shown:
    """A cell: its text, the number that sorts it, None where the text sorts it, and what the page shows under the
    pointer.
    """

    text: str
    number: float | None = None
    hint: str = ""


EMPTY = Shown("")


def headings(result: TableResult) -> list[str]:
    """Return the headings of all columns."""
    found = [column.replace("_", " ") for column in result.table.columns]
    for name in result.table.measures:
        title = MEASURES[name]
        found += [f"{title}: paper", "ours"] if name in result.printed else [title]
        found += ["difference"] if _compares(result, name) else []
        found += ["spread"] if _has_spread(result, name) else []
    return found


def cells(result: TableResult, one: RowResult) -> list[Shown]:
    """Return a row's cells, in the order of `headings`. In a row without a result, the reason takes the place of the
    first number.
    """
    found = [_cell(cell) for cell in one.row.cells]
    said = False
    for name in result.table.measures:
        paper, values = one.row.paper.get(name), one.values.get(name, ())
        ours = _number(mean(values)) if values else EMPTY if said else Shown(one.missing or "none")
        said = True
        found += [_number(paper), ours] if name in result.printed else [ours]
        if _compares(result, name):
            found.append(_number(mean(values) - paper if values and paper is not None else None, sign="+"))
        if _has_spread(result, name):
            found.append(_spread(values))
    return found


VERDICT_HEADINGS = ("the paper says", "verdict", "after Holm", "paper", "ours", "95% interval", "trainings")


def verdict_cells(one: Verdict) -> list[Shown]:
    """Return a claim's cells, in the order of `VERDICT_HEADINGS`."""
    return [
        Shown(one.claim.says),
        Shown(one.word),
        Shown(one.after_holm if one.differences else ""),
        _number(one.paper, sign="+"),
        _number(one.ours, sign="+"),
        _interval(one),
        Shown(str(len(one.differences)), len(one.differences)) if one.differences else EMPTY,
    ]


def provenance(result: TableResult) -> list[str]:
    """Return sentences on the trainings, and on the differences of the rows from the paper's."""
    lines = []
    trainings, pretrainings = list(result.trainings().values()), list(result.pretrainings().values())
    if trainings:
        commits = dict.fromkeys(short(commit) for training in trainings for commit in training.commits)
        longest = max(one.seconds for one in trainings)
        lines.append(f"{_effort(trainings)}, the longest {longest:.0f} s; commit {', '.join(commits)}.")
    if pretrainings:
        backbones = sorted({one.backbone for one in trainings if one.backbone is not None})
        reached = f"; mIoU {', '.join(f'{100 * one:.2f}' for one in backbones)}" if backbones else ""
        lines.append(f"Before them {_effort(pretrainings)} for the backbones{reached}.")
    if found := networks(result):
        lines.append(f"Networks here: {', '.join(found)}.")
    lines += dict.fromkeys(f"{note[:1].upper()}{note[1:]}." for row in result.rows for note in row.notes)
    return lines


def networks(result: TableResult) -> list[str]:
    """Return the networks that were trained in place of the paper's."""
    return list(dict.fromkeys(row.network for row in result.rows if row.network))


def _compares(result: TableResult, name: str) -> bool:
    """Return whether the table shows the difference from the paper's number: only where data and networks are the
    paper's.
    """
    return name in result.printed and result.regime == "paper"


def cost(results: Sequence[TableResult]) -> str:
    """Return the number and the time of all trainings and evaluations of a regime. Each counts once, and trainings of
    backbones count too. Tables from two machines hold different trainings of one name; their times tell them apart.
    """
    trainings: dict[tuple[str, float], Training] = {}
    evaluations: dict[tuple[str, float, str], float] = {}
    for result in results:
        trainings |= {(one.name, one.seconds): one for one in result.pretrainings().values()}
        for row in result.rows:
            for one in row.trainings:
                trainings[one.name, one.seconds] = one
                evaluations[one.name, one.seconds, row.evaluation] = one.evaluating
    training = hours(sum(one.seconds for one in trainings.values()))
    return f"{len(trainings)} trainings, {training}; {len(evaluations)} evaluations, {hours(sum(evaluations.values()))}"


def _has_spread(result: TableResult, name: str) -> bool:
    """Return whether the table shows the spread over seeds: where seeds can change the measure, and where the paper has
    a number or a row has several seeds.
    """
    if name == "multiply_adds" or not any(row.trainings for row in result.rows):
        return False
    return name in result.printed or any(len(row.values.get(name, ())) > 1 for row in result.rows)


def _cell(cell: Cell) -> Shown:
    if isinstance(cell, bool):
        return Shown("yes" if cell else "", float(cell))
    return Shown(str(cell), None if isinstance(cell, str) else float(cell))


def _number(value: float | None, *, sign: str = "") -> Shown:
    return EMPTY if value is None else Shown(f"{value:{sign}.2f}", value)


def _spread(values: Sequence[float]) -> Shown:
    if len(values) < 2:
        return Shown("one seed" if values else "")
    low, high = min(values), max(values)
    return Shown(f"{low:.2f} to {high:.2f}, {len(values)} seeds", high - low)


def _interval(one: Verdict) -> Shown:
    if one.seeds is None or one.interval is None:
        return EMPTY
    low, high = one.interval
    text = f"{low:+.2f} to {high:+.2f}"
    hint = f"Standard error over {len(one.differences)} trainings (t): {one.seeds.size:.2f}"
    if one.images is None:
        return Shown(f"{text}, trainings only", low, f"{hint}; over images: not known")
    return Shown(text, low, f"{hint}; over {one.images.freedom + 1:.0f} images (bootstrap): {one.images.size:.2f}")


def _effort(trainings: Sequence[Training]) -> str:
    count = f"{len(trainings)} training{'s' * (len(trainings) != 1)}"
    steps, images = _range([one.steps for one in trainings]), _range([one.batch for one in trainings])
    total = hours(sum(one.seconds for one in trainings))
    return f"{count} of {steps} steps of {images} images: {total} in all"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def hours(seconds: float | None) -> str:
    """Return a time in words."""
    if seconds is None:
        return "unknown"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
