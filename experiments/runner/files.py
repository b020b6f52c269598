"""JSON files that are whole or not there."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from deeplab_jax import files as whole_files
from deeplab_jax.files import write_whole

LARGEST = 1e18  # Of any number in results: multiply-adds of a network over all views.


def write_json(file: Path, content: Any) -> None:
    """Write a file at once, its folder too.

    Raises:
      UserError: it cannot be written.
    """
    write_whole(file, partial(whole_files.write_json, content=content))


class Unreadable(ValueError):
    """A file holds something else than it should; the message says what is wrong with it."""


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number that results may hold: finite, and of a plausible size."""
    return type(value) in (int, float) and abs(value) < LARGEST  # False for NaN, too.


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w{1,64}", value, re.ASCII) is not None


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("seed")) is int
        and _are_texts(value.get("commits"))
        and _are_numbers(value.get("seconds"), "training", "evaluation")
    )


def _are_numbers(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(is_number(value.get(key)) for key in keys)


def _is_config(value: Any) -> bool:
    train = value.get("train") if isinstance(value, dict) else None
    return (
        isinstance(train, dict)
        and _are_numbers(train, "steps", "batch_size")
        and min(train["steps"], train["batch_size"]) >= 1
        and _is_model(value.get("model", {"name": "", "output_stride": 0}))
    )


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and is_number(value.get("output_stride"))


# What the keys of results hold. Some become names of files.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "seeds": lambda value: isinstance(value, list) and all(map(_is_entry, value)),
    "training": _is_key,
    "evaluation": _is_key,
    "config": _is_config,
    "computed": lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    "commits": _are_texts,
    "miou": lambda value: value is None or is_number(value),
    "seconds": is_number,
    "asked": lambda value: type(value) is int,
    "names": _are_texts,
    "data": lambda value: isinstance(value, str),
    "classes": lambda value: isinstance(value, list) and all(_are_texts(one) and len(one) == 2 for one in value),
}


def read_json(file: Path, *, needs: tuple[str, ...]) -> dict[str, Any] | None:
    """Read an object that has certain keys; None where there is no file.

    Raises:
      Unreadable: half a file, or another one.
    """
    try:
        content = whole_files.read_json(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable(str(error)) from None
    if not isinstance(content, dict):
        raise Unreadable("it holds no object")
    missing = [key for key in needs if key not in content]
    if missing:
        raise Unreadable(f"it has no {missing[0]!r}")
    strange = [key for key in needs if key in CHECKS and not CHECKS[key](content[key])]
    if strange:
        raise Unreadable(f"its {strange[0]!r} is {content[strange[0]]!r:.100}")
    return dict(content)
