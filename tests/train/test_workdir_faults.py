"""What happens to run directories: damaged checkpoints, a full disk, a folder that goes away, two trainers."""

import errno
import fcntl
import gc
import multiprocessing
import operator
import os
import shutil
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from deeplab_jax import checkpoint, files
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.config import base
from deeplab_jax.errors import UserError
from deeplab_jax.files import CHECKSUMS, damage
from deeplab_jax.train import run as run_module
from deeplab_jax.train.loop import train
from deeplab_jax.train.workdir import CONFIG_FILE, LOCK_FILE, lock_workdir
from deeplab_jax.train.writers import Writers
from deeplab_jax.weights.folder import CHECKPOINTS, load
from tests.support.params import first_fast
from tests.support.tiny import assert_same_arrays, quiet, read_checkpoint, read_metrics, run_training, tiny_config

pytestmark = [
    pytest.mark.usefixtures("tiny_networks"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # As `collect_garbage` says.
]

THREE = {"train.keep": 3, "train.checkpoint_every": 2, "train.evaluate_every": 6}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with the checkpoints 2, 4 and 6; to be copied."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run_training(workdir, tiny_config(**THREE))
    assert steps_in(workdir) == [2, 4, 6]
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def steps_in(workdir):
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    return checkpoints.steps()


def truncate_data(folder):
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def remove_metadata(folder):
    (folder / "optimizer" / "_METADATA").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def flip_bits(folder):
    for file in folder.rglob("manifest.ocdbt"):
        file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


def flip_a_bit_of_the_weights(folder):
    """Such a one no format notices: the arrays are stored as they are."""
    flip_a_bit(max((folder / "variables").rglob("d/*"), key=lambda path: path.stat().st_size))


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# Checkpoints.


@pytest.fixture(autouse=True)
def collect_garbage():
    """Let what Orbax drops, a coroutine whose read failed, be found missing here and not in another test."""
    yield
    gc.collect()


@pytest.mark.parametrize(
    "damage", first_fast([flip_a_bit_of_the_weights, truncate_data, remove_metadata, empty, flip_bits], fast=2)
)
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_goes_on(copy, finished, capsys, damage) -> None:
    damage(copy / CHECKPOINTS / "6")
    results = train(tiny_config(**THREE), copy)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("the checkpoint of step 6 is damaged (") and "now called 6.damaged" in printed[0]
    assert printed[1].startswith("resuming from step 4 in ")
    assert results["step"] == 6 and steps_in(copy) == [2, 4, 6]
    assert read_metrics(copy) == read_metrics(finished)
    assert_same_arrays(read_checkpoint(copy, 6), read_checkpoint(finished, 6))


def test_several_damaged_checkpoints_are_passed_over_and_none_left_is_a_user_error(copy, capsys) -> None:
    for step in (4, 6):
        remove_metadata(copy / CHECKPOINTS / str(step))
    assert train(tiny_config(**THREE), copy)["step"] == 6
    assert "resuming from step 2 in " in capsys.readouterr().out
    for step in (2, 4, 6):
        empty(copy / CHECKPOINTS / str(step))
    before = sorted(os.listdir(copy / CHECKPOINTS))
    with pytest.raises(UserError, match=r"checkpoints: every checkpoint is damaged \(step 6: .*step 2: .*backup"):
        run_training(copy, tiny_config(**THREE))
    assert sorted(os.listdir(copy / CHECKPOINTS)) == before  # Nothing is set aside that nothing replaces.


def test_every_flipped_bit_of_a_checkpoint_is_noticed_and_none_where_no_sums_are(copy) -> None:
    folder = copy / CHECKPOINTS / "6"
    files = [path for part in ("variables", "optimizer") for path in (folder / part).rglob("*") if path.is_file()]
    assert len(files) > 10 and not any(damage(folder, part) for part in ("variables", "optimizer"))
    for file in files:
        whole = file.read_bytes()
        if whole:
            flip_a_bit(file)
            name = file.relative_to(folder)
            assert damage(folder, name.parts[0]).startswith(f"not what was written: {name}, 1 of ")
            file.write_bytes(whole)
    flip_a_bit(folder / CHECKSUMS)
    assert damage(folder, "variables") or damage(folder, "optimizer")
    (folder / CHECKSUMS).write_text("[]")
    assert damage(folder, "variables").startswith(CHECKSUMS)
    (folder / CHECKSUMS).unlink()
    assert damage(folder, "variables") == ""
    assert run_training(copy, tiny_config(**THREE)) is None  # A run from before there were any goes on.


def test_metrics_of_what_was_set_aside_are_nobodys(copy) -> None:
    aside = (copy / CHECKPOINTS / "6").rename(copy / CHECKPOINTS / "6.damaged")
    (aside / "metrics" / "metrics").write_text("[]")
    assert load(copy)[2]["step"] == 4
    assert run_training(copy, tiny_config(**THREE))["step"] == 6
    assert (aside / "metrics" / "metrics").exists()


@pytest.mark.parametrize(
    "content", first_fast(['{"miou": NaN}', "", '{"mi', "[]", '{"miou": "high"}', f'{{"miou": {10**400}}}'])
)
def test_damaged_metrics_are_computed_again(copy, finished, content) -> None:
    (copy / CHECKPOINTS / "6" / "metrics" / "metrics").write_text(content)
    with pytest.raises(UserError, match=r"6/metrics/metrics: is damaged .*; remove the folder"):
        load(copy)
    assert run_training(copy, tiny_config(**THREE))["step"] == 6
    repaired, whole = (Checkpoints(run / CHECKPOINTS, read_only=True) for run in (copy, finished))
    assert repaired.metrics(6) == whole.metrics(6) != {}
    assert load(copy)[2]["step"] == 6


def unreadable(reads, unless):
    """`reads`, with an error of a network's disk for each path that holds a text."""

    def failing(file):
        if unless in str(file):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(file))
        return reads(file)

    return failing


