"""The jobs that the asked tables take, and the rows that share them.

A job is one training with one seed, and all evaluations that are asked of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.regimes import Regime
from experiments.run.resolve import NotRun, Resolved, Settings, key_of, resolve
from experiments.tables import Row, Table


@dataclass(frozen=True)
class Asked:
    """A row that was asked for.

    Attributes:
      resolved: what it means in the regime; None where it is computed without a network.
      seeds: of its trainings.
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
      seed: of the training.
      config: its configuration.
      evaluations: the sections `evaluate` by their key.
      serves: names of rows.
      pretraining: of the training whose backbone it starts from; None: of none.
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
        """The model and what it is trained at, for a reader."""
        return f"{self.config.model.name}, output stride {self.config.model.output_stride}"


def job_name(key: str, seed: int) -> str:
    """Return the name of a training: that of its run directory, too."""
    return f"{key}_seed{seed}"


def weights_name(pretraining: ConfigDict) -> str:
    """Return the name of the run directory of a training whose backbone others start from."""
    return f"{key_of(pretraining)}_weights"


def evaluation_file(workdir: Path, key: str) -> Path:
    """Return where a run directory keeps an evaluation."""
    return workdir / "evaluations" / f"{key}.json"


def evaluation_counts(workdir: Path, key: str) -> Path:
    """Return where a run directory keeps what the evaluation counted on every image."""
    return evaluation_file(workdir, key).with_suffix(".npz")


def ask(tables: Sequence[Table], names: Iterable[str], regime: Regime, settings: Settings, seeds: int) -> list[Asked]:
    """Resolve the rows of tables.

    Args:
      tables: those asked for.
      names: of the rows asked for; none means all.
      regime: where they run.
      settings: what the user gave.
      seeds: trainings of each row; 0: the regime's own number.
    """
    chosen = set(names)
    asked = []
    for table in tables:
        rows = [row for name, row in table.named_rows().items() if not chosen or name in chosen]
        resolved = [None if row.compute else resolve(row, table, regime, settings) for row in rows]
        # Rows that share trainings have all of them: the report compares such rows over the seeds that all have.
        counts: dict[str, int] = {}
        for row, one in zip(rows, resolved, strict=True):
            if isinstance(one, Resolved):
                own = seeds or regime.trainings(table, row)
                counts[one.training_key] = max(own, counts.get(one.training_key, 0))
        for row, one in zip(rows, resolved, strict=True):
            count = counts[one.training_key] if isinstance(one, Resolved) else 1
            asked.append(Asked(table, row, one, tuple(range(count))))
    return asked


def make_jobs(asked: Iterable[Asked]) -> list[Job]:
    """Gather rows into jobs. The first seed of every training comes before the second, so that whole tables come
    early.
    """
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
