"""Checks of the options of networks: each has a value of its field's type, and numbers that can be."""

import dataclasses
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import flax.linen as nn
import jax

from deeplab_jax.errors import UserError, did_you_mean


class CheckedModule(nn.Module):
    """A module that raises a UserError for a value that is not of its field's type; see `fits`."""

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type: a `Literal`, a bool, an int, a float, a str, None, a tuple of these, or a
    union. A bool is no number, and a whole number is a float. Values of other types are not looked at.
    """
    form, parts = get_origin(kind), get_args(kind)
    if form is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if form in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if form is tuple:
        kinds = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def check_value(option: str, value: Any, kind: Any, *, example: Any = None) -> None:
    """Raise a UserError, with the choices or an example, unless an option has a value of its type; see `fits`."""
    if fits(value, kind):
        return
    choices = (True, False) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
    if choices:
        word = str(value) if isinstance(choices[0], str) else ""  # All numbers are near.
        raise UserError(f"{option}={value!r:.100}: {did_you_mean(word, choices)}")
    name = kind.__name__ if isinstance(kind, type) else kind
    such_as = "" if example in (None, (), dataclasses.MISSING) else f", such as {example!r}"
    raise UserError(f"{option}={value!r:.100}: give {name}{such_as}")


@cache
def _field_types(kind: type) -> dict[str, Any]:
    """Return the types of a class's fields. Those that `from __future__ import annotations` made texts become types."""
    try:
        hints = get_type_hints(kind)
    except NameError:  # A name that is imported for type checkers alone.
        hints = {}
    return {field.name: hints.get(field.name, field.type) for field in dataclasses.fields(kind)}


def check_fields(part: Any) -> None:
    """Raise a UserError if a field of a dataclass or module has no value of its type; see `fits`."""
    kinds = _field_types(part.__class__)
    for field in dataclasses.fields(part):
        check_value(field.name, getattr(part, field.name), kinds[field.name], example=field.default)


def are_positive(values: Any) -> bool:
    """Return whether a number, or every number of a tuple of any depth, is at least 1."""
    return all(value >= 1 for value in jax.tree.leaves(values))


def check_counts(part: Any, *options: str) -> None:
    """Raise a UserError unless fields hold numbers of at least 1, or tuples of these."""
    for option in options:
        value = getattr(part, option)
        if not are_positive(value):
            raise UserError(f"{option}={value}: give whole numbers of at least 1")


def check_positive(option: str, values: tuple[int, ...]) -> None:
    """Raise a UserError unless an option holds different whole numbers of at least 1."""
    if not values or not are_positive(values) or len(set(values)) < len(values):
        raise UserError(f"{option}={values}: give whole numbers of at least 1, each once")
