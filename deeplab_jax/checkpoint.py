"""Checkpoints of a training run: the only file that knows Orbax.

All processes of a run take part in every call. A checkpoint joins their parts, so it does not depend on how the state
was spread, and can be restored onto any devices. All processes must have access to the folder.

Saving is synchronous: a checkpoint of these networks takes under a second, a full disk is noticed at the step in
question, and a background copy cannot change when the next step donates its buffers.
"""

import contextlib
import errno
import glob
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import backend

from deeplab_jax.distributed import is_first, is_lost, together
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import damage, read_json, write_checksums

METRIC = "miou"
_VARIABLES, _EXTRA, _METRICS = "variables", "optimizer", "metrics"  # The last is Orbax's own name.


@cache
def _prepare_orbax() -> None:
    """Make Orbax fit for the user's folders and terminal, for the rest of the process.

    Orbax lists files by patterns in which the folder's own name counts as pattern, too: in a folder `[v2]` it finds
    nothing, and leaves out what it did not find.

    It reports every phase of every save through absl. Only its warnings are shown. Its errors come once for each of its
    threads; they are raised, too. asyncio reports the reads that Orbax no longer waited for. Some of these come late.
    """
    backend.os_backend.glob = _glob
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_Warnings())
    sys.unraisablehook = partial(_report_unraisable, otherwise=sys.unraisablehook)


def _glob(path: Any) -> Any:
    """Return the paths that match a pattern in the last part of `path`; the other parts are taken literally."""
    folder, pattern = os.path.split(path)
    return glob.glob(os.path.join(glob.escape(folder), pattern))


OF_OUR_OWN = (
    "Requested `tracked_metric`",  # A save without an evaluation.
    "CheckpointManagerOptions.read_only=True",  # A model that is loaded.
    "Given directory is read only",
)
"""Beginnings of Orbax's warnings about what is meant so here."""


class _Warnings(logging.Filter):
    """Pass on each warning once, on one line; nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return False
        text = " ".join(record.getMessage().split())
        if text in self._shown or text.startswith(OF_OUR_OWN):
            return False
        self._shown.add(text)
        record.msg, record.args = text, ()
        return True


def _report_unraisable(report: Any, *, otherwise: Callable[[Any], Any]) -> None:
    """Pass on errors that cannot be raised, except those of a checkpoint's other reads after one has failed.

    TensorStore sends a message to a loop that is closed, and Orbax answers the end of its coroutine with an error.
    """
    ended = isinstance(getattr(report.exc_value, "__cause__", None), GeneratorExit)
    if not ended and str(report.exc_value) != "Event loop is closed":
        otherwise(report)


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
    """Tell what the system does not let us read from content that is wrong. Memory that is used up is neither."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError, UserError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        if is_lost(error):
            raise
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise UnreadableCheckpoint(path, error) from None
        raise DamagedCheckpoint(path, _reason(error)) from error


