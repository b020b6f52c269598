"""What the values of a config may be: checks for configs of every origin, and for JSON, which says nothing of types."""

import ast
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import UserError, did_you_mean

# What the sequences hold: any number of values of one type, or of tuples of several.
SEQUENCES: dict[str, tuple[type, ...]] = {
    "data.crop_size": (int,),
    "data.scale_range": (float,),
    "optimizer.no_decay": (str,),
    "optimizer.multipliers": (str, float),
    "optimizer.freeze": (str,),
    "train.class_weights": (float,),
    "evaluate.pad_to": (int, int),
    "evaluate.scales": (float,),
    "evaluate.window": (int,),
    "evaluate.crop": (int,),
    "evaluate.trimap": (int,),
}
SIDE = (1, 2**15)
# Between what a number may lie, both included, each of a sequence by itself: beyond, work or memory has no bound.
LIMITS: dict[str, tuple[float, float]] = {
    "data.crop_size": SIDE,
    "data.scale_range": (0.01, 100),
    "data.scale_step": (0, 100),
    "data.color_jitter": (0, 1),
    "data.threads": (1, 1024),
    "data.workers": (0, 1024),
    "data.timeout": (0.001, 10**9),
    "data.max_skipped": (0, 1),
    "evaluate.pad_to": SIDE,
    "evaluate.scales": (0.01, 16),
    "evaluate.resize": (0, 2**15),
    "evaluate.batch_size": (1, 2**16),
}
# So many values at most; `data.scale_range` is a pair.
LENGTHS = {"data.scale_range": 2, "evaluate.scales": 32, "evaluate.trimap": 32}
# Keys that no options may have: they have a place of their own.
RESERVED = {"data": ("name", "dir", "split", "strict"), "model": ("name", "num_classes", "output_stride", "module")}
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", tuple: "list"}
LARGEST = 2**31 - 1
SMALLEST = 1e-12  # Of what is not 0.


def fill(config: ConfigDict, plain: Any, *, name: str, prefix: str = "") -> None:
    """Put what JSON holds into a config of defaults.

    Args:
      config: locked, but for the sections that take any key.
      plain: from JSON.
      name: of the file, for messages.
      prefix: of the section, "" for the whole config.

    Raises:
      UserError: an unknown key, or a value of another type than the default's.
    """
    if not isinstance(plain, Mapping):
        raise UserError(f"{name}: {prefix.rstrip('.') or 'it'} is {plain!r:.100}; give an object of keys and values")
    for key, value in plain.items():
        if key not in config:
            if config.is_locked:
                raise UserError(f"{name}: there is no key {prefix + key!r:.100}: {did_you_mean(key, list(config))}")
            config[key] = _frozen(value)
        elif isinstance(config[key], ConfigDict):
            fill(config[key], value, name=name, prefix=f"{prefix}{key}.")
        else:
            config[key] = _like(config[key], value, key=prefix + key, name=name)


def set_option(options: ConfigDict, key: str, text: str, *, name: str, prefix: str) -> None:
    """Set an option from a command line's text: a Python literal, `true`, `false`, or a word.

    Args:
      options: of a model or a data set, which take any key here.
      key: of the option.
      text: its value.
      name: of the file, for messages.
      prefix: of the key, for messages.

    Raises:
      UserError: a value of another type than the one that is there.
    """
    default = options.get(key)  # None where there is none, as where it may be anything.
    value = text if isinstance(default, str) else _literal(text)
    if not isinstance(value, bool | int | float | str | tuple | list | dict | None):
        raise UserError(f"{name}: {prefix}{key} is {text:.100}; give a number, text, true or false, or a list")
    options[key] = _frozen(value) if default is None else _like(default, value, key=prefix + key, name=name)


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def check(config: ConfigDict, *, name: str) -> None:
    """Raise a UserError for a value that is no finite number, or a sequence that holds something else than it should.

    Args:
      config: complete.
      name: of the file, for messages.
    """
    if not isinstance(config, ConfigDict) or not {key.split(".")[0] for key in SEQUENCES} | {*RESERVED} <= {*config}:
        raise UserError(f"{name}: get_config returns no configuration; let it start from deeplab_jax.config.base()")
    _check_numbers(config.to_dict(), name, "")
    for key, kinds in SEQUENCES.items():
        section, _, last = key.partition(".")
        value = config[section][last]
        if not all(_holds(item, kinds) for item in value):
            words = " and ".join(f"a {WORDS[kind]}" for kind in kinds)
            raise UserError(f"{name}: config.{key}={value!r:.100}: give a list of which each item is {words}")
        if len(value) > LENGTHS.get(key, LARGEST) or (key == "data.scale_range" and len(value) != LENGTHS[key]):
            raise UserError(f"{name}: config.{key} has {len(value)} values; give {LENGTHS[key]}")
    for section, keys in RESERVED.items():
        for key in keys:
            if key in config[section].options:
                raise UserError(f"{name}: config.{section}.options.{key}: {key!r} is no option; leave it out")
    for key, (low, high) in LIMITS.items():
        section, _, last = key.partition(".")
        value = config[section][last]
        if not all(low <= number <= high for number in _numbers(value)):
            raise UserError(f"{name}: config.{key}={value!r:.100}: give {low} to {high}")


def _numbers(value: Any) -> list[float]:
    """Return a number, or those of a sequence, as a list."""
    return [number for item in value for number in _numbers(item)] if isinstance(value, tuple) else [value]


def _check_numbers(plain: Any, name: str, prefix: str) -> None:
    items = plain.items() if isinstance(plain, Mapping) else enumerate(plain) if isinstance(plain, list | tuple) else ()
    for key, value in items:
        where = f"{prefix}.{key}"
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}: config{where}={value}: give a finite number")
        if isinstance(value, int | float) and (abs(value) > LARGEST or 0 < abs(value) < SMALLEST):
            raise UserError(f"{name}: config{where} is out of range; give {SMALLEST} to {LARGEST}, or 0")
        _check_numbers(value, name, where)


def _like(default: Any, value: Any, *, key: str, name: str) -> Any:
    """Return a value as what the default is."""
    kind = type(default)
    if kind is tuple and isinstance(value, list):
        return _frozen(value)
    if _is(value, kind):
        return float(value) if kind is float and abs(value) <= LARGEST else value
    wanted = f"a {WORDS[kind]}" if kind in WORDS else "what the file has there"
    raise UserError(f"{name}: {key} is {value!r:.100}; give {wanted}")


def _holds(item: Any, kinds: tuple[type, ...]) -> bool:
    items = (item,) if len(kinds) == 1 else item
    return isinstance(items, tuple) and len(items) == len(kinds) and all(map(_is, items, kinds))


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, which a config file would have, and objects into sections."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return ConfigDict({key: _frozen(item) for key, item in value.items()}) if isinstance(value, dict) else value
