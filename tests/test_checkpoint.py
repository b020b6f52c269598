"""Checkpoints: what is kept, what is refused, and what survives a full disk."""

import asyncio
import errno
import gc
import logging
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils.epath import backend

from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import METRIC, Checkpoints
from deeplab_jax.errors import UserError
from deeplab_jax.orbax_reports import OneLineWarnings, is_of_orbax, report_unraisable
from tests.support.params import first_fast

EXTRA = {"step": jnp.zeros((), jnp.int32)}


def variables(value=0.0, size=3):
    return {"params": {"layer": {"kernel": jnp.arange(size, dtype=jnp.float32) + value}}}


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def fill(folder, scores, *, keep=2):
    """Save steps 1, 2, ... with these scores."""
    checkpoints = Checkpoints(folder, keep=keep)
    for step, score in enumerate(scores, start=1):
        checkpoints.save(step, variables(step), EXTRA, metrics=None if score is None else {METRIC: score})
    return checkpoints.steps()


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([None, None, None, None], [3, 4], 4),
        ([0.1, 0.5, 0.2, None, 0.3, None], [2, 5, 6], 2),
        ([0.1, 0.5, 0.2, 0.6, None], [4, 5], 4),
        ([0.5, 0.5, 0.0, 0.5], [1, 3, 4], 1),  # the first of equals, as where a run ends early
    ],
)
def test_the_best_and_the_newest_are_kept(tmp_path: Path, scores, kept, best) -> None:
    assert set(kept) <= set(fill(tmp_path, scores))
    # A new process knows as much.
    checkpoints = Checkpoints(tmp_path)
    assert set(kept) <= set(checkpoints.steps()) and len(checkpoints.steps()) <= 3
    assert checkpoints.find("best") == best
    assert checkpoints.find("newest") == checkpoints.latest() == len(scores)
    assert checkpoints.metrics(best) == ({} if scores[best - 1] is None else {METRIC: scores[best - 1]})


def test_the_best_of_an_earlier_process_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, [0.1, 0.5, 0.2])
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (4, 5, 6):
        checkpoints.save(step, variables(step), EXTRA)
    assert checkpoints.steps() == [2, 6]


def test_what_is_saved_is_restored_by_a_process_that_saved_nothing(tmp_path: Path) -> None:
    fill(tmp_path, [None, None])
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore_variables(2, abstract(variables()))
    extra = checkpoints.restore_extra(2, abstract(EXTRA))
    np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], [2, 3, 4])
    assert extra["step"].dtype == jnp.int32


def test_checkpoints_of_orbax_s_own_manager_go_on(tmp_path: Path) -> None:
    """Runs of older versions of this package were saved by it."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics[METRIC], enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step in (1, 2):
            parts = {"variables": variables(step), "optimizer": EXTRA}
            items = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in parts.items()})
            manager.save(step, args=items, metrics={METRIC: 0.5 / step})
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.steps() == [1, 2] and checkpoints.find("best") == 1 and checkpoints.metrics(2) == {METRIC: 0.25}
    restored = checkpoints.restore_variables(2, abstract(variables()))
    np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], [2, 3, 4])
    assert checkpoints.restore_extra(2, abstract(EXTRA))["step"] == 0
    checkpoints.save(3, variables(3), EXTRA)
    assert checkpoints.steps() == [1, 3]


def test_a_step_that_is_there_is_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, variables(1), EXTRA)
    checkpoints.save(1, variables(9), EXTRA)
    restored = checkpoints.restore_variables(1, abstract(variables()))
    np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], [1, 2, 3])


@pytest.mark.parametrize(
    "name",
    first_fast(["[v2]", "exp%20a", "中文", "a*", "what?", "100%", "exp#1", "a b", "it's", 'q"q', "a:b|c"], fast=3),
)
def test_a_folder_of_any_name(tmp_path: Path, name) -> None:
    assert fill(tmp_path / name, [0.5, None, None, None]) == [1, 3, 4]
    checkpoints = Checkpoints(tmp_path / name)
    restored = checkpoints.restore_variables(4, abstract(variables()))
    np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], [4, 5, 6])


@pytest.mark.parametrize("fault", ["lost", "changed"])
def test_a_save_counts_only_when_it_has_been_read_back(tmp_path: Path, monkeypatch, fault) -> None:
    """A save that ends well but cannot be read costs no older checkpoint."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, variables(1), EXTRA)
    handler = ocp.StandardCheckpointHandler
    save, finalize = handler.save, handler.finalize

    def spoil(self, folder, *, args):
        changed = fault == "changed" and folder.name == "variables"
        save(self, folder, args=ocp.args.StandardSave(variables(9)) if changed else args)

    def lose(self, folder):
        finalize(self, folder)
        if fault == "lost":
            (folder / "manifest.ocdbt").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(handler, "save", spoil)
        patch.setattr(handler, "finalize", lose)
        with pytest.raises(UserError, match="step 2 could not be read back .*; step 1 is intact; check this disk"):
            checkpoints.save(2, variables(2), EXTRA)
    assert os.listdir(tmp_path) == ["1"]
    checkpoints.save(2, variables(2), EXTRA)
    assert checkpoints.steps() == [2]


