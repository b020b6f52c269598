"""A user's own parts: a Python file whose tables extend the package's.

A configuration names the file as `config.module`. The file has one or more of the tables `BACKBONES`, `ARCHITECTURES`,
`LOSSES` and `SOURCES`, each in the form of the package's own. Reading a table runs the file, so that happens only if
the user has named it in this process. A model folder or a `config.json` may ask for a file but cannot make it run.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from deeplab_jax.errors import UserError

_allowed: set[Path] = set()


def allow(module: str) -> None:
    """Permit reading the tables of a file in this process, because the user named it. "" permits nothing."""
    if module:
        _allowed.add(_absolute(module))


def own_table(module: str, name: str) -> Mapping[str, Any]:
    """Return a table of a user's own file; empty if the file has none, or if `module` is "".

    Args:
      module: path of the file.
      name: name of the table: "BACKBONES", "ARCHITECTURES", "LOSSES" or "SOURCES".

    Raises:
      UserError: the file does not exist, fails, or was not named by the user in this process.
    """
    if not module:
        return {}
    path = _absolute(module)
    if path not in _allowed:
        raise UserError(
            f"{module}: the model or data set needs the code of this file; to run it, give --module {module}"
        )
    return getattr(_load(path), name, {})


def _absolute(module: str) -> Path:
    return Path(os.path.realpath(module))  # Unlike `Path.resolve`, it does not fail if links form a circle.


@lru_cache
def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: no Python file is there; give --module the path of one")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # Dataclasses look for their module there.
    cloudpickle.register_pickle_by_value(module)  # Worker processes of the loader cannot import it: they get the code.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{path}: it cannot be run ({type(error).__name__}: {error}); fix it, or leave out --module"
        ) from None
    return module
