"""Reads the results of `experiments.run` for the report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError, did_you_mean
from experiments.regimes import REGIMES, Regime
from experiments.run.files import Records, Unreadable, checked, read_rows, read_trainings
from experiments.run.plan import job_name
from experiments.run.results import ROW, measure
from experiments.tables import TABLES, Row, Table

NOT_YET = "not yet"


@dataclass(frozen=True)
class Training:
    """One training of a row.

    Attributes:
      name: name of its run directory, and of its log.
      steps, batch: number of steps, and of images in a step.
      seconds: time of the steps.
      commits: commits of the code that trained and evaluated.
      evaluating: seconds of the row's evaluation.
      seed: seed of the training.
    """

    name: str
    steps: int
    batch: int
    seconds: float
    commits: tuple[str, ...]
    evaluating: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class RowResult:
    """A row and its result.

    Attributes:
      row: the row of the table.
      label: the row in words.
      values: for each measure one number per seed, in the units of `MEASURES`; empty where there is no result.
      missing: the reason why there is no result, "" where there is one.
      training: key of the training, the same for all seeds; rows may share it; "" where there is none.
      trainings: the trainings, in the order of their seeds; none where the row is computed without a network.
      left_out: further trainings, with seeds that another row of the table with the same training key lacks.
      pretraining: the training whose backbone the trainings start from; None where there is none.
      evaluation: key of the evaluation, "" where there is none.
      network: the network that was trained instead of the paper's.
      notes: differences of the row from the paper's row.
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
    """A table in a regime.

    Attributes:
      table: the table.
      regime: name of the regime.
      rows: the results of the table's rows, in their order.
      folder: folder of the regime's results, which has the counts of each image.
      logged: logs of the regime's trainings, by their names.
    """

    table: Table
    regime: str
    rows: tuple[RowResult, ...]
    folder: Path = Path()
    logged: Mapping[str, Records] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`REGIME-TABLE`, the name of its files and of its section of the page."""
        return f"{self.regime}-{self.table.name}"

    @property
    def computed(self) -> bool:
        """Whether all rows are computed without a network."""
        return all(one.row.compute is not None for one in self.rows)

    @property
    def printed(self) -> tuple[str, ...]:
        """The measures for which the paper has numbers."""
        return tuple(name for name in self.table.measures if any(name in one.row.paper for one in self.rows))

    def trainings(self) -> dict[str, Training]:
        """Return the trainings of all rows, by name. Rows may share them."""
        return {training.name: training for row in self.rows for training in row.trainings}

    def pretrainings(self) -> dict[str, Training]:
        """Return the trainings whose backbones those of the rows start from, by name."""
        return {row.pretraining.name: row.pretraining for row in self.rows if row.pretraining}


def read_tables(results: Path, regimes: Sequence[str]) -> tuple[list[TableResult], list[str]]:
    """Read every table that has results.

    A table that is computed without a network is the same in all regimes. Only the first regime gets it.

    Args:
      results: folder of the results.
      regimes: names of the regimes; none: all that have results.

    Returns:
      The tables, and a message for every file and every row that was left out.

    Raises:
      UserError: a regime is unknown, or there are no results.
    """
    for name in regimes:
        if name not in REGIMES:
            raise UserError(f"--regime {name!r}: {did_you_mean(name, REGIMES)}")
    tables: list[TableResult] = []
    remarks: list[str] = []
    for name in regimes or REGIMES:
        found = _pool_seeds([_read_table(table, REGIMES[name], results / name, remarks) for table in TABLES.values()])
        if not any(row.trainings for one in found for row in one.rows):
            if regimes:
                raise UserError(
                    f"{results / name}: no results there; python -m experiments.run TABLE --regime {name} first"
                )
            continue
        logged = _read_trainings(results / name, remarks)
        known = {one.table.name for one in tables if one.computed}
        tables += [
            replace(_pair_seeds(one), folder=results / name, logged=logged)
            for one in found
            if any(row.trainings for row in one.rows) or (one.computed and one.table.name not in known)
        ]
    if not tables:
        raise UserError(
            f"{results}: no results there; python -m experiments.run TABLE makes some, --results names them"
            + "".join(f" ({remark})" for remark in remarks[:1])
        )
    return tables, remarks


def _read_table(table: Table, regime: Regime, folder: Path, remarks: list[str]) -> TableResult:
    file = folder / f"{table.name}.json"
    try:
        rows = read_rows(folder, table.name)
    except Unreadable as error:
        remarks.append(f"{file}: cannot be read as a result ({error}); left out")
        rows = {}
    names = table.named_rows()
    remarks += [f"{file}: no table has a row {name!r:.100}; left out" for name in rows if name not in names]
    return table_result(table, regime, rows, remarks, where=file)


def _read_trainings(folder: Path, remarks: list[str]) -> dict[str, Records]:
    try:
        return read_trainings(folder)
    except Unreadable as error:
        remarks.append(f"{folder}: the logs of its trainings cannot be read ({error}); left out")
        return {}


def table_result(
    table: Table, regime: Regime, contents: Mapping[str, Any], remarks: list[str], *, where: object = ""
) -> TableResult:
    """Return a table with the results of its rows.

    Args:
      table: the table.
      regime: the regime in which it was run.
      contents: results of its rows by name, not yet checked.
      remarks: a list; the function adds a message for every row that cannot be read.
      where: source of the contents, for these messages.
    """
    rows = []
    for name, row in table.named_rows().items():
        about = ", ".join(table.words(row))
        try:
            rows.append(_row_result(name, row, about, regime, contents, table.measures))
        except Unreadable as error:
            remarks.append(f"{where}: cannot be read as a result (row {name}: {error}); left out")
            rows.append(RowResult(row, about, missing=NOT_YET))
    return TableResult(table, regime.name, tuple(rows))


def _row_result(
    name: str, row: Row, about: str, regime: Regime, contents: Mapping[str, Any], measures: Sequence[str]
) -> RowResult:
    if reason := regime.why_not(row):
        return RowResult(row, about, missing=f"not run here: {reason}")
    if row.compute is not None:
        return RowResult(row, about, {name: (value,) for name, value in row.compute().items()})
    if name not in contents:
        return RowResult(row, about, missing=NOT_YET)
    content = checked(contents[name], (*ROW, "config"))
    try:
        return RowResult(
            row,
            about,
            {name: measure(content, name) for name in measures},
            training=content["training"],
            trainings=tuple(
                _training(
                    content["config"],
                    job_name(content["training"], entry["seed"]),
                    entry["seconds"]["training"],
                    entry["commits"],
                    entry["seconds"]["evaluation"],
                    entry["seed"],
                )
                for entry in content["seeds"]
            ),
            pretraining=_pretraining(content.get("pretraining")),
            evaluation=content["evaluation"],
            network=_network(content["config"]["model"]),
            notes=tuple(map(str, content["notes"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{type(error).__name__} {error}") from None


def _pool_seeds(tables: Sequence[TableResult]) -> list[TableResult]:
    """Give each row the seeds of all rows with the same training and evaluation, in all tables."""
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
    """Keep only the seeds that all rows with the same training have, so that these rows are compared over the same
    seeds.
    """
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
    config: Mapping[str, Any], name: str, seconds: Any, commits: Iterable[str], evaluating: Any = 0.0, seed: int = 0
) -> Training:
    steps, batch = (int(config["train"][key]) for key in ("steps", "batch_size"))
    return Training(name, steps, batch, float(seconds), tuple(commits), float(evaluating), seed)
