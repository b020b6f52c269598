"""Files that are whole or not there, and the lock."""

import errno
import os
import threading
from pathlib import Path

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.files import TEMPORARY, locked, read_json, replacing, write_json, write_whole


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(KeyError), replacing(file) as fresh:
        fresh.write_text("half")
        assert read_json(file) == {"a": 1}
        assert fresh.parent == tmp_path and fresh.suffix == TEMPORARY
        raise KeyError
    assert read_json(file) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]
    with replacing(file) as fresh:
        fresh.write_text("[2]")
    assert read_json(file) == [2] and os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.bin"
    assert write_whole(file, lambda fresh: fresh.write_bytes(b"old")) == file

    def fill(fresh: Path) -> None:
        fresh.write_bytes(b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"a\.bin: cannot be written \(No space left on device\)"):
        write_whole(file, fill)
    assert file.read_bytes() == b"old" and os.listdir(file.parent) == ["a.bin"]


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: is a folder; give the path of a file$"):
        write_whole(tmp_path, lambda fresh: fresh.write_bytes(b"new"))


def test_a_pipe_or_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, lambda file: file.write_bytes(b"whole"))
    assert os.read(reader, 9) == b"whole" and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]
    os.close(reader)


def test_a_folder_that_is_none_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "file" / "a", lambda fresh: fresh.touch())
    with pytest.raises(OSError, match="Not a directory"):
        write_json(tmp_path / "file" / "a", {})


def test_a_lock_refuses_or_waits(tmp_path: Path) -> None:
    file, entered = tmp_path / "new" / "lock", threading.Event()

    def wait() -> None:
        with locked(file, "", option="--out"):
            entered.set()

    with locked(file, "busy", option="--out"):
        with pytest.raises(UserError, match="busy"), locked(file, "busy", option="--out"):
            pass
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.2)
    waiting.join(10)
    assert entered.is_set()
