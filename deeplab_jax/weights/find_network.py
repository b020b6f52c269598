"""Finds the network among a file's tensors. The rest of the training script's state and the prefixes of the names are
dropped.

Nothing here knows the words of a framework. A file is a tree of mappings. Its tensors get dotted names, made of the
keys on the way to them. A network is found where an importer knows the names after some prefix.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deeplab_jax.errors import UserError, spell
from deeplab_jax.weights.tensor_map import Shapes, TensorMap

Recognise = Callable[[Shapes], TensorMap | None]

DEEPEST = 16
"""Levels of mappings in which tensors are searched; a hostile file's mapping may contain itself."""
MOST_ITEMS = 500_000
"""Keys and values that are looked at; a small file's mapping may stand in many others."""
LONGEST_NAME = 500
"""Characters of a tensor's name."""
MOST_PREFIXES = 2_000
FEWEST = 8
"""Fewest tensors of a network."""
MANY = 4
"""A network may leave out one tensor of the same state dict for each `MANY` that it takes."""


@dataclass(frozen=True)
class Found:
    """A network in a file.

    Attributes:
      prefix: what its tensors' names begin with in the file, "" or with a dot at the end.
      tensor_map: what the importer says of it.
      names: the importer's name of each tensor to the name in the file.
    """

    prefix: str
    tensor_map: TensorMap
    names: Mapping[str, str]

    @property
    def title(self) -> str:
        """The prefix as `select` takes it."""
        return self.prefix.rstrip(".")

    @property
    def option(self) -> str:
        """The title as a shell takes it."""
        return shlex.quote(self.title)


def flatten(tree: Mapping[Any, Any], *, source: str) -> tuple[dict[str, Any], set[str]]:
    """Return all tensors of nested mappings by their dotted names, and the prefixes at which a mapping begins.

    The outer ones come first, and it ends after `MOST_ITEMS`. Any message can repeat the names on its one line.

    Raises:
      UserError: a name that no framework writes; `source` is what the message calls the file.
    """
    tensors: dict[str, Any] = {}
    starts = {""}
    level, seen = [("", tree)], 0
    for _ in range(DEEPEST):
        deeper = []
        for prefix, mapping in level:
            for key, value in mapping.items():
                seen += 1
                if seen > MOST_ITEMS:
                    return tensors, starts
                name = f"{prefix}{key}"
                if isinstance(value, Mapping) and len(name) < LONGEST_NAME:  # Below it no name would be taken.
                    deeper.append((f"{name}.", value))
                elif hasattr(value, "shape"):
                    tensors[_checked(name, source)] = value
        starts.update(prefix for prefix, _ in deeper)
        level = deeper
    return tensors, starts


def _checked(name: str, source: str) -> str:
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"{source}: a tensor's name is {name[:50]!a}, no name that a framework writes; fetch it again")
    return name


def find_network(
    shapes: Shapes, starts: set[str], recognise: Recognise, *, select: str = "", source: str
) -> Found | None:
    """Return the one network among the tensors of a file, or None if there is none.

    Args:
      shapes: dotted name to shape, of all tensors.
      starts: the prefixes at which a mapping of the file begins.
      recognise: describes the tensors of one network; None if it does not know them.
      select: only tensors whose names begin with this are looked at.
      source: its name for messages.

    Raises:
      UserError: several networks, nothing under `select`, or a backbone in a network that nobody knows.
    """
    select = select and f"{select.rstrip('.')}."
    names = _under(select, {name: name for name in shapes}) or _under(select, plain_names(shapes))
    if select and not names:
        tops = sorted({name.partition(".")[0] for name in shapes})
        raise UserError(f"{source}: select={select[:-1]!r}: no tensor begins so; there are {spell(tops)}")
    shapes = {name: shapes[name] for name in names.values()}
    plain = {short: names[name] for short, name in plain_names(names).items()}
    found = _networks(names, shapes, recognise) or _networks(plain, shapes, recognise)
    found = [replace(one, prefix=select + one.prefix) for one in found]
    if len(found) > 1:
        which = "; ".join(f"{one.title} ({_short(one.tensor_map)})" for one in found[:5])
        raise UserError(
            f"{source}: holds {len(found)} networks: {which}; choose one, such as --select {found[0].option}"
        )
    return _with_note(found[0], shapes, starts, source, chosen=bool(select)) if found else None


def _under(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return what begins with a prefix, without it."""
    return {name.removeprefix(prefix): theirs for name, theirs in names.items() if name.startswith(prefix)}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return names without the parts that wrappers around inner modules add, to the given names.

    These parts are `module`, and those that begin with an underscore, such as torch.compile's `_orig_mod`. A name
    that another tensor has is not given again.
    """
    plain = {name: name for name in names}
    for name in list(plain):
        short = ".".join(part for part in name.split(".") if part != "module" and not part.startswith("_"))
        if short and short not in plain:
            plain[short] = plain.pop(name)
    return plain


def _networks(names: Mapping[str, str], shapes: Shapes, recognise: Recognise) -> list[Found]:
    """Return the outermost networks among tensors, those with the shortest prefixes first.

    Args:
      names: the names to look at, to those in the file.
      shapes: the name in the file to the shape.
      recognise: see `find_network`.

    Raises:
      UserError: the importer's own, if it refuses a network and no other is found.
    """
    found: list[Found] = []
    refusals: list[UserError] = []
    level, tried = {"": [*names]}, 0
    while level and tried < MOST_PREFIXES:
        deeper: dict[str, list[str]] = {}
        for prefix, members in level.items():
            tried += 1
            if len(members) < FEWEST:
                continue
            inside = {name.removeprefix(prefix): names[name] for name in members}
            try:
                tensor_map = recognise({name: shapes[theirs] for name, theirs in inside.items()})
            except UserError as refusal:
                refusals.append(refusal)
                continue
            if tensor_map is not None:
                found.append(Found(prefix, tensor_map, inside))
                continue
            for name in members:
                head, dot, _ = name.removeprefix(prefix).partition(".")
                if dot:
                    deeper.setdefault(f"{prefix}{head}.", []).append(name)
        level = deeper
    if refusals and not found:
        raise refusals[0]
    return found


def _with_note(found: Found, shapes: Shapes, starts: set[str], source: str, *, chosen: bool) -> Found:
    """Add a note about what is left out; refuse a small part of a state dict unless it was chosen."""
    taken = set(found.names.values())
    own = max((start for start in starts if found.prefix.startswith(start)), key=len)
    beside = [name for name in shapes if name.startswith(own) and name not in taken]
    if len(beside) * MANY > len(taken) and not chosen:
        raise UserError(
            f"{source}: {found.title} is {_short(found.tensor_map)}, but beside it are {len(beside)} tensors that "
            f"belong to no network that this package converts ({spell(beside, limit=3)}); for that part alone, give "
            f"--select {found.option}"
        )
    if not found.prefix:
        return found
    note = f"its tensors are those of {found.title}"
    others = [name for name in shapes if name not in taken]
    if others:
        note += f"; {len(others)} others are left out ({spell(others, limit=3)})"
    notes = (note, *found.tensor_map.notes)
    return replace(found, tensor_map=replace(found.tensor_map, notes=notes))


def _short(tensor_map: TensorMap) -> str:
    return f"{tensor_map.kind}'s {tensor_map.name}, {tensor_map.num_classes} classes"
