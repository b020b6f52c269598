"""What a row leaves behind: `OUT/SCALE/TABLE/ROW.json`, and `OUT/SCALE/trainings/KEY_seedN.jsonl`.

A row's file holds its cells, the paper's values, the keys and the configuration, and for every seed the metrics, the
commit, the versions and the seconds. It is enough by itself: a row whose file is there is not run again, even where the
run directory is gone.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.analysis.cost import Counting, multi_view_multiply_adds
from deeplab_jax.config import to_plain
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from deeplab_jax.models.catalog import from_description
from deeplab_jax.train.writers import METRICS_FILE
from experiments.runner.files import Unreadable, read_json, write_json
from experiments.runner.jobs import Asked, evaluation_file, job_name, weights_name
from experiments.runner.progress import state_of, training_seconds
from experiments.runner.resolve import NotRun, Resolved
from experiments.runner.worker import NEEDED

RESULTS = "experiments/results/tables"  # unless the user names another folder

Content = dict[str, Any]
BILLION = 1e9


@dataclass
class Store:
    """The results of one scale.

    Attributes:
      out: folder of the tables.
      runs: folder of the run directories.
      commit: of the code as it is now.
      again: results of other commits and other configurations count for nothing.
      remarks: what the user should know about the files that were read, each line once.
      strange: files that hold a result of another configuration.
      kept: rows with results of another commit.
    """

    out: Path
    runs: Path
    commit: str
    again: bool = False
    remarks: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    _unreadable: set[Path] = field(default_factory=set)

    def file(self, one: Asked) -> Path:
        """Return where a row is kept."""
        return self.out / f"{one.name}.json"

    def read(self, one: Asked) -> Content | None:
        """Return what a row's file holds, as far as it counts."""
        file = self.file(one)
        try:
            content = read_json(file, needs=("row", "seeds", "training", "evaluation"))
        except Unreadable as error:
            self._remark(f"{file}: cannot be read as a result ({error}); the row runs again")
            self._unreadable.add(file)
            return None
        if content is None or not isinstance(one.resolved, Resolved):
            return content
        if content["training"] != one.resolved.training_key or content["evaluation"] != one.resolved.evaluation_key:
            self._note_strange(file, content, one.resolved)
            return None
        return content

    def entries(self, one: Asked) -> dict[int, Content]:
        """Return a row's results by seed: those of its file, then those that wait in run directories."""
        content = self.read(one)
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
        """Yield what the files of all tables hold, asked for or not."""
        for file in sorted(self.out.glob("*/*.json")):
            try:
                content = read_json(file, needs=("seeds", "training", "evaluation", "config"))
            except Unreadable:
                continue
            if content is not None:
                yield content

    def missing(self, one: Asked) -> list[int]:
        """Return the seeds that a row still needs."""
        if not isinstance(one.resolved, Resolved):
            return []
        found = self.entries(one)
        return [seed for seed in one.seeds if seed not in found]

    def collect(self, one: Asked) -> Content | None:
        """Write a row's file where there is something new, and return its content; None where there is nothing yet.

        Old results are replaced only when all seeds that were asked for, and that the file had, are there anew.
        """
        if one.row.compute is not None:
            content = {**_about(one), "computed": dict(one.row.compute())}
        elif isinstance(one.resolved, NotRun):
            return {**_about(one), "not_run": one.resolved.reason}
        else:
            assert isinstance(one.resolved, Resolved)
            own, entries = self.read(one), self.entries(one)
            if not entries or not self._seeds_in_file(one) & set(one.seeds) <= set(entries):
                return own
            if own is not None:
                entries = {entry["seed"]: entry for entry in own["seeds"]} | entries
            first = next(iter(entries.values()))
            content = {
                **_about(one),
                "training": one.resolved.training_key,
                "evaluation": one.resolved.evaluation_key,
                "notes": list(one.resolved.notes),
                **({"multiply_adds": self._multiply_adds(own, first)} if "multiply_adds" in one.table.measures else {}),
                "protocol": first["protocol"],
                "config": to_plain(one.resolved.config),
                **self._pretraining(one.resolved.pretraining),
                "seeds": [entries[seed] for seed in sorted(entries)],
            }
            for seed in entries:
                self._copy_metrics(job_name(one.resolved.training_key, seed), one.resolved.config)
        self._write(self.file(one), content)
        return content

    def _write(self, file: Path, content: Content) -> None:
        try:
            if file not in self._unreadable and read_json(file, needs=()) == content:
                return
        except Unreadable:
            self._unreadable.add(file)
        if file in self._unreadable:  # Half of a result, or two versions of one: somebody may still want what it holds.
            names = (file.with_suffix(f".damaged{number or ''}") for number in itertools.count())
            os.replace(file, next(name for name in names if not name.exists()))
            self._unreadable.remove(file)
        write_json(file, content)

    def _seeds_in_file(self, one: Asked) -> set[int]:
        """Return the seeds of a row's file, of whatever configuration."""
        try:
            content = read_json(self.file(one), needs=("seeds",))
        except Unreadable:
            return set()
        return {entry["seed"] for entry in content["seeds"]} if content else set()

    def _counts(self, entry: Content) -> bool:
        return not (self.again and set(entry["commits"]) != {self.commit})

    def _from_run(self, one: Asked, seed: int) -> Content | None:
        assert isinstance(one.resolved, Resolved)
        workdir = self.runs / job_name(one.resolved.training_key, seed)
        try:
            found = read_json(evaluation_file(workdir, one.resolved.evaluation_key), needs=NEEDED)
        except Unreadable:  # The worker says so, and evaluates again.
            return None
        if found is None:
            return None
        seconds = {
            "training": training_seconds(workdir / METRICS_FILE, one.resolved.config.train.batch_size),
            "evaluation": found["seconds"],
        }
        return {"seed": seed, **{key: value for key, value in found.items() if key != "seconds"}, "seconds": seconds}

    def _multiply_adds(self, own: Content | None, first: Content) -> dict[str, int]:
        """Count, or take what the row's file says of the same protocol: counting takes seconds for each row."""
        if own is not None and not self.again and own["protocol"] == first["protocol"]:
            found: dict[str, int] = own["multiply_adds"]
            return found
        return _multiply_adds(first)

    def _pretraining(self, config: ConfigDict | None) -> Content:
        """Return what a row says of the training whose backbone it starts from."""
        if config is None:
            return {}
        name = weights_name(config)
        seconds = training_seconds(self._copy_metrics(name, config), config.train.batch_size)
        return {"pretraining": {"name": name, "seconds": seconds, "config": to_plain(config)}}

    def _copy_metrics(self, name: str, config: ConfigDict) -> Path:
        """Keep what a finished run has logged, and return where; what is kept outlives the run directory."""
        source, target = self.runs / name / METRICS_FILE, self.out / "trainings" / f"{name}.jsonl"
        finished = state_of(source)[0] >= config.train.steps
        if finished and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            write_whole(target, lambda path: shutil.copyfile(source, path))
        return target

    def _note_strange(self, file: Path, content: Content, resolved: Resolved) -> None:
        wanted = f"{resolved.training_key}/{resolved.evaluation_key}"
        held = f"{content['training']}/{content['evaluation']}"
        line = f"{file} holds a result of another configuration ({held}, now {wanted})"
        if line not in self.strange:
            self.strange.append(line)

    def _remark(self, line: str) -> None:
        if line not in self.remarks:
            self.remarks.append(line)


