"""Folders and globs that name the files of a data set."""

import glob
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deeplab_jax.data.source import IMAGE_SUFFIXES, normal_name
from deeplab_jax.errors import UserError


def is_glob(root: Path, pattern: str) -> bool:
    """Return whether a pattern is a glob, and not the name of a folder that has such characters."""
    return glob.has_magic(pattern) and not (root / pattern).is_dir()


def match_glob(root: Path, pattern: str, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return name -> file of the files that match a glob, or lie in a folder.

    If the last part of the glob has one `*` and an end after it, the part that `*` matches is the name; otherwise the
    name is the stem.

    Raises:
      UserError: two files have one name.
    """
    if not is_glob(root, pattern):
        pattern = f"{glob.escape(pattern)}/*"
    absolute = PurePosixPath(pattern).is_absolute()
    base, relative = (Path("/"), pattern.lstrip("/")) if absolute else (root, pattern)
    last = PurePosixPath(pattern).name
    before, star, after = last.partition("*")
    has_one_star = star and not set(after) & set("*?[") and not set(before) & set("?[")
    found: dict[str, Path] = {}
    for path in sorted(base.glob(relative)):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        name = path.name[len(before) : len(path.name) - len(after)] if has_one_star and after else path.stem
        name = normal_name(name)
        if name in found:
            raise UserError(
                f"{path}: also called '{name}', like {found[name]}; rename one, or narrow the glob '{pattern}'"
            )
        found[name] = path
    return found
