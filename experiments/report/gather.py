"""What the report is made of, read from the files that `experiments.run` leaves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError, did_you_mean
from experiments.runner.files import Unreadable, read_json
from experiments.runner.jobs import job_name
from experiments.runner.resolve import why_not
from experiments.runner.results import measure
from experiments.scales import SCALES, Scale
from experiments.tables import TABLES, Row, Table

NOT_YET = "not yet"


@dataclass(frozen=True)
class Training:
    """One training of a row.

    Attributes:
      name: of its run directory, and of the copy of its metrics.
      steps, batch: how long it was, and how many images a step saw.
      seconds: of the steps.
      commits: of the code that trained and evaluated.
      evaluating: seconds that the row's evaluation took.
    """

    name: str
    steps: int
    batch: int
    seconds: float
    commits: tuple[str, ...]
    evaluating: float = 0.0


@dataclass(frozen=True)
class RowResult:
    """A row and what came of it.

    Attributes:
      row: as the table has it.
      label: what it is, for a reader.
      values: by measure, one number per seed, in the units of `MEASURES`; empty where there is no result.
      missing: why there is no result, "" where there is one.
      training: key of the training that rows may share, whatever the seed; "" where there is none.
      trainings: by seed; none where the row is computed.
      left_out: trainings of seeds that other rows of the table, which share the training, lack.
      pretraining: the training whose backbone they start from; None where there is none.
      evaluation: key of the evaluation, "" where there is none.
      network: that was trained, in place of the paper's.
      notes: what sets the row apart from the paper's.
    """

    row: Row
    label: str
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    missing: str = ""
    training: str = ""
    trainings: tuple[Training, ...] = ()
    left_out: tuple[Training, ...] = ()
    pretraining: Training | None = None
    evaluation: str = ""
    network: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableResult:
    """A table at a scale.

    Attributes:
      table: as data.
      scale: name of the scale.
      folder: where the scale keeps its results.
      rows: all of the table's, in its order.
      seed_distance: the widest range over seeds of any row at this scale, in points of mIoU; None where no row has
        several seeds.
    """

    table: Table
    scale: str
    folder: Path
    rows: tuple[RowResult, ...]
    seed_distance: float | None = None

    @property
    def name(self) -> str:
        """`SCALE-TABLE`: names files and places of the page."""
        return f"{self.scale}-{self.table.name}"

    @property
    def printed(self) -> tuple[str, ...]:
        """The measures that the paper gives numbers for."""
        return tuple(name for name in self.table.measures if any(name in one.row.paper for one in self.rows))

    def trainings(self) -> dict[str, Training]:
        """Return the trainings of all rows by name; rows share them."""
        return {training.name: training for row in self.rows for training in row.trainings}

    def pretrainings(self) -> dict[str, Training]:
        """Return the trainings whose backbones they start from, by name."""
        return {row.pretraining.name: row.pretraining for row in self.rows if row.pretraining}


def read_tables(results: Path, scales: Sequence[str]) -> tuple[list[TableResult], list[str]]:
    """Read every table that has results.

    Args:
      results: folder of the results, as `experiments.run --out` has it.
      scales: names of scales; none means all that have results.

    Returns:
      The tables, and a line for every file that was left out.

    Raises:
      UserError: an unknown scale, or no results.
    """
    for name in scales:
        if name not in SCALES:
            raise UserError(f"--scale {name!r}: {did_you_mean(name, SCALES)}")
    tables: list[TableResult] = []
    remarks: list[str] = []
    for name in scales or SCALES:
        found = [_read_table(table, SCALES[name], results / name, remarks) for table in TABLES.values()]
        found = _pool_seeds(found)
        distance = _seed_distance(row for one in found for row in one.rows)
        found = [_pair_seeds(table) for table in found]
        of_scale = [one for one in found if any(not row.missing for row in one.rows)]
        if scales and not of_scale:
            raise UserError(f"{results / name}: no results there; python -m experiments.run TABLE --scale {name} first")
        remarks += _strange_files(results / name)
        tables += [replace(one, seed_distance=distance) for one in of_scale]
    if not tables:
        raise UserError(
            f"{results}: no results there; python -m experiments.run TABLE makes some, --results names them"
            + "".join(f" ({remark})" for remark in remarks[:1])
        )
    return tables, remarks


def label(table: Table, row: Row) -> str:
    """Return what a row is, for a reader: a column's name where its cell is ticked, else with its value."""
    words = []
    for column, cell in zip(table.columns, row.cells, strict=True):
        name = column.replace("_", " ")
        if cell is True:
            words.append(name)
        elif cell is not False:
            words.append(cell if isinstance(cell, str) else f"{name} {cell}")
    return ", ".join(words) or "plain"