def refuse_strange(store: Store) -> None:
    """Raise a UserError where a file holds a result of another configuration, which must not be overwritten."""
    if store.strange and not store.again:
        more = f", and {len(store.strange) - 1} files more do so" if len(store.strange) > 1 else ""
        raise UserError(
            f"{store.strange[0]}{more}; give another --out, or --again to replace it when the new one is there"
        )


def measure(content: Mapping[str, Any], name: str) -> list[float]:
    """Return a measure of a row's content, one number per seed (one in all for what no seed changes), in the units of
    `MEASURES`.
    """
    if "computed" in content:
        return [content["computed"][name]]
    if "not_run" in content:
        return []
    if name == "multiply_adds":
        return [_finite(content["multiply_adds"]["space_to_batch"] / BILLION)]
    if name.startswith("trimap_"):
        width = int(name.removeprefix("trimap_"))
        found = [
            band["miou"] for entry in content["seeds"] for band in entry["trimap"]["bands"] if band["width"] == width
        ]
    else:
        found = [entry[name] for entry in content["seeds"]]
    return [_finite(100 * value) for value in found if value is not None]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} where a number should be")
    return value


def _about(one: Asked) -> Content:
    table, row = one.table, one.row
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "row": table.row_name(row),
        "cells": dict(zip(table.columns, row.cells, strict=True)),
        "measures": list(table.measures),
        "paper": dict(row.paper),
    }


def _multiply_adds(entry: Content) -> dict[str, int]:
    """Count as the papers do and exactly, over all views of an image of the largest size that was run."""
    protocol = entry["protocol"]
    model = json.dumps(entry["model"], sort_keys=True)
    return _count(model, *max(protocol["sizes_run"], key=math.prod), tuple(protocol["scales"]), protocol["flip"])


@cache
def _count(description: str, height: int, width: int, scales: tuple[float, ...], flip: bool) -> dict[str, int]:
    model = from_description(json.loads(description))
    ways: tuple[Counting, ...] = ("space_to_batch", "exact")
    return {way: multi_view_multiply_adds(model, height, width, scales=scales, flip=flip, counting=way) for way in ways}
