"""Reads the results of tables, as `experiments.run` keeps them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError
from experiments.outcomes.files import ROW, Records, Unreadable, checked, job_name, read_rows, read_trainings
from experiments.outcomes.measures import measure, multiply_adds
from experiments.regimes import REGIMES, Regime, find_regime
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
      backbone: mIoU, 0 to 1, of the network whose backbone it starts from; None where there is none or it is not known.
      values: its measures, in the units of `MEASURES`.
    """

    name: str
    steps: int
    batch: int
    seconds: float
    commits: tuple[str, ...]
    evaluating: float = 0.0
    seed: int = 0
    backbone: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """A row and its result.

    Attributes:
      row: the row of the table.
      label: the row in words.
      fixed: measures that no training changes, in the units of `MEASURES`.
      missing: the reason why there is no result, "" where there is one.
      training: key of the training, the same for all seeds; rows may share it; "" where there is none.
      trainings: the trainings, in the order of their seeds; none where the row is computed without a network.
      pretraining: the training whose backbone the trainings start from; None where there is none.
      evaluation: key of the evaluation, "" where there is none.
      network: the network that was trained instead of the paper's.
      notes: differences of the row from the paper's row.
    """

    row: Row
    label: str
    fixed: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""
    training: str = ""
    trainings: tuple[Training, ...] = ()
    pretraining: Training | None = None
    evaluation: str = ""
    network: str = ""
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, list[float]]:
        """The measures: a number for each training that has it, or a single one that no training changes."""
        found = {name: [value] for name, value in self.fixed.items()}
        for one in self.trainings:
            for name, value in one.values.items():
                found.setdefault(name, []).append(value)
        return found


@dataclass(frozen=True)
class TableResult:
    """A table in a regime.

    Attributes:
      table: the table.
      regime: name of the regime.
      rows: the results of the table's rows, in their order.
      folder: folder with the counts of each image.
      logged: logs of the trainings, by their names.
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


def read_tables(
    results: Path, regimes: Sequence[str], own: Sequence[Table] = ()
) -> tuple[list[TableResult], list[str]]:
    """Read every table that has results: those of the project, and the user's `own`.

    A table that is computed without a network is the same in all regimes. Only the first regime gets it. No `regimes`
    means all that have results.

    Returns:
      The tables, and a message for every file and every row that was left out.

    Raises:
      UserError: a regime is unknown, or there are no results.
    """
    tables: list[TableResult] = []
    remarks: list[str] = []
    for regime in [find_regime(name) for name in regimes] or REGIMES.values():
        folder = results / regime.name
        found = [_read_table(table, regime, folder, remarks) for table in (*TABLES.values(), *own)]
        if not any(row.trainings for one in found for row in one.rows):
            if regimes:
                raise UserError(f"{folder}: no results there; {regime.command('TABLE')} first")
            continue
        known = {one.table.name for one in tables if one.computed}
        tables += [
            one
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
    names, own = table.named_rows(), folder / table.name
    remarks += [f"{file}: no table has a row {name!r:.100}; left out" for name in rows if name not in names]
    found = table_result(table, regime, rows, remarks, where=file)
    return replace(found, folder=own, logged=_read_trainings(own, remarks) if rows else {})


def _read_trainings(folder: Path, remarks: list[str]) -> dict[str, Records]:
    try:
        return read_trainings(folder)
    except Unreadable as error:
        remarks.append(f"{folder}: the logs of its trainings cannot be read ({error}); left out")
        return {}


def table_result(
    table: Table, regime: Regime, contents: Mapping[str, Any], remarks: list[str], *, where: object = ""
) -> TableResult:
    """Return a table with the results of its rows; `contents` has them by name, not yet checked.

    The function adds a message to `remarks` for every row that cannot be read. The message names the source `where`.
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
        return RowResult(row, about, row.compute())
    if name not in contents:
        return RowResult(row, about, missing=NOT_YET)
    content = checked(contents[name], (*ROW, "config"))
    config, before = content["config"], content.get("pretraining")
    try:
        trainings = []
        for entry in content["seeds"]:
            seconds = entry["seconds"]
            values = {one: value for one in measures if (value := measure(entry, one)) is not None}
            known = {"evaluating": float(seconds["evaluation"]), "seed": entry["seed"], "values": values}
            known["backbone"] = entry.get("backbone")
            training = job_name(content["training"], entry["seed"])
            trainings.append(_training(config, training, seconds["training"], entry["commits"], **known))
        return RowResult(
            row,
            about,
            {"multiply_adds": multiply_adds(content)} if "multiply_adds" in measures else {},
            training=content["training"],
            trainings=tuple(trainings),
            pretraining=_training(before["config"], before["name"], before["seconds"]) if before else None,
            evaluation=content["evaluation"],
            network=_network(config["model"]),
            notes=tuple(map(str, content["notes"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{type(error).__name__} {error}") from None


def _network(model: Mapping[str, Any]) -> str:
    width = model["options"].get("width", 1)
    return f"{model['name']}{'' if width == 1 else f' of width {width:g}'}"


def _training(
    config: Mapping[str, Any], name: str, seconds: float, commits: Iterable[str] = (), **known: Any
) -> Training:
    steps, batch = (int(config["train"][key]) for key in ("steps", "batch_size"))
    return Training(name, steps, batch, float(seconds), tuple(commits), **known)