@pytest.mark.parametrize(
    ("module", "name", "file"), [(files, "sha256_of", "6/variables"), (checkpoint, "read_json", "6/metrics")]
)
def test_what_cannot_be_read_now_is_not_damaged(copy, monkeypatch, capsys, module, name, file) -> None:
    """Nothing is renamed or removed; once the disk answers again, the run is as it was."""
    before = sorted(str(path) for path in copy.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, unreadable(getattr(module, name), file))
        for use in (load, lambda path: train(tiny_config(**THREE), path)):
            with pytest.raises(UserError, match=r"6.*: cannot be read \(Stale file handle\); .*start again"):
                use(copy)
    assert set(before) <= {str(path) for path in copy.rglob("*")}
    capsys.readouterr()
    assert run_training(copy, tiny_config(**THREE)) is None
    assert load(copy)[2]["step"] == 6


def test_memory_that_is_used_up_is_no_damage(copy, monkeypatch) -> None:
    def restore(*args, **more):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.StandardCheckpointHandler, "restore", restore)
        with pytest.raises(MemoryError):
            train(tiny_config(**THREE), copy)
    assert steps_in(copy) == [2, 4, 6]


def test_readers_wait_for_no_other_process(copy, monkeypatch) -> None:
    """A process that fails on its way to the same call would be waited for."""
    monkeypatch.setattr(checkpoint, "together", None)
    assert steps_in(copy) == [2, 4, 6]


# The disk.


@pytest.mark.parametrize("error", first_fast([errno.ENOSPC, errno.EROFS]))
def test_a_disk_that_takes_no_more_is_a_line_and_keeps_what_is_there(tmp_path, monkeypatch, error) -> None:
    import orbax.checkpoint as ocp

    save = ocp.StandardCheckpointHandler.save

    def failing(self, folder, **options):
        if folder.parent.name.startswith("6"):
            raise OSError(error, os.strerror(error))
        return save(self, folder, **options)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "save", failing)
    with pytest.raises(UserError, match=rf"step 6 could not be saved .*{os.strerror(error)}.*step 3 is intact"):
        run_training(tmp_path, tiny_config())
    assert steps_in(tmp_path) == [3]
    monkeypatch.undo()
    assert run_training(tmp_path, tiny_config())["step"] == 6


@pytest.mark.parametrize("part", first_fast(["checkpoints", "", "pictures"]))
def test_a_run_directory_that_vanishes_is_a_line(tmp_path, monkeypatch, part) -> None:
    report, workdir = run_module.report, tmp_path / "run"

    def vanish(number, *args):
        report(number, *args)
        if number == 5:
            shutil.rmtree(workdir / part)

    monkeypatch.setattr(run_module, "report", vanish)
    if part == "pictures":  # These are made again.
        assert run_training(workdir, tiny_config())["step"] == 6
        return
    with pytest.raises(UserError, match=r"run(/pictures|/checkpoints)?: .*(cannot|could not|vanished)"):
        run_training(workdir, tiny_config())
    assert not (workdir / part / CHECKPOINTS).exists() and not (workdir / CHECKPOINTS).exists()


