"""The values of a configuration: checks against `config_keys`, and conversion from JSON, which has few types."""

import ast
import functools
import math
from collections.abc import Mapping
from dataclasses import Field, fields
from operator import getitem
from typing import Any, get_args, get_origin

from ml_collections import ConfigDict

from deeplab_jax.config_keys import LARGEST, SMALLEST, Config, is_options, key, keys_of_sections
from deeplab_jax.errors import UserError, did_you_mean

WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", tuple: "list"}


def fill(config: ConfigDict, plain: Any, *, name: str, prefix: str = "") -> None:
    """Put the content of a JSON file into a config of defaults.

    Args:
      config: locked, except the sections that take any key.
      plain: from JSON.
      name: of the file, for messages.
      prefix: of the section, "" for the whole config.

    Raises:
      UserError: an unknown key, or a value of another type than the default's.
    """
    if not isinstance(plain, Mapping):
        raise UserError(f"{name}: {prefix.rstrip('.') or 'it'} is {plain!r:.100}; give an object of keys and values")
    for last, value in plain.items():
        if last not in config:
            if config.is_locked:
                raise UserError(f"{name}: there is no key {prefix + last!r:.100}: {did_you_mean(last, list(config))}")
            config[last] = _frozen(value)
        elif isinstance(config[last], ConfigDict):
            fill(config[last], value, name=name, prefix=f"{prefix}{last}.")
        else:
            config[last] = _like(config[last], value, where=prefix + last, name=name)


def set_option(options: ConfigDict, last: str, text: str, *, name: str, prefix: str) -> None:
    """Set an option from a command line's text: a Python literal, `true`, `false`, or a word.

    `None`, or nothing, removes an option that the file sets, so that the model or the data set has its own default.

    Args:
      options: options of a model or a data set, which take any key here.
      last: the option's own name.
      text: its value.
      name: name of the file, for messages.
      prefix: prefix of the key, for messages.

    Raises:
      UserError: a value of another type than the present one.
    """
    default = options.get(last)  # None if there is none, or if any value is allowed.
    if default is not None and text in (("None",) if isinstance(default, str) else ("None", "")):
        del options[last]
        return
    value = text if isinstance(default, str) else literal(text)
    if not isinstance(value, bool | int | float | str | tuple | list | dict | None):
        raise UserError(f"{name}: {prefix}{last} is {text:.100}; give a number, text, true or false, or a list")
    if isinstance(value, dict) and (isinstance(default, tuple) or not all(isinstance(one, str) for one in value)):
        value = tuple(value.items())  # As pairs: a section has only names as keys.
    if isinstance(default, tuple) and isinstance(value, str):
        words = tuple(word.strip(" ()[]'\"") for word in value.split(","))
        raise UserError(f'{name}: {prefix}{last} is {value!r:.100}; give a list: "--{prefix}{last}={words}"')
    if type(default) is int and type(value) is float:  # The present value does not say that only whole numbers fit.
        del options[last]
        default = None
    options[last] = _frozen(value) if default is None else _like(default, value, where=prefix + last, name=name)


def check(config: Any, *, name: str = "") -> None:
    """Raise a UserError for a missing key, a number that is not finite or too large, a list with items of another type,
    or a value outside its limits.

    Args:
      config: complete.
      name: of its file, for messages.
    """
    start = f"{name}: " if name else ""
    if not isinstance(config, ConfigDict) or not {one.name for one in fields(Config)} <= {*config}:
        raise UserError(f"{start}get_config returns no configuration; let it start from deeplab_jax.config.base()")
    _check_numbers(config.to_dict(), f"{start}config")
    for last, one in keys_of_sections().items():
        try:
            value = functools.reduce(getitem, last.split("."), config)
        except (KeyError, TypeError):
            raise UserError(
                f"{start}there is no key config.{last}; let get_config start from deeplab_jax.config.base()"
            ) from None
        _check_value(one, value, f"{start}config.{last}")


def _check_value(one: Field[Any], value: Any, where: str) -> None:
    """Raise a UserError for a value that is not valid for its key, whose name is `where`."""
    limits = one.metadata or key(None).metadata
    if is_options(one):
        for last, instead in limits["without"].items():
            if last in value:
                raise UserError(f"{where}.{last}: {last!r} is no option, because {instead}; leave it out")
        return
    if get_origin(one.type) is tuple:
        kinds = get_args(one.type)
        item, length = (kinds[0], None) if kinds[-1] is Ellipsis else (kinds[0], len(kinds))
        if not all(_fits(each, item) for each in value):
            parts = get_args(item) or (item,)
            words = " and ".join(f"a {WORDS[part]}" for part in parts)
            raise UserError(f"{where}={value!r:.100}: give {limits['give'] or 'a list'}; each item is {words}")
        if len(value) > limits["most"] or length not in (None, len(value)):
            raise UserError(f"{where} has {len(value)} values; give {length or limits['most']}")
    low, high = limits["low"], limits["high"]
    numbers = [number for number in _numbers(value) if isinstance(number, int | float)]
    if not all((low is None or low <= number) and (high is None or number <= high) for number in numbers):
        number = f"{low} to {high}" if high is not None else f"{low} or more" if low == 0 else f"at least {low}"
        raise UserError(f"{where}={value!r:.100}: give {limits['give'] or number}")


def literal(text: str) -> Any:
    """Return what a text of the command line stands for: a Python literal, `true`, `false`, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _numbers(value: Any) -> list[Any]:
    """Return a value, or the values of a list at every depth."""
    return [number for item in value for number in _numbers(item)] if isinstance(value, tuple) else [value]


def _check_numbers(plain: Any, where: str) -> None:
    items = plain.items() if isinstance(plain, Mapping) else enumerate(plain) if isinstance(plain, list | tuple) else ()
    for last, value in items:
        name = f"{where}.{last}"
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value}: give a finite number")
        if isinstance(value, int | float) and (abs(value) > LARGEST or 0 < abs(value) < SMALLEST):
            raise UserError(f"{name} is out of range; give {SMALLEST} to {LARGEST}, or 0")
        _check_numbers(value, name)


def _like(default: Any, value: Any, *, where: str, name: str) -> Any:
    """Return a value converted to the type of the default."""
    kind = type(default)
    if kind is tuple and isinstance(value, list):
        return _frozen(value)
    if _fits(value, kind):
        return float(value) if kind is float and abs(value) <= LARGEST else value
    wanted = f"a {WORDS[kind]}" if kind in WORDS else "what the file has there"
    raise UserError(f"{name}: {where} is {value!r:.100}; give {wanted}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or of one of several; a whole number is also a number."""
    if parts := get_args(kind):
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    return type(value) is kind or (kind is float and type(value) is int)


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, as in a config file, and objects into sections."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return ConfigDict({name: _frozen(item) for name, item in value.items()}) if isinstance(value, dict) else value
