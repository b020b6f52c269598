"""Keeps the results of a table in `OUT/REGIME/TABLE.json`, and what belongs to them in the folder `OUT/REGIME/TABLE`.

A table's file holds for each row the paper's values, the keys, the configuration and the protocol. For every seed it
holds the metrics, the commit, the versions, the seconds, and the mIoU of the network that the backbone comes from. A
row in this file is not run again, even where its run directory is gone. The folder has the logs of the trainings
(`trainings.json`) and the counts of each image (`experiments.outcomes.per_image`). Tables share no files: the same
training differs from machine to machine, and tables may come from different ones.

A runner locks OUT, so only one at a time writes there. Jobs write into their run directories only.
"""

import filecmp
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ml_collections import ConfigDict

from deeplab_jax.analysis import cost
from deeplab_jax.config import to_plain
from deeplab_jax.errors import UserError
from deeplab_jax.files import save_json, write_whole
from deeplab_jax.models.catalog import from_description
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.train.record import RECORD_FILE, records
from experiments.outcomes.files import (
    ROW,
    TRAININGS,
    Content,
    Records,
    Unreadable,
    checked,
    job_name,
    read_json,
    read_rows,
    read_trainings,
    state_of,
    training_seconds,
)
from experiments.outcomes.per_image import counts_file, read_counts
from experiments.run.plan import Asked, evaluation_counts, evaluation_file, start_file, weights_name
from experiments.run.resolve import Resolved

# What a run directory's file of an evaluation has to hold.
EVALUATION = ("miou", "commits", "seconds")


