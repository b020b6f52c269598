"""Checkpoints of a training run: the only file that knows Orbax.

All processes of a run take part in every save. A checkpoint joins their parts, so it does not depend on how the state
was spread, and can be restored onto any devices. All processes must have access to the folder.

Orbax's handler writes and reads the arrays of one tree, and waits for no other process. The folders, their names and
what is kept are decided here.

Saving is synchronous: a checkpoint of these networks takes under a second, a full disk is noticed at the step in
question, and a background copy cannot change when the next step donates its buffers.
"""

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from etils.epath import backend

from deeplab_jax.distributed import is_first, is_lost, largest, together
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import TEMPORARY, damage, read_json, write_checksums, write_json
from deeplab_jax.orbax_reports import hush

METRIC = "miou"
_VARIABLES, _EXTRA, _METRICS = "variables", "optimizer", "metrics/metrics"

_handler = cache(ocp.StandardCheckpointHandler)


def _orbax(method: str, *args: Any, **how: Any) -> Any:
    """Call a method of Orbax's handler, which finds its files in a folder of any name, and reports little.

    Orbax lists files by patterns in which the folder's own name counts as pattern, too: in a folder `[v2]` it finds
    nothing, and leaves out what it did not find.
    """
    hush()
    usual, backend.os_backend.glob = backend.os_backend.glob, _glob
    try:
        return getattr(_handler(), method)(*args, **how)
    finally:
        backend.os_backend.glob = usual


def _glob(path: Any) -> Any:
    """Return the paths that match a pattern in the last part of `path`; the other parts are taken literally."""
    folder, pattern = os.path.split(path)
    return glob.glob(os.path.join(glob.escape(folder), pattern))


class DamagedCheckpoint(UserError):
    """A checkpoint with the wrong content; older ones may be complete. `reason` says in a few words what is wrong."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: is damaged ({reason}); remove it to use the one before")
        self.reason = reason


class UnreadableCheckpoint(UserError):
    """A checkpoint that the system does not let us read, perhaps only now. Its content may be right."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path}: cannot be read ({error.strerror or error}); see to the disk and its rights, then start again"
        )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tell what the system does not let us read, or what is gone, from content that is wrong. Memory that is used up is
    none of these.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        if is_lost(error):
            raise
        if not path.exists():
            raise UserError(
                f"{path}: was removed while it was read, as a training does with older checkpoints; start again"
            ) from None
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise UnreadableCheckpoint(path, error) from None
        raise DamagedCheckpoint(path, _reason(error)) from error