def _read_table(table: Table, scale: Scale, folder: Path, remarks: list[str]) -> TableResult:
    rows = []
    for name, row in table.named_rows().items():
        file = folder / table.name / f"{name}.json"
        try:
            rows.append(_read_row(file, table, row, scale))
        except Unreadable as error:
            remarks.append(f"{file}: cannot be read as a result ({error}); left out")
            rows.append(RowResult(row, label(table, row), missing=NOT_YET))
    return TableResult(table, scale.name, folder, tuple(rows))


def _read_row(file: Path, table: Table, row: Row, scale: Scale) -> RowResult:
    about = label(table, row)
    reason = "" if row.compute else why_not(row, scale, scale.network(row.train["model.name"]))
    if reason:
        return RowResult(row, about, missing=f"not run here: {reason}")
    content = read_json(file, needs=("computed",) if row.compute else ("seeds", "training", "evaluation", "config"))
    if content is None:
        return RowResult(row, about, missing=NOT_YET)
    try:
        values = {name: measure(content, name) for name in table.measures}
        if row.compute:
            return RowResult(row, about, values)
        return RowResult(
            row,
            about,
            values,
            training=str(content["training"]),
            trainings=tuple(
                _training(
                    content["config"],
                    job_name(content["training"], entry["seed"]),
                    entry["seconds"]["training"],
                    entry["commits"],
                    entry["seconds"]["evaluation"],
                )
                for entry in content["seeds"]
            ),
            pretraining=_pretraining(content.get("pretraining")),
            evaluation=str(content["evaluation"]),
            network=_network(content["config"]["model"]),
            notes=tuple(map(str, content["notes"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{type(error).__name__} {error}") from None


def _pool_seeds(tables: Sequence[TableResult]) -> list[TableResult]:
    """Give each row the seeds of all rows that mean the same training and evaluation, in whichever table they stand."""
    found: dict[tuple[str, str, str], dict[str, tuple[Training, float]]] = {}
    for row in (row for table in tables for row in table.rows):
        for name, numbers in row.values.items():
            if len(numbers) == len(row.trainings):
                by_training = found.setdefault((row.training, row.evaluation, name), {})
                by_training |= {one.name: (one, number) for one, number in zip(row.trainings, numbers, strict=True)}

    def pooled(row: RowResult) -> RowResult:
        values, trainings = dict(row.values), row.trainings
        for name in row.values:
            by_training = found.get((row.training, row.evaluation, name), {})
            if len(by_training) > len(row.values[name]):
                in_order = [by_training[seed] for seed in sorted(by_training, key=lambda seed: (len(seed), seed))]
                values[name] = [number for _, number in in_order]
                trainings = tuple(one for one, _ in in_order)
        return replace(row, values=values, trainings=trainings)

    return [replace(table, rows=tuple(map(pooled, table.rows))) for table in tables]


def _pair_seeds(table: TableResult) -> TableResult:
    """Keep of rows that share a training the seeds that all of them have, so that they differ by no seed."""
    common: dict[str, set[str]] = {}
    for row in table.rows:
        names = {one.name for one in row.trainings}
        if names:
            common[row.training] = common.get(row.training, names) & names

    def paired(row: RowResult) -> RowResult:
        places = [place for place, one in enumerate(row.trainings) if one.name in common[row.training]]
        if not places:
            return row
        values = {
            name: [numbers[place] for place in places] if len(numbers) == len(row.trainings) else numbers
            for name, numbers in row.values.items()
        }
        kept = tuple(row.trainings[place] for place in places)
        left_out = tuple(one for one in row.trainings if one not in kept)
        return replace(row, values=values, trainings=kept, left_out=left_out)

    return replace(table, rows=tuple(map(paired, table.rows)))


def _network(model: Mapping[str, Any]) -> str:
    width = model["options"].get("width", 1)
    return f"{model['name']}{'' if width == 1 else f' of width {width:g}'}"


def _pretraining(about: Mapping[str, Any] | None) -> Training | None:
    if about is None:
        return None
    return _training(about["config"], str(about["name"]), about["seconds"], ())


def _training(
    config: Mapping[str, Any], name: str, seconds: Any, commits: Iterable[str], evaluating: Any = 0.0
) -> Training:
    steps, batch = (int(config["train"][key]) for key in ("steps", "batch_size"))
    return Training(name, steps, batch, float(seconds), tuple(commits), float(evaluating))


def _seed_distance(rows: Iterable[RowResult]) -> float | None:
    several = (values for row in rows if len(values := row.values.get("miou", ())) > 1)
    return max((max(values) - min(values) for values in several), default=None)


def _strange_files(folder: Path) -> list[str]:
    """Return a line for every file that belongs to no row of a table."""
    known = {folder / name / f"{row}.json" for name, table in TABLES.items() for row in table.named_rows()}
    return [
        f"{file}: no table has such a row; left out" for file in sorted(folder.glob("*/*.json")) if file not in known
    ]
