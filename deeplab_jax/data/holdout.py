"""The share of a data set that is kept for validation, chosen by name."""

import hashlib
from collections.abc import Sequence

from deeplab_jax.errors import UserError


def check_fraction(fraction: float) -> None:
    """Raise a UserError unless the share that is kept for validation lies between 0 and 1."""
    if not 0.0 < fraction < 1.0:
        raise UserError(f"val_fraction is {fraction}; give a share between 0 and 1, such as 0.2")


def held_out(name: str, fraction: float) -> bool:
    """Return whether the example called `name` belongs to the share `fraction` that is kept for validation.

    It depends only on the name, so a new file never moves another. With few files, the share may be far from
    `fraction`.

    Raises:
      UserError: the fraction is not between 0 and 1.
    """
    check_fraction(fraction)
    return _hash(name) < fraction * 2**64


def hold_out(names: Sequence[str], fraction: float) -> set[str]:
    """Return the names that are kept for validation: `fraction` of them, rounded; at least one, and never all.

    They are the first in the order of a hash of the name. So a new file moves at most one other file into the share or
    out of it.

    Raises:
      UserError: the fraction is not between 0 and 1, or there is only one name.
    """
    check_fraction(fraction)
    if len(names) < 2:
        there = f"only {names[0]}" if names else "none"
        raise UserError(f"val_fraction={fraction:g} divides two examples or more, and there is {there}; add some")
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    return set(sorted(names, key=_hash)[:count])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