@dataclass
class Store:
    """The results of one regime.

    Attributes:
      out: folder of the tables.
      runs: folder of the run directories.
      commit: of the code as it is now.
      again: results of other commits and other configurations do not count.
      strange: messages about rows with a result of another configuration; a dictionary, so that each is there once.
      kept: names of the rows with results of another commit.

    Raises:
      UserError: a file of results, which one of the methods reads, is damaged.
    """

    out: Path
    runs: Path
    commit: str
    again: bool = False
    strange: dict[str, None] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    _read_logs: dict[Path, dict[str, Records]] = field(default_factory=dict)

    def file(self, one: Asked) -> Path:
        """Return the file of a row's table."""
        return self.out / f"{one.table.name}.json"

    def folder(self, one: Asked) -> Path:
        """Return the folder with the logs and counts of a row's table."""
        return self.out / one.table.name

    def entries(self, one: Asked) -> dict[int, Content]:
        """Return a row's results by seed, from its table's file and from run directories."""
        content = self._read(one)
        found = {entry["seed"]: entry for entry in content["seeds"]} if content else {}
        for seed in one.seeds:
            if seed not in found or not self._counts(found[seed]):
                fresh = self._from_run(one, seed)
                if fresh is not None:
                    found[seed] = fresh
        counting = {seed: entry for seed, entry in sorted(found.items()) if self._counts(entry)}
        if any(set(entry["commits"]) != {self.commit} for entry in counting.values()):
            self.kept.add(one.name)
        return counting

    def all_rows(self) -> Iterator[Content]:
        """Yield the rows in the files of all tables, asked for or not. What is damaged is left out."""
        for table in sorted(file.stem for file in self.out.glob("*.json")):
            with suppress(Unreadable):
                for content in read_rows(self.out, table).values():
                    with suppress(Unreadable):
                        yield checked(content, (*ROW, "config"))

    def missing(self, one: Asked) -> list[int]:
        """Return the seeds that a row still needs."""
        if not isinstance(one.resolved, Resolved):
            return []
        found = self.entries(one)
        return [seed for seed in one.seeds if seed not in found]

    def collect(self, one: Asked) -> Content | None:
        """Write a row where it has new results, and return its content, None where it has no results yet.

        New results replace old ones only when they have every seed that was asked for and that the file already had. A
        run directory may hold another training of the same key, as on another machine. So logs and counts of a result
        that stays are not replaced by what does not belong to it.
        """
        if not isinstance(one.resolved, Resolved):
            return None
        rows, name = self._rows(one), one.table.row_name(one.row)
        old, entries = self._read(one), self.entries(one)
        in_file = {entry["seed"] for entry in rows[name]["seeds"]} if name in rows else set()
        if not entries or not in_file & set(one.seeds) <= set(entries):
            return old
        held = {entry["seed"]: entry for entry in old["seeds"]} if old is not None else {}
        fresh = [seed for seed, entry in entries.items() if held.get(seed) != entry]
        entries = held | entries
        first = next(iter(entries.values()))
        folder, (training, evaluation) = self.folder(one), one.resolved.keys
        for seed in fresh:
            self._keep_log(folder, job_name(training, seed), one.resolved.config)
        for seed, entry in entries.items():
            self._keep_counts(folder, job_name(training, seed), evaluation, entry["miou"])
        content = {
            "row": name,
            "cells": dict(zip(one.table.columns, one.row.cells, strict=True)),
            "paper": dict(one.row.paper),
            "training": training,
            "evaluation": evaluation,
            "notes": list(one.resolved.notes),
            **({"multiply_adds": self._multiply_adds(old, first)} if "multiply_adds" in one.table.measures else {}),
            "protocol": first["protocol"],
            "config": to_plain(one.resolved.config),
            **self._pretraining(folder, one.resolved.pretraining, fresh=bool(fresh)),
            "seeds": [entries[seed] for seed in sorted(entries)],
        }
        if rows.get(name) != content:
            rows[name] = content
            about = {"table": one.table.name, "title": one.table.title, "source": one.table.source}
            in_order = {row: rows[row] for row in one.table.named_rows() if row in rows}
            save_json(self.file(one), {**about, "measures": list(one.table.measures), "rows": in_order | rows})
        return content

    def _rows(self, one: Asked) -> Content:
        """Return all rows in the file of a row's table; this row is checked."""
        name = one.table.row_name(one.row)
        try:
            rows = read_rows(self.out, one.table.name)
            if name in rows:
                checked(rows[name], ("row", *ROW))
        except Unreadable as error:
            raise _damaged(self.file(one), f"row {name}: {error}") from None
        return rows

    def _read(self, one: Asked) -> Content | None:
        """Return a row of the table's file, None where the file has no result of this configuration."""
        assert isinstance(one.resolved, Resolved)
        name = one.table.row_name(one.row)
        content: Content | None = self._rows(one).get(name)
        if content is None:
            return None
        held, wanted = (content["training"], content["evaluation"]), one.resolved.keys
        if held != wanted:
            about = f"row {name} of {self.file(one)} holds a result of another configuration"
            self.strange[f"{about} ({'/'.join(held)}, now {'/'.join(wanted)})"] = None
            return None
        return content

    def _counts(self, entry: Content) -> bool:
        return not (self.again and set(entry["commits"]) != {self.commit})

    def _from_run(self, one: Asked, seed: int) -> Content | None:
        assert isinstance(one.resolved, Resolved)
        workdir = self.runs / job_name(one.resolved.training_key, seed)
        try:
            found = read_json(evaluation_file(workdir, one.resolved.evaluation_key), needs=EVALUATION)
        except Unreadable:  # The job reports it, and evaluates again.
            return None
        if found is None:
            return None
        training = training_seconds(records(workdir / RECORD_FILE), one.resolved.config.train.batch_size)
        seconds = {"training": training, "evaluation": found["seconds"]}
        entry = {"seed": seed, **{key: value for key, value in found.items() if key != "seconds"}, "seconds": seconds}
        if one.resolved.pretraining is not None:
            with suppress(Unreadable):
                entry["backbone"] = (read_json(start_file(workdir), needs=("backbone",)) or {}).get("backbone")
        return entry

    def _multiply_adds(self, old: Content | None, first: Content) -> dict[str, int]:
        """Return the old count where it is of the same protocol, since a count takes seconds; else count."""
        kept: dict[str, int] | None = old.get("multiply_adds") if old is not None and not self.again else None
        return kept if kept and old and old.get("protocol") == first["protocol"] else _multiply_adds(first)

    def _pretraining(self, folder: Path, config: ConfigDict | None, *, fresh: bool) -> Content:
        """Return a row's entry on the training whose backbone it starts from; `fresh`: the row has new results."""
        if config is None:
            return {}
        name = weights_name(config)
        if fresh and (self.again or name not in self._logs(folder)):
            self._keep_log(folder, name, config)
        seconds = training_seconds(self._logs(folder).get(name, []), config.train.batch_size)
        return {"pretraining": {"name": name, "seconds": seconds, "config": to_plain(config)}}

    def _keep_counts(self, folder: Path, name: str, evaluation: str, miou: float | None) -> None:
        """Copy the counts of an evaluation on every image, where the run directory still has those of this mIoU."""
        found = evaluation_counts(self.runs / name, evaluation)
        kept = counts_file(folder, name, evaluation)
        if not found.is_file() or (kept.is_file() and filecmp.cmp(found, kept, shallow=False)):
            return
        if miou is not None and read_counts(found, miou) is not None:
            write_whole(kept, lambda fresh: shutil.copyfile(found, fresh))

    def _keep_log(self, folder: Path, name: str, config: ConfigDict) -> None:
        """Copy the log of a finished training to its table's folder, where it outlives the run directory."""
        kept = self._logs(folder)
        found = records(self.runs / name / RECORD_FILE)
        if state_of(found)[0] >= config.train.steps and kept.get(name) != found:
            kept[name] = found
            save_json(folder / f"{TRAININGS}.json", dict(sorted(kept.items())))

    def _logs(self, folder: Path) -> dict[str, Records]:
        if folder not in self._read_logs:
            try:
                self._read_logs[folder] = read_trainings(folder)
            except Unreadable as error:
                raise _damaged(folder / f"{TRAININGS}.json", str(error)) from None
        return self._read_logs[folder]