@pytest.mark.parametrize("part", first_fast(["_jsonl", "_events._records._writer"]))
def test_a_disk_that_fills_up_under_the_record_is_a_line(tmp_path, part) -> None:
    """So it is in the step that meets it; both files are closed, and closing them, which writes again, adds nothing."""
    writers = Writers(tmp_path, start=0, steps=1, console=quiet(), config=base())
    *path, name = part.split(".")
    owner = operator.attrgetter(".".join(path))(writers) if path else writers
    getattr(owner, name).close()
    setattr(owner, name, Path("/dev/full").open("w" if part == "_jsonl" else "wb"))  # noqa: SIM115
    with pytest.raises(UserError, match=f"record of the run .*{os.strerror(errno.ENOSPC)}"), writers:
        writers.scalars(1, {"loss": 1.0}, prefix="train")
    assert writers._jsonl.closed and writers._events._records._writer.closed


def test_a_record_that_cannot_be_begun_or_ended_is_a_line(tmp_path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(UserError, match="record of the run cannot be written"):
        Writers(tmp_path, start=0, steps=1, console=quiet(), config=base())
    (tmp_path / "tensorboard").unlink()
    writers = Writers(tmp_path, start=0, steps=1, console=quiet(), config=base())
    writers._jsonl.close()
    writers._jsonl = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(UserError, match=f"record of the run .*{os.strerror(errno.ENOSPC)}"), writers:
        writers._jsonl.write("left for the end")
    assert writers._events._records._writer.closed


@pytest.mark.parametrize("start", [0, 3])
def test_events_are_the_records_that_tensorboard_reads(tmp_path, start) -> None:
    with Writers(tmp_path, start=start, steps=9, console=quiet(), config=base()) as writers:
        writers.scalars(4, {"loss": 0.5, "speed": 2.0}, prefix="train")
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    events = []
    with file.open("rb") as stream:
        while head := stream.read(8):
            check, content = stream.read(4), stream.read(*struct.unpack("<Q", head))
            assert (check, stream.read(4)) == tuple(struct.pack("<I", masked_crc32c(part)) for part in (head, content))
            events.append(Event.FromString(content))
    assert events[0].file_version == "brain.Event:2"
    # The first step that TensorBoard hides in older files.
    assert (events[1].step, events[1].session_log.status) == (start + 1, SessionLog.START)
    assert [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in events[2:]] == [
        (4, "train/loss", 0.5),
        (4, "train/speed", 2.0),
    ]


def test_a_first_write_that_fails_leaves_a_directory_that_the_next_start_takes(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(UserError, match=f"run directory .*{os.strerror(errno.ENOSPC)}"):
            run_training(tmp_path, tiny_config())
    assert os.listdir(tmp_path) == [LOCK_FILE]
    (tmp_path / "config.json.7.tmp").write_text('{"half')  # As a process that is killed there leaves it.
    assert run_training(tmp_path, tiny_config())["step"] == 6


def test_a_run_without_its_config_goes_on_as_its_error_message_says(copy) -> None:
    (copy / CONFIG_FILE).write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is damaged .*or delete the file to go on with this config"):
        run_training(copy, tiny_config(**THREE))
    (copy / CONFIG_FILE).unlink()
    assert run_training(copy, tiny_config(**THREE)) is None


# Two trainers.


def hold_lock(workdir, ready, done):
    with lock_workdir(workdir, print):
        ready.set()
        done.wait(60)


def test_a_second_trainer_is_refused_until_the_first_one_is_dead(copy) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=hold_lock, args=(copy, ready, done))
    first.start()
    try:
        assert ready.wait(60)
        before = sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*"))
        with pytest.raises(UserError, match=r"run: another process trains in this directory; wait for it"):
            run_training(copy, tiny_config(**THREE))
        assert sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*")) == before
        load(copy)  # Readers are welcome.
    finally:
        first.kill()  # The lock dies with the process, whatever way it ends.
        first.join()
    assert run_training(copy, tiny_config(**THREE)) is None


def test_of_two_that_start_at_once_one_is_refused(tmp_path) -> None:
    """The other has made its lock, and not yet written anything else."""
    with (
        lock_workdir(tmp_path, print),
        pytest.raises(UserError, match="another process trains in this directory"),
    ):
        run_training(tmp_path, tiny_config())
    assert os.listdir(tmp_path) == [LOCK_FILE]
    assert run_training(tmp_path, tiny_config())["step"] == 6


def test_a_file_system_without_locks_is_said_and_does_not_stop(tmp_path, monkeypatch) -> None:
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said, entered = [], []
    with lock_workdir(tmp_path, said.append):
        entered.append(True)
    assert entered and len(said) == 1 and os.strerror(errno.ENOLCK) in said[0]
    assert (tmp_path / LOCK_FILE).exists()