class Checkpoints:
    """The checkpoints in one folder: it keeps the newest ones and the best by validation mIoU.

    A checkpoint has two parts: the variables for prediction, and the rest of the training state. It is written under a
    temporary name, with the checksums of its files, read back and compared, and only then renamed. So a folder with a
    step as its name is complete, and could be read. After that older checkpoints are removed. Those of older versions
    may lack checksums, and are accepted.

    Args:
      directory: created if it does not exist.
      keep: how many of the newest are kept, besides the best one.
      read_only: change nothing there, for example because another process trains there.

    Raises:
      UserError: the folder cannot be created.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, read_only: bool = False) -> None:
        self.directory, self._keep, self._read_only = Path(directory).resolve(), keep, read_only
        if not read_only:
            with together():
                if is_first():
                    self._prepare()

    def _prepare(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.directory}: cannot be created ({error.strerror}); give another --workdir") from None
        for left in self.directory.glob("[0-9]*tmp*"):  # By a process that was killed; Orbax's own names, too.
            shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, ascending.

        Raises:
          UnreadableCheckpoint: the system does not let us read the folder.
        """
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnreadableCheckpoint(self.directory, error) from None
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """Return the newest step, or None."""
        return max(self.steps(), default=None)

    def find(self, which: str | int = "best") -> int:
        """Return the step for "best" (the first with the largest mIoU, the newest if none was evaluated), "newest" or a
        number.

        Raises:
          UserError: there is no such checkpoint, or the metrics of one are damaged.
        """
        steps = self.steps()
        if not steps:
            raise UserError(
                f"{self.directory}: holds no complete checkpoint; train for longer, or give another run directory"
            )
        if which == "best":
            mious = {step: found[METRIC] for step in steps if (found := self.metrics(step))}
            return max(mious, key=lambda step: (mious[step], -step), default=steps[-1])
        if which == "newest":
            return steps[-1]
        if str(which) not in map(str, steps):
            raise UserError(
                f"checkpoint {which!r}: choose from best, newest, {', '.join(map(str, steps))} in {self.directory}"
            )
        return int(which)

    def metrics(self, step: int) -> dict[str, float]:
        """Return the validation metrics saved with a step, {} if it was not evaluated.

        Raises:
          UserError: they are damaged. Without `read_only` the step counts as not evaluated instead.
        """
        file = self.directory / str(step) / _METRICS
        try:
            found = read_json(file)
            if not 0 <= found[METRIC] <= 1:
                raise ValueError(f"{METRIC} is not between 0 and 1")
            return {METRIC: found[METRIC]}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UnreadableCheckpoint(file, error) from None
        except (ValueError, KeyError, TypeError) as error:
            if self._read_only:
                raise UserError(f"{file}: is damaged ({error}); remove the folder {file.parent}") from None
            return {}

    def save(self, step: int, variables: Any, extra: Any, *, metrics: Mapping[str, float] | None = None) -> None:
        """Save a checkpoint, read it back, and remove those that are no longer kept. A step that exists already is not
        changed.

        Reading back takes about as long as a restore, and memory on the host for one part of the state.

        Raises:
          UserError: it could not be written, or is not what was written. The older checkpoints are intact.
        """
        with together():
            known = step in self.steps()
        if largest(int(known)):  # A process may see a shared folder as it was some seconds ago.
            return
        fresh = self.directory / f"{step}{TEMPORARY}"
        try:
            self._write(step, fresh, {_VARIABLES: variables, _EXTRA: extra}, metrics)
        except Exception:
            if is_first():
                shutil.rmtree(fresh, ignore_errors=True)  # Its space is free again.
            raise
        with together(), self._saving(step):
            if is_first():
                fresh.rename(self.directory / str(step))
                for old in set(self.steps()) - self._kept():
                    self._remove(old)

    def _write(self, step: int, fresh: Path, parts: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Write a checkpoint to a new folder and read it back."""
        with together(), self._saving(step):
            if is_first():
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir()
        with together(), self._saving(step):
            for name, tree in parts.items():
                _orbax("save", epath.Path(fresh / name), args=ocp.args.StandardSave(tree))
        with together(), self._saving(step):
            if is_first():
                for name in parts:
                    _orbax("finalize", epath.Path(fresh / name))
                write_checksums(fresh, parts)
                if metrics is not None:
                    _write_metrics(fresh, metrics)
        with together():
            for name, tree in parts.items():
                self._read_back(step, fresh, name, tree)

    def _kept(self) -> set[int]:
        """Return the newest steps, and the best of those that were evaluated."""
        return {*self.steps()[-self._keep :], self.find("best")}

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, which a kill or a reader never sees by half."""
        left = (self.directory / str(step)).rename(self.directory / f"{step}.old{TEMPORARY}")
        shutil.rmtree(left, ignore_errors=True)  # What a network's disk holds for a reader goes at the next start.

    def _read_back(self, step: int, folder: Path, item: str, tree: Any) -> None:
        """Raise a UserError unless a part of a new checkpoint is, bit for bit, the tree. Each process reads all of it,
        and compares what it has.
        """
        try:
            stored = self._load(folder, item, jax.tree.map(_on_host, tree))
            leaves = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(stored), strict=True)
            changed = [_path(path) for (path, leaf), found in leaves if not _is_same(leaf, found)]
            reason = f"not what was written: {spell(changed, limit=3)}" if changed else ""
        except UserError as error:
            reason = getattr(error, "reason", str(error))
        if reason:
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be read back ({reason}); "
                f"{self._others(step)}; check this disk and start again"
            )

    @contextlib.contextmanager
    def _saving(self, step: int, what: str = "the checkpoint") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for a full or vanished disk.
            if is_lost(error):  # Another process is gone, and the disk is not at fault.
                raise
            raise UserError(
                f"{self.directory}: {what} of step {step} could not be saved ({_reason(error)}); "
                f"{self._others(step)}; free space and start again"
            ) from error

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics to a checkpoint that was saved without any.

        Raises:
          UserError: they could not be written.
        """
        with together(), self._saving(step, "the metrics"):
            if is_first():
                _write_metrics(self.directory / str(step), metrics)

    def restore_variables(self, step: int, abstract: Any) -> Any:
        """Restore the variables of a step into the shapes of `abstract`.

        Raises:
          UserError: the checkpoint is of another network; the message names the differences.
          DamagedCheckpoint: its content is wrong.
          UnreadableCheckpoint: the system does not let us read it.
        """
        return self._restore(step, _VARIABLES, abstract)

    def restore_extra(self, step: int, abstract: Any) -> Any:
        """Restore the rest of the training state; see `restore_variables`."""
        return self._restore(step, _EXTRA, abstract)

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that its step can be saved again; return its new path.

        Raises:
          UserError: it cannot be renamed.
        """
        folder = self.directory / str(step)
        aside = folder.with_name(f"{step}.damaged")
        with together():
            try:
                if is_first():
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
            except OSError as error:
                raise UserError(f"{folder}: is damaged and cannot be renamed ({error.strerror}); remove it") from None
        return aside

    def _restore(self, step: int, item: str, abstract: Any) -> Any:
        folder = self.directory / str(step)
        with _readable(folder):
            if reason := damage(folder, item):
                raise DamagedCheckpoint(folder, reason)
        return self._load(folder, item, abstract)

    def _load(self, folder: Path, item: str, abstract: Any) -> Any:
        """Return a part in the shapes of `abstract`; no process waits for another."""
        part = epath.Path(folder / item)
        with _readable(folder):
            stored = _shapes(_orbax("metadata", part).tree)
        if problems := misfits(_shapes(abstract), stored):
            raise UserError(
                f"{folder}: a checkpoint of another model or optimizer: {spell(problems, separator='; ')}; "
                "use the configuration it was trained with, or another --workdir"
            )
        with _readable(folder):
            return _orbax("restore", part, args=ocp.args.StandardRestore(_placed(abstract)))

    def _others(self, step: int) -> str:
        """Return as a phrase which checkpoint there is beside a failed one."""
        steps: list[int] = []
        with contextlib.suppress(UserError):
            steps = [other for other in self.steps() if other != step]
        return f"step {max(steps)} is intact" if steps else "none was saved before"