def _damaged(file: Path, why: str) -> UserError:
    return UserError(
        f"{file}: cannot be read as a result ({why}); repair it, or move it away: what its run directories still have "
        "is not run again"
    )


def refuse_strange(store: Store) -> None:
    """Raise a UserError where a row has a result of another configuration, and the user gave no --again."""
    if store.strange and not store.again:
        more = f", and {len(store.strange) - 1} rows more do so" if len(store.strange) > 1 else ""
        raise UserError(
            f"{next(iter(store.strange))}{more}; give another --out, or --again to replace it when the new one is there"
        )


def _multiply_adds(entry: Content) -> dict[str, int]:
    """Return the count in the papers' way and the exact count, for all views of an image of the largest size that was
    run.
    """
    protocol = entry["protocol"]
    model = json.dumps(entry["model"], sort_keys=True)
    return _count(model, *max(protocol["sizes_run"], key=math.prod), tuple(protocol["scales"]), protocol["flip"])


@cache
def _count(description: str, height: int, width: int, scales: tuple[float, ...], flip: bool) -> dict[str, int]:
    model = from_description(json.loads(description))
    ways: tuple[cost.Counting, ...] = ("space_to_batch", "exact")
    return {way: multi_view_multiply_adds(model, height, width, scales=scales, flip=flip, counting=way) for way in ways}


def multi_view_multiply_adds(
    model: Segmenter,
    height: int,
    width: int,
    *,
    scales: Sequence[float],
    flip: bool = False,
    counting: cost.Counting = "exact",
) -> int:
    """Return the multiply-adds of averaging over scales, and over the mirrored image with `flip`.

    A side of n pixels has `(n - 1) * scale + 1` at a scale, as in the authors' evaluation (513 -> 257 at 0.5), and at
    least 33, as in `segment`.
    """
    sizes = [[max(SMALLEST_SIDE, scaled_side(side, scale)) for side in (height, width)] for scale in scales]
    return (2 if flip else 1) * sum(cost.multiply_adds(model, *size, counting=counting).total for size in sizes)
