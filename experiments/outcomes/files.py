"""Reads the files of tables and trainings and the logs of runs. Their content is not trusted: it is checked here."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deeplab_jax import files
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.errors import UserError
from deeplab_jax.weights.folder import CHECKPOINTS

RESULTS = "experiments/results/tables"  # unless the user names another folder
TRAININGS = "trainings"
# What a row of a table's file has to hold.
ROW = ("seeds", "training", "evaluation")
LARGEST = 1e18  # More than any number in results, even the multiply-adds of a network over all views.

Content = dict[str, Any]
Records = list[dict[str, Any]]


class Unreadable(ValueError):
    """A file has the wrong content. The message says what is wrong."""


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
        and CHECKS["backbone"](value.get("backbone"))
    )


def _is_config(value: Any) -> bool:
    train = value.get("train") if isinstance(value, dict) else None
    return (
        isinstance(train, dict)
        and _are_numbers(train, "steps", "batch_size")
        and min(train["steps"], train["batch_size"]) >= 1
        and _is_model(value.get("model"))
    )


def _is_pretraining(value: Any) -> bool:
    return _are_numbers(value, "seconds") and _is_key(value.get("name")) and _is_config(value.get("config"))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and is_number(value.get("output_stride"))


# The check of each key in results. Keys of trainings and evaluations become names of files.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "rows": lambda value: isinstance(value, dict),
    "seeds": lambda value: isinstance(value, list) and all(map(_is_entry, value)),
    "training": _is_key,
    "evaluation": _is_key,
    "config": _is_config,
    "pretraining": _is_pretraining,
    "backbone": lambda value: value is None or is_number(value),
    "commits": _are_texts,
    "miou": lambda value: value is None or is_number(value),
    "seconds": is_number,
    "asked": lambda value: type(value) is int,
    "names": _are_texts,
    "data": lambda value: isinstance(value, str),
    "classes": lambda value: isinstance(value, list) and all(_are_texts(one) and len(one) == 2 for one in value),
}


def checked(content: Any, needs: Iterable[str]) -> Content:
    """Return `content`, parsed from JSON, if it is an object with the keys `needs`.

    Raises:
      Unreadable: it is no such object, or one of its keys has a value of the wrong kind.
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
      Unreadable: the file is damaged, or lacks one of the keys `needs`.
    """
    try:
        return checked(files.read_json(file), needs)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(str(error)) from None


def read_given(file: Path, *, needs: Iterable[str], fix: str) -> Content | None:
    """Return what `read_json` does for a file that the user names; `fix` ends the message about a wrong one.

    Raises:
      UserError: the file is damaged, or lacks one of the keys `needs`.
    """
    try:
        return read_json(file, needs=needs)
    except Unreadable as error:
        raise UserError(f"{file}: {error}{fix}") from None


def job_name(key: str, seed: int) -> str:
    """Return the name of a training, which is also the name of its run directory."""
    return f"{key}_seed{seed}"


def read_rows(folder: Path, table: str) -> Content:
    """Return the results of a table by row from a regime's folder, not yet checked.

    Raises:
      Unreadable: the table's file is damaged.
    """
    content = read_json(folder / f"{table}.json", needs=("rows",))
    return dict(content["rows"]) if content else {}


def read_trainings(folder: Path) -> dict[str, Records]:
    """Return the logs of a table's trainings from its folder, by their names.

    Raises:
      Unreadable: the file is damaged.
    """
    content = read_json(folder / f"{TRAININGS}.json", needs=()) or {}
    return {
        name: [one for one in records if isinstance(one, dict)] if isinstance(records, list) else []
        for name, records in content.items()
    }


# The log of a training.


def training_records(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the records of training steps."""
    logged = ("step", "train/loss", "train/images_per_second")
    return (record for record in records if all(is_number(record.get(name)) for name in logged))


def training_seconds(records: Iterable[dict[str, Any]], batch_size: int) -> float:
    """Return the seconds of all steps, from the throughput that was logged with them.

    Interruptions of the run do not change it. It includes compilation, but no evaluation and no checkpoints.
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
    for last in training_records(records):  # noqa: B007 - only the last one is used
        pass
    return (last["step"], last["train/loss"]) if last else (0, None)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints in a run directory, ascending."""
    if not (workdir / CHECKPOINTS).is_dir():
        return []
    return Checkpoints(workdir / CHECKPOINTS, read_only=True).steps()


def last_miou(records: Records) -> float | None:
    """Return the last validation mIoU of a log, 0 to 1, None where it has none. It tells two trainings of one
    configuration apart: on another machine the weights differ.
    """
    return next((one["val/miou"] for one in reversed(records) if is_number(one.get("val/miou"))), None)


def newest_step(workdir: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    return max(checkpoint_steps(workdir), default=0)
