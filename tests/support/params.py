"""Parameters of tests of which the fast tests run only the first ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_fast(values: Iterable[Any], *, fast: int = 1) -> list[Any]:
    """Return values for `pytest.mark.parametrize`, all but the first `fast` marked slow; a tuple is several arguments.

    The first ones should differ most from each other: they are what `make test` and so every change is held to.
    """
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=() if index < fast else pytest.mark.slow)
        for index, value in enumerate(values)
    ]
