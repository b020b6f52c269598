"""A run directory: what it records before step 0, when a second start may go on in it, and who may write to it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from deeplab_jax.config import base, differences, to_plain, with_defaults
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import TEMPORARY, locked, read_json, write_json
from deeplab_jax.provenance import git_commit, versions

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
LOCK_FILE = ".lock"

# What may differ between two starts of one run: it moves no number but by rounding, or only says what happens after a
# fault.
FREE = (
    "config.data.dir",
    "config.data.threads",
    "config.data.workers",
    "config.data.timeout",
    "config.data.on_error",
    "config.data.max_skipped",
    "config.train.devices",
    "config.train.space",
    "config.train.shard_state",
    "config.train.timeout",
    "config.train.log_every",
    "config.train.pictures",
    "config.train.keep",
    "config.train.skip_nonfinite",
    "config.train.remat",
    "config.evaluate.devices",
    "config.evaluate.batch_size",
    "config.evaluate.trimap",
    "config.evaluate.trimap_around",
)


def make_workdir(workdir: Path) -> None:
    """Make a run directory, or check that what is there may be one: empty, a run's, or left by one that wrote nothing.

    Raises:
      UserError: it cannot be made, or holds something else.
    """
    try:
        str(workdir.resolve()).encode("utf-8")
    except UnicodeEncodeError:  # Orbax and TensorBoard take text, and in this locale the name is none.
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
    """Record the configuration of a new run, or check that an older one's is the same; the directory is there, and
    locked.

    Raises:
      UserError: it cannot be written, or holds a run of another configuration.
    """
    file = workdir / CONFIG_FILE
    with as_user_errors(workdir):
        if file.exists():
            _check_same(file, to_plain(config), allow_config_change)
        else:
            write_json(file, to_plain(config))


def record_start(workdir: Path, config: Any) -> None:
    """Record the configuration that the run goes on with, and this start: command, git commit, versions, device.

    Called once the state is there: a configuration that does not fit the checkpoints takes no run's place.

    Raises:
      UserError: the directory cannot be written.
    """
    file = workdir / RUN_FILE
    with as_user_errors(workdir):
        write_json(workdir / CONFIG_FILE, to_plain(config))
        try:
            starts = read_json(file) if file.exists() else []
        except ValueError:  # A record only: nothing depends on it.
            starts = []
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        starts = starts if isinstance(starts, list) else []
        starts.append({"time": now, "command": sys.argv, "commit": git_commit(), "versions": versions()})
        write_json(file, starts)


def lock_workdir(workdir: Path, say: Callable[[str], Any]) -> AbstractContextManager[None]:
    """Keep other trainers out of a run directory, which exists; otherwise as `locked`."""
    busy = f"{workdir}: another process trains in this directory; wait for it, or give another --workdir"
    return locked(workdir / LOCK_FILE, busy, option="--workdir", say=say)


@contextmanager
def recording(workdir: Path) -> Iterator[None]:
    """Turn what stops a run from writing its record, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: the record of the run cannot be written ({error.strerror or error}); free space, or see that "
            "the folder is there, then start again"
        ) from None


@contextmanager
def as_user_errors(workdir: Path) -> Iterator[None]:
    """Turn the complaints of the file system about a run directory into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot be used as run directory ({error.strerror or error}); give another --workdir"
        ) from None


def _check_same(file: Path, plain: dict[str, Any], allow_config_change: bool) -> None:
    try:
        stored = dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: is damaged ({error}); give an empty --workdir, or delete the file to go on with this "
            "configuration"
        ) from None
    # What came into the configuration since that run started had its default then.
    stored = with_defaults(stored, to_plain(base()))
    changed = [line for line in differences(stored, plain) if line.split(":")[0] not in FREE]
    if changed and not allow_config_change:
        raise UserError(
            f"{file.parent}: holds a run of another configuration ({spell(changed, limit=4, separator='; ')}); "
            "give another --workdir, or --allow_config_change to go on with the new one"
        )