def test_a_warning_of_orbax_is_shown_once_and_its_errors_never() -> None:
    shown = OneLineWarnings()
    records = [
        logging.LogRecord("absl", level, "/packages/orbax/file.py", 1, "two\n%s", ("lines",), None)
        for level in (logging.INFO, logging.WARNING, logging.WARNING, logging.ERROR)
    ]
    assert [shown.filter(record) for record in records] == [False, True, False, False]
    assert records[1].getMessage() == "two lines"


def test_a_programs_own_messages_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also those of its absl logger and of its loops, and what its folders' names mean to etils."""
    glob, level = backend.os_backend.glob, logging.getLogger("asyncio").level
    fill(tmp_path, [None])
    assert backend.os_backend.glob == glob and logging.getLogger("asyncio").level == level
    for name in ("absl", "asyncio"):
        caplog.set_level(logging.INFO, logger=name)
        caplog.clear()
        logger = logging.getLogger(name)
        logger.addHandler(caplog.handler)
        logger.info("two\nlines")
        logger.error("wrong")
        logger.removeHandler(caplog.handler)
        assert {"two\nlines", "wrong"} == set(caplog.messages)


def test_asyncio_says_nothing_of_reads_of_orbax() -> None:
    lost = "Task was destroyed but it is pending! coro=<read() running at /packages/%s/read.py:1>"
    records = [
        logging.LogRecord("asyncio", logging.ERROR, "/lib/asyncio/base_events.py", 1, lost, (package,), None)
        for package in ("orbax", "tensorstore", "mine")
    ]
    assert [is_of_orbax(record) for record in records] == [True, True, False]


def test_unknown_steps_and_empty_folders_are_user_errors(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest() is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoints.find()
    fill(tmp_path / "run", [None, None])
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.find("1") == 1
    for which in ("7", "bset", "-1", "²"):
        with pytest.raises(UserError, match=f"checkpoint '{which}': choose from best, newest, 1, 2"):
            checkpoints.find(which)


def test_a_checkpoint_of_another_network_lists_what_does_not_fit(tmp_path: Path) -> None:
    fill(tmp_path, [None])
    other = {"params": {"layer": {"kernel": jnp.zeros(5)}, "new": {"bias": jnp.zeros(1)}}}
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError) as caught:
        checkpoints.restore_variables(1, abstract(other))
    with pytest.raises(UserError, match="unexpected step"):
        checkpoints.restore_extra(1, {})
    message = str(caught.value)
    assert "missing params/new/bias" in message
    assert "params/layer/kernel is (3,), the model has (5,)" in message


def test_many_differences_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, [None])
    other = {"params": {f"layer{i}": jnp.zeros(1) for i in range(9)}}
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="and 5 more"):
        checkpoints.restore_variables(1, abstract(other))


def test_a_damaged_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    fill(tmp_path, [None, None])
    for file in (tmp_path / "2" / "variables").rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"2: .*remove it to use the one before"):
        checkpoints.restore_variables(2, abstract(variables()))
    checkpoints.restore_variables(1, abstract(variables()))


def test_the_other_reads_of_a_damaged_checkpoint_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", partial(report_unraisable, otherwise=heard.append))

    lines = (
        "async def read(waited):",
        " try: await waited",
        " except BaseException as error: raise OSError from error",
    )
    read_as_orbax: dict[str, Any] = {}
    exec(compile("\n".join(lines), "/packages/orbax/read.py", "exec"), read_as_orbax)

    class Fault:
        def __del__(self) -> None:
            raise OSError("of another kind")

    loop = asyncio.new_event_loop()
    reading = read_as_orbax["read"](asyncio.Future(loop=loop))
    reading.send(None)
    loop.close()
    del reading
    gc.collect()
    assert heard == []
    fault = Fault()
    del fault
    gc.collect()
    assert [str(report.exc_value) for report in heard] == ["of another kind"]