def _write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    (folder / _METRICS).parent.mkdir(exist_ok=True)
    write_json(folder / _METRICS, dict(metrics))


def misfits(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the missing, unexpected and mis-shaped tensors, given as name -> shape, in their order."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    return problems + [
        f"{name} is {found[name]}, the model has {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {_path(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _on_host(leaf: Any) -> Any:
    """Return an array of the leaf's shape and dtype for Orbax to restore into, without memory of its own."""
    return np.broadcast_to(np.zeros((), leaf.dtype), np.shape(leaf))


def _is_same(leaf: Any, found: Any) -> bool:
    """Whether a restored array has the bits of the leaf's, as far as this process holds them."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return all(_is_same(np.asarray(shard.data), found[shard.index]) for shard in leaf.addressable_shards)
    return np.asarray(leaf).tobytes() == np.asarray(found).tobytes()


def _reason(error: Exception) -> str:
    """Return in a few words why Orbax failed; TensorStore reports a full disk at the end of a long sentence."""
    text = " ".join(str(error).split())
    full = os.strerror(errno.ENOSPC)
    return full if full in text else text[:200]


def _path(path: tuple[Any, ...]) -> str:
    """Return a tree path as text; attributes, keys and indices look alike, because Orbax stores named
    tuples as dicts.
    """
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _placed(abstract: Any) -> Any:
    """Give every leaf a sharding, by default on the first local device, so that a checkpoint of other devices can be
    restored.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):  # To be restored as one, on the host.
            return leaf
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None) or default)

    return jax.tree.map(place, abstract)