class Checkpoints:
    """The checkpoints in one folder: it keeps the newest ones and the best by validation mIoU.

    A checkpoint has two parts: the variables for prediction, and the rest of the training state. A save is written
    under a temporary name and renamed at the end, so a folder with a step as its name is complete. It is then read back
    and compared; only after that older checkpoints are removed. Checksums of its files are written, too, and compared
    at a restore. A checkpoint without them, as after a kill in between, is accepted.

    Args:
      directory: created if it does not exist.
      keep: how many of the newest are kept, besides the best one.
      read_only: change nothing there, for example because another process trains there.

    Raises:
      UserError: the metrics of a checkpoint are damaged. Without `read_only` they are removed instead, and the
        checkpoint counts as not evaluated.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, read_only: bool = False) -> None:
        _prepare_orbax()
        self.directory = Path(directory).resolve()
        if read_only:  # Of several processes each may do that for itself.
            _check_metrics(self.directory, fix=False)
        else:
            with together():
                if is_first():
                    _check_metrics(self.directory, fix=True)
        self._keep = keep
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[METRIC],  # Without it no metrics are written.
            enable_async_checkpointing=False,
            # Files that look like the remains of a killed save may belong to another process's save in progress.
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=_handlers())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Return the newest step, or None."""
        return max(self.steps(), default=None)

    def find(self, which: str | int = "best") -> int:
        """Return the step for "best" (the newest if none was evaluated), "newest", or a number.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(
                f"{self.directory}: holds no complete checkpoint; train for longer, or give another run directory"
            )
        if which == "best":
            return max(steps, key=lambda step: (self.metrics(step).get(METRIC, -1.0), step))
        if which == "newest":
            return steps[-1]
        if str(which) not in map(str, steps):
            raise UserError(
                f"checkpoint {which!r}: choose from best, newest, {', '.join(map(str, steps))} in {self.directory}"
            )
        return int(which)

    def metrics(self, step: int) -> dict[str, float]:
        """Return the validation metrics saved with a step, {} if it was not evaluated."""
        return dict(self._manager.metrics(step) or {})

    def save(self, step: int, variables: Any, extra: Any, *, metrics: Mapping[str, float] | None = None) -> None:
        """Save a checkpoint, read it back, and remove those that are no longer kept. A step that exists already is not
        changed.

        Reading back takes about as long as a restore, and memory on the host for one part of the state.

        Raises:
          UserError: it could not be written, or is not what was written. The older checkpoints are intact.
        """
        if step in self._manager.all_steps():
            return
        parts = {_VARIABLES: variables, _EXTRA: extra}
        items = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in parts.items()})
        with self._saving(step):
            if not self.directory.is_dir():  # Orbax would create a new one, without the older checkpoints.
                raise FileNotFoundError(errno.ENOENT, "the folder has vanished")
            self._manager.save(step, args=items, metrics=None if metrics is None else dict(metrics), force=True)
            self._manager.wait_until_finished()
        with together(), self._saving(step):
            if is_first():
                write_checksums(self.directory / str(step), parts)
        for name, tree in parts.items():
            self._read_back(step, name, tree)
        with self._saving(step):
            for old in set(self.steps()) - self._kept():
                self._manager.delete(old)

    def _kept(self) -> set[int]:
        """Return the newest steps, and the best of those that were evaluated."""
        steps = self.steps()
        evaluated = [step for step in steps if self.metrics(step)]
        return {*steps[-self._keep :], *([self.find("best")] if evaluated else [])}

    def _read_back(self, step: int, item: str, tree: Any) -> None:
        """Remove a new checkpoint and raise a UserError unless a part of it is, bit for bit, the tree."""
        with together():  # Of several processes each reads all, and compares what it has.
            try:
                stored = self._load(step, item, jax.tree.map(_on_host, tree))
                changed = [
                    _path(path)
                    for (path, leaf), found in zip(
                        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(stored), strict=True
                    )
                    if not _is_same(leaf, found)
                ]
                reason = f"not what was written: {spell(changed, limit=3)}" if changed else ""
            except UserError as error:
                reason = getattr(error, "reason", str(error))
            if reason:
                kept = self._others(step)
                if is_first():
                    shutil.rmtree(self.directory / str(step), ignore_errors=True)
                raise UserError(
                    f"{self.directory}: the checkpoint of step {step} could not be read back ({reason}); {kept}; check "
                    "this disk and start again"
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
        with self._saving(step, "the metrics"):
            with ocp.Checkpointer(ocp.JsonCheckpointHandler(filename=_METRICS)) as writer:
                writer.save(self.directory / str(step) / _METRICS, args=ocp.args.JsonSave(dict(metrics)), force=True)
            self._manager.reload()

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
        self._manager.reload()
        return aside

    def _restore(self, step: int, item: str, abstract: Any) -> Any:
        folder = self.directory / str(step)
        with _readable(folder):
            reason = damage(folder, item)
        if reason:
            raise DamagedCheckpoint(folder, reason)
        return self._load(step, item, abstract)

    def _load(self, step: int, item: str, abstract: Any) -> Any:
        self._compare(step, item, abstract)
        with _readable(self.directory / str(step)):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(_placed(abstract))})
            )
        return restored[item]

    def _compare(self, step: int, item: str, abstract: Any) -> None:
        with _readable(self.directory / str(step)):
            metadata = self._manager.item_metadata(step)[item]
            stored = _shapes(metadata.tree)
        if problems := misfits(_shapes(abstract), stored):
            raise UserError(
                f"{self.directory / str(step)}: a checkpoint of another model or optimizer: "
                f"{spell(problems, separator='; ')}; "
                "use the configuration it was trained with, or another --workdir"
            )

    def _others(self, step: int) -> str:
        """Return as a phrase which checkpoint there is beside a failed one."""
        steps: list[int] = []
        with contextlib.suppress(OSError):
            steps = [int(name) for name in os.listdir(self.directory) if name.isdigit() and int(name) != step]
        return f"step {max(steps)} is intact" if steps else "none was saved before"


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


def _check_metrics(directory: Path, *, fix: bool) -> None:
    """Check the metrics of every checkpoint, because Orbax reads all of them at once and fails on a single bad one."""
    for file in directory.glob(f"[0-9]*/{_METRICS}/{_METRICS}"):
        if not file.parts[-3].isdigit():  # A checkpoint that was renamed as damaged, or is being written.
            continue
        try:
            if not 0 <= read_json(file)[METRIC] <= 1:
                raise ValueError(f"{METRIC} is not between 0 and 1")
        except FileNotFoundError:  # Another process has removed the checkpoint.
            continue
        except OSError as error:
            raise UnreadableCheckpoint(file, error) from None
        except (ValueError, KeyError, TypeError) as error:
            if not fix:
                raise UserError(f"{file}: is damaged ({error}); remove the folder {file.parent}") from None
            shutil.rmtree(file.parent)


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Describe the two parts: a manager that has saved nothing yet does not know them, and then reads no shapes."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in (_VARIABLES, _EXTRA):
        handler = ocp.StandardCheckpointHandler()
        registry.add(item, ocp.args.StandardSave, handler)
        registry.add(item, ocp.args.StandardRestore, handler)
    return registry


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