def fill_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def fill_disk_in_between(*_: object, **__: object) -> None:
    fill_disk()


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        pytest.param("save", fill_disk, id="at the start"),
        pytest.param("async_save", fill_disk_in_between, id="while arrays are written"),
    ],
)
def test_a_full_disk_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: Callable[..., object]
) -> None:
    """The half-written folder is not taken for a checkpoint, and saving goes on when there is room again."""
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, call, fault)
        with pytest.raises(UserError, match="No space left on device.*none was saved before; free space"):
            checkpoints.save(1, variables(1), EXTRA)
    checkpoints.save(1, variables(1), EXTRA)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, call, fault)
        with pytest.raises(UserError, match="step 2 could not be saved .*No space left on device.*step 1 is intact"):
            checkpoints.save(2, variables(2), EXTRA)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    restored = checkpoints.restore_variables(checkpoints.latest(), abstract(variables()))
    np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], [1, 2, 3])
    checkpoints.save(2, variables(2), EXTRA)
    assert checkpoints.steps() == [1, 2]
    restored = checkpoints.restore_variables(2, abstract(variables()))
    np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], [2, 3, 4])


def test_readers_change_nothing(tmp_path: Path) -> None:
    """Another process may evaluate a run that is being trained: a save in progress is left alone."""
    fill(tmp_path, [0.5, None, None])
    for unfinished in ("4.tmp", "1.old.tmp", "3.orbax-checkpoint-tmp-7"):
        (tmp_path / unfinished / "variables").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.find("best") == 1
    checkpoints.restore_variables(1, abstract(variables()))
    assert checkpoints.steps() == [1, 2, 3]
    assert sorted(tmp_path.rglob("*")) == before
    assert Checkpoints(tmp_path).steps() == [1, 2, 3]  # The next training tidies up what a killed one has left.
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]


class Killed(BaseException):
    """Nothing that the code handles."""


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (ocp.StandardCheckpointHandler, "save", 2),
        (ocp.StandardCheckpointHandler, "finalize", 1),
        (checkpoint, "write_checksums", 1),
        (checkpoint, "write_json", 1),
        (Path, "rename", 1),  # Of the new checkpoint.
        (Path, "rename", 2),  # Of an older one, which goes.
        (shutil, "rmtree", 2),
    ],
)
def test_a_kill_at_any_point_of_a_save_leaves_whole_checkpoints(tmp_path: Path, monkeypatch, owner, name, call) -> None:
    fill(tmp_path, [0.5, 0.1], keep=1)
    assert Checkpoints(tmp_path, keep=1).steps() == [1, 2]
    wrapped, calls = getattr(owner, name), []

    def dies(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return wrapped(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, dies)
        Checkpoints(tmp_path, keep=1).save(3, variables(3), EXTRA, metrics={METRIC: 0.2})
    for reader in (Checkpoints(tmp_path, read_only=True), Checkpoints(tmp_path, keep=1)):
        assert reader.steps() in ([1, 2], [1, 2, 3], [1, 3]) and reader.find("best") == 1
        for step in reader.steps():
            restored = reader.restore_variables(step, abstract(variables()))
            np.testing.assert_array_equal(restored["params"]["layer"]["kernel"], np.arange(3) + step)
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (3, 4):
        checkpoints.save(step, variables(step), EXTRA)
    assert checkpoints.steps() == [1, 4] and sorted(os.listdir(tmp_path)) == ["1", "4"]


def test_a_checkpoint_that_a_training_removes_while_it_is_read_is_not_damaged(tmp_path: Path) -> None:
    fill(tmp_path, [0.1], keep=1)
    reader = Checkpoints(tmp_path, read_only=True)
    step = reader.find("best")
    Checkpoints(tmp_path, keep=1).save(2, variables(2), EXTRA, metrics={METRIC: 0.2})
    with pytest.raises(UserError, match=r"/1: was removed while it was read, as a training does .*; start again$"):
        reader.restore_variables(step, abstract(variables()))


def test_a_folder_that_cannot_be_made_or_listed_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be created .*; give another --workdir"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(UserError, match="file: cannot be read"):
        Checkpoints(tmp_path / "file", read_only=True).steps()
