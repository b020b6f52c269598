"""A user's own parts: a Python file whose tables extend the package's.

A configuration names the file as `config.module`. The file has one or more of the tables `BACKBONES`, `ARCHITECTURES`,
`LOSSES` and `SOURCES`, each in the form of the package's own. Reading a table runs the file, so that happens only if
the user has named it in this process. A model folder or a `config.json` may ask for a file but cannot make it run.
"""

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from deeplab_jax.errors import UserError, kind_and_text

TABLES = ("BACKBONES", "ARCHITECTURES", "LOSSES", "SOURCES")
# The files that may run, each with the time and size that it had when its user named it last.
_allowed: dict[Path, tuple[int, int]] = {}


def allow(module: str) -> None:
    """Permit reading the tables of a file in this process, because the user named it. "" permits nothing.

    A file that has changed is run again. So a notebook that names it sees the new text, and a run in progress keeps the
    old one.
    """
    if module:
        path = _absolute(module)
        try:
            _allowed[path] = (path.stat().st_mtime_ns, path.stat().st_size)
        except OSError:  # `own_table` says that nothing is there.
            _allowed[path] = (0, 0)


def own_table(module: str, name: str) -> Mapping[str, Any]:
    """Return a table of a user's own file; empty if the file has none, or if `module` is "".

    Args:
      module: path of the file.
      name: name of the table, one of `TABLES`.

    Raises:
      UserError: the file does not exist, fails, has none of the tables, or was not named by the user in this process.
    """
    if not module:
        return {}
    path = _absolute(module)
    if path not in _allowed:
        raise UserError(
            f"{module}: the model, the loss or the data set needs the code of this file; to run it, give --module "
            f"{module} (in Python: module={module!r})"
        )
    return getattr(_load(path, _allowed[path]), name, {})


@contextmanager
def own_errors(module: str) -> Iterator[None]:
    """Turn what fails in a user's own file into a UserError of one line, which names the file and its line.

    Errors of other code pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = _failing_line(error, module)
        if not line:
            raise
        raise UserError(f"{module}, line {line}: {kind_and_text(error)}; correct this line") from error


def _failing_line(error: BaseException, module: str) -> int | None:
    """Return the last line of a file in the traceback of an error; None where the file is not in it."""
    path = str(_absolute(module)) if module else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return lines[-1] if lines else None


def _absolute(module: str) -> Path:
    return Path(os.path.realpath(module))  # Unlike `Path.resolve`, it does not fail if links form a circle.


@lru_cache
def _load(path: Path, state: tuple[int, int]) -> ModuleType:
    """Run a file once for each state (time and size) in which its user named it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: no Python file is there; correct config.module or --module")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # Dataclasses look for their module there.
    cloudpickle.register_pickle_by_value(module)  # Worker processes of the loader cannot import it: they get the code.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = _failing_line(error, str(path))
        where = f", line {line}" if line else ""
        raise UserError(
            f"{path}{where}: it cannot be run ({kind_and_text(error)}); fix it, or leave out --module"
        ) from None
    if not any(hasattr(module, table) for table in TABLES):
        raise UserError(f"{path}: it has none of the tables {', '.join(TABLES)}; add one, or correct its name")
    return module
