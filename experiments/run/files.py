"""Reads the files of tables and trainings and the logs of runs. Nobody has checked what they hold."""

import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deeplab_jax import files
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.weights.folder import CHECKPOINTS

TRAININGS = "trainings"
LARGEST = 1e18  # Of any number in results: multiply-adds of a network over all views.

Content = dict[str, Any]
Records = list[dict[str, Any]]


class Unreadable(ValueError):
    """A file does not hold what it should. The message says what is wrong."""


def is_number(value: Any) -> bool:
    """Return whether a value from JSON is a number that results may hold: finite, and of a plausible size."""
    return type(value) in (int, float) and abs(value) < LARGEST  # False for NaN, too.


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w{1,64}", value, re.ASCII) is not None


def _are_numbers(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(is_number(value.get(key)) for key in keys)


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("seed")) is int
        and _are_texts(value.get("commits"))
        and _are_numbers(value.get("seconds"), "training", "evaluation")
    )


def _is_config(value: Any) -> bool:
    train = value.get("train") if isinstance(value, dict) else None
    return (
        isinstance(train, dict)
        and _are_numbers(train, "steps", "batch_size")
        and min(train["steps"], train["batch_size"]) >= 1
        and _is_model(value.get("model", {"name": "", "output_stride": 0}))
    )


def _is_pretraining(value: Any) -> bool:
    return _are_numbers(value, "seconds") and _is_key(value.get("name")) and _is_config(value.get("config"))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and is_number(value.get("output_stride"))


# What the keys of results hold. Some become names of files.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "rows": lambda value: isinstance(value, dict),
    "seeds": lambda value: isinstance(value, list) and all(map(_is_entry, value)),
    "training": _is_key,
    "evaluation": _is_key,
    "config": _is_config,
    "pretraining": _is_pretraining,
    "commits": _are_texts,
    "miou": lambda value: value is None or is_number(value),
    "seconds": is_number,
    "asked": lambda value: type(value) is int,
    "names": _are_texts,
    "data": lambda value: isinstance(value, str),
    "classes": lambda value: isinstance(value, list) and all(_are_texts(one) and len(one) == 2 for one in value),
}


def checked(content: Any, needs: Iterable[str]) -> Content:
    """Return what JSON holds, if it is an object with certain keys.

    Raises:
      Unreadable: it is not, or one of its keys holds something else than it should.
    """
    if not isinstance(content, dict):
        raise Unreadable("it holds no object")
    for key in needs:
        if key not in content:
            raise Unreadable(f"it has no {key!r}")
    for key, is_right in CHECKS.items():
        if key in content and not is_right(content[key]):
            raise Unreadable(f"its {key!r} is {content[key]!r:.100}")
    return content


def read_json(file: Path, *, needs: Iterable[str]) -> Content | None:
    """Return the object that a file holds, None where there is no file.

    Raises:
      Unreadable: half a file, or one without the keys that it needs.
    """
    try:
        return checked(files.read_json(file), needs)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(str(error)) from None


def read_rows(folder: Path, table: str) -> Content:
    """Return what a regime's folder holds of a table by row, not yet checked.

    Earlier versions wrote a file for each row, `TABLE/ROW.json`. It counts where the table's file lacks the row.

    Raises:
      Unreadable: the table's file is damaged.
    """
    content = read_json(folder / f"{table}.json", needs=("rows",))
    return {file.stem: _earlier(file) for file in (folder / table).glob("*.json")} | (
        content["rows"] if content else {}
    )


def _earlier(file: Path) -> Content:
    try:
        return read_json(file, needs=()) or {}
    except Unreadable:
        return {}  # The check of a row's keys names it.


def read_trainings(folder: Path) -> dict[str, Records]:
    """Return what a regime's trainings logged, by their names.

    Earlier versions wrote a file for each, `trainings/NAME.jsonl`.

    Raises:
      Unreadable: the file is damaged.
    """
    content = read_json(folder / f"{TRAININGS}.json", needs=()) or {}
    found = {file.stem: read_records(file) for file in (folder / TRAININGS).glob("*.jsonl")}
    for name, records in content.items():
        found[name] = [one for one in records if isinstance(one, dict)] if isinstance(records, list) else []
    return found


def set_aside(file: Path) -> None:
    """Copy a damaged file before it is replaced. A user may still want what it holds."""
    names = (file.with_suffix(f".damaged{number or ''}") for number in itertools.count())
    shutil.copyfile(file, next(name for name in names if not name.exists()))


# What a training logs.


def read_records(file: Path) -> Records:
    """Return the records of a run; none where there is no file. Lines that are no records do not count: a run that was
    killed leaves half a line.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [record for line in lines if isinstance(record := _parsed(line), dict)]


def _parsed(line: str) -> Any:
    try:
        return files.parse_json(line)
    except ValueError:
        return None


def training_records(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield those of training steps."""
    logged = ("step", "train/loss", "train/images_per_second")
    return (record for record in records if all(is_number(record.get(name)) for name in logged))


def training_seconds(records: Iterable[dict[str, Any]], batch_size: int) -> float:
    """Return how long the steps took, from the throughput that was logged with them.

    It is the same however often the run was interrupted. It includes compilation, and leaves out evaluation and
    checkpoints.
    """
    seconds, before, rate = 0.0, 0, 0.0
    for record in training_records(records):
        rate = record["train/images_per_second"] or rate  # Logs of older runs have 0 at a last step logged alone.
        seconds += (record["step"] - before) * batch_size / rate if rate else 0.0
        before = record["step"]
    return round(seconds, 1)


def state_of(records: Iterable[dict[str, Any]]) -> tuple[int, float | None]:
    """Return the last step that was logged and its loss; (0, None) before the first."""
    last = None
    for last in training_records(records):  # noqa: B007 - the last one is what counts
        pass
    return (last["step"], last["train/loss"]) if last else (0, None)


def newest_step(workdir: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    if not (workdir / CHECKPOINTS).is_dir():
        return 0
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.latest() or 0
