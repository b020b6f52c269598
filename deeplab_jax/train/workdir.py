"""The folder of a run: who may write to it, when a second start may go on in it, and the record of its starts."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from deeplab_jax.config import CONFIG_FILE, RUN_FILE, base, state_val_rule, to_plain
from deeplab_jax.config_keys import FREE
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import TEMPORARY, locked, read_json, write_json
from deeplab_jax.provenance import git_commit, versions
from deeplab_jax.train.faults import as_user_errors
from deeplab_jax.train.trackers import IDS_FILE
from deeplab_jax.weights.folder import CHECKPOINTS, MODEL_FILE

LOCK_FILE = ".lock"


def make_workdir(workdir: Path) -> None:
    """Create a run directory, or check an existing one: empty, of a run, or left by a start that wrote nothing.

    Raises:
      UserError: it cannot be created, or contains something else.
    """
    try:
        str(workdir.resolve()).encode("utf-8")
    except UnicodeEncodeError:  # Orbax and TensorBoard need a text, which this locale cannot make of the name.
        raise UserError(
            f"{str(workdir)!a}: a name that the locale cannot spell; set LC_ALL=C.UTF-8, or give another --workdir"
        ) from None
    with as_user_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in workdir.iterdir() if path.suffix != TEMPORARY}
        if found - {LOCK_FILE} and not found & {CONFIG_FILE, RUN_FILE}:
            raise UserError(
                f"{workdir}: is not empty and holds no {CONFIG_FILE}, so it is no run to resume; "
                "give an empty --workdir"
            )


def open_workdir(workdir: Path, config: Any, *, allow_config_change: bool) -> None:
    """Record the configuration of a new run, or check that it equals an older run's. The directory exists and is
    locked. A run without any checkpoint may get another configuration: nothing of it would go on, and its trackers
    begin new records.

    Raises:
      UserError: it cannot be written, or contains a run of another configuration.
    """
    file, plain = workdir / CONFIG_FILE, to_plain(config)
    with as_user_errors(workdir):
        saved = any(path.name.isdecimal() for path in (workdir / CHECKPOINTS).glob("*"))
        if file.exists() and saved:
            _check_same(file, plain, allow_config_change)
            return
        if file.exists() and _is_another(file, plain):
            (workdir / IDS_FILE).unlink(missing_ok=True)
        write_json(file, plain)


def check_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Raise a UserError where the data of a run had other classes, or the same in another order, when it started.

    Files name the classes of some data sets, so they may change between two starts.
    """
    try:
        before = tuple(read_json(workdir / MODEL_FILE)["info"]["class_names"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    if before != tuple(names):
        raise UserError(
            f"{workdir}: the run began with the classes {before!r:.200}, and the data now have {tuple(names)!r:.200}; "
            "give another --workdir, correct the data, or --allow_config_change to go on with the new ones"
        )


def record_start(workdir: Path, config: Any) -> None:
    """Record the configuration with which the run continues, and this start: command, git commit, versions, device.

    It is called after the state is restored: a configuration that does not fit the checkpoints overwrites no record.

    Raises:
      UserError: the directory cannot be written.
    """
    file = workdir / RUN_FILE
    with as_user_errors(workdir):
        write_json(workdir / CONFIG_FILE, to_plain(config))
        try:
            starts = read_json(file) if file.exists() else []
        except ValueError:  # Only a record: nothing depends on it.
            starts = []
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        starts = starts if isinstance(starts, list) else []
        starts.append({"time": now, "command": sys.argv, "commit": git_commit(), "versions": versions()})
        write_json(file, starts)


def lock_workdir(workdir: Path, say: Callable[[str], Any]) -> AbstractContextManager[None]:
    """Keep other trainers out of an existing run directory; otherwise as `locked`."""
    busy = f"{workdir}: another process trains in this directory; wait for it, or give another --workdir"
    return locked(workdir / LOCK_FILE, busy, option="--workdir", say=say)


def _is_another(file: Path, plain: dict[str, Any]) -> bool:
    try:
        return bool(_changes(file, plain))
    except UserError:  # A damaged record; nothing of that run would go on.
        return True


def _check_same(file: Path, plain: dict[str, Any], allow_config_change: bool) -> None:
    changed = _changes(file, plain)
    if changed and not allow_config_change:
        raise UserError(
            f"{file.parent}: holds a run of another configuration ({spell(changed, limit=4, separator='; ')}); "
            "give another --workdir, or --allow_config_change to go on with the new one"
        )


def _changes(file: Path, plain: dict[str, Any]) -> list[str]:
    """List the differences to a recorded configuration that matter; see `FREE`."""
    try:
        stored = dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: is damaged ({error}); give an empty --workdir, or delete the file to go on with this "
            "configuration"
        ) from None
    # Options that are new since that run started had their defaults then.
    stored = with_defaults(stored, to_plain(base()))
    state_val_rule(stored["data"], "hash")
    return [line for line in differences(stored, plain) if line.split(":")[0] not in FREE]


def with_defaults(plain: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain config; keys that it lacks, at every level, come from the default one."""
    return {
        **default,
        **{
            key: with_defaults(value, default[key])
            if isinstance(value, Mapping) and isinstance(default.get(key), Mapping)
            else value
            for key, value in plain.items()
        },
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "config") -> list[str]:
    """List the differences of two plain configs, as `config.train.steps: 100 -> 200`."""
    lines = []
    for key in sorted({*old, *new}):
        name, before, after = f"{prefix}.{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, prefix=name)
        elif before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines
