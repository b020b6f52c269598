"""Makes jobs from the rows that were asked for.

A job is a training with one seed, and the evaluations that rows need of it. Several rows may share a job.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.outcomes.files import job_name
from experiments.regimes import Regime
from experiments.run.resolve import NotRun, Resolved, Settings, key_of, resolve
from experiments.tables import Row, Table


@dataclass(frozen=True)
class Asked:
    """A row that was asked for.

    Attributes:
      table: the row's table.
      row: the row.
      resolved: the row in its regime; None where it is computed without a network.
      seeds: the seeds of its trainings.
    """

    table: Table
    row: Row
    resolved: Resolved | NotRun | None
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """`TABLE/ROW`."""
        return f"{self.table.name}/{self.table.row_name(self.row)}"


@dataclass
class Job:
    """One training and its evaluations.

    Attributes:
      key: hash of the training, see `Resolved.training_key`.
      seed: seed of the training.
      config: configuration of the training.
      evaluations: the sections `evaluate`, by their keys.
      serves: names of the rows that need this job.
      pretraining: configuration of the training whose backbone this one starts from; None where there is none.
    """

    key: str
    seed: int
    config: ConfigDict
    evaluations: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    serves: list[str] = field(default_factory=list)
    pretraining: ConfigDict | None = None

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return job_name(self.key, self.seed)

    @property
    def network(self) -> str:
        """The model and its output stride in training, as a text."""
        return f"{self.config.model.name}, output stride {self.config.model.output_stride}"


def weights_name(pretraining: ConfigDict) -> str:
    """Return the name of the run directory of a training whose backbone others start from."""
    return f"{key_of(pretraining)}_weights"


def start_file(workdir: Path) -> Path:
    """Return the file beside a run directory with the `backbone` that the run started from: the mIoU of its network."""
    return workdir.with_name(f"{workdir.name}.start.json")


def evaluation_file(workdir: Path, key: str) -> Path:
    """Return the file of an evaluation in a run directory."""
    return workdir / "evaluations" / f"{key}.json"


def evaluation_counts(workdir: Path, key: str) -> Path:
    """Return the file in a run directory with the counts of an evaluation on every image."""
    return evaluation_file(workdir, key).with_suffix(".npz")


def ask(tables: Sequence[Table], names: Iterable[str], regime: Regime, settings: Settings, seeds: int) -> list[Asked]:
    """Return the rows of tables, resolved: those with these names, or all, with `seeds` trainings or (0) the regime's
    number.
    """
    chosen = set(names)
    asked = []
    for table in tables:
        rows = [row for name, row in table.named_rows().items() if not chosen or name in chosen]
        resolved = [None if row.compute else resolve(row, table, regime, settings) for row in rows]
        # Rows that share a training get the same seeds: the report compares such rows over the seeds that all have.
        counts: dict[str, int] = {}
        for row, one in zip(rows, resolved, strict=True):
            if isinstance(one, Resolved):
                count = seeds or regime.trainings(table, row)
                counts[one.training_key] = max(count, counts.get(one.training_key, 0))
        for row, one in zip(rows, resolved, strict=True):
            count = counts[one.training_key] if isinstance(one, Resolved) else 1
            asked.append(Asked(table, row, one, tuple(range(count))))
    return asked


def make_jobs(asked: Iterable[Asked]) -> list[Job]:
    """Return the jobs of the rows. The first seeds of all trainings come first, so that whole tables end early."""
    jobs: dict[str, Job] = {}
    for one in asked:
        if not isinstance(one.resolved, Resolved):
            continue
        for seed in one.seeds:
            key = one.resolved.training_key
            job = jobs.setdefault(
                job_name(key, seed), Job(key, seed, one.resolved.seeded(seed), pretraining=one.resolved.pretraining)
            )
            job.evaluations[one.resolved.evaluation_key] = one.resolved.evaluation
            job.serves.append(one.name)
    return sorted(jobs.values(), key=lambda job: job.seed)
