"""Downloads: whole or not at all, checked, gone on with, from the first address that works."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights import download
from deeplab_jax.weights.download import FOLDER, MIRRORS, OFFLINE, cache_folder, fetch
from tests.support.server import FileServer, serve

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "net-abc.pth"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path / "user's cache"))
    monkeypatch.delenv(MIRRORS, raising=False)
    monkeypatch.delenv(OFFLINE, raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with serve({NAME: CONTENT}) as running:
        yield running


def get(
    server: FileServer, *, sha256: str = SHA256[:8], addresses: tuple[str, ...] | None = None
) -> tuple[Path, list[str]]:
    said: list[str] = []
    return fetch(NAME, addresses or (server.address + NAME,), sha256=sha256, say=said.append), said


def test_a_file_is_fetched_once_and_kept_with_its_hash(server):
    file, said = get(server)
    assert file == cache_folder() / NAME
    assert file.read_bytes() == CONTENT
    assert Path(f"{file}.sha256").read_text() == SHA256 + "\n"
    assert said == [f"fetching {server.address}{NAME}, 1.0 MiB"]
    assert get(server) == (file, [])
    assert len(server.requests) == 1
    assert sorted(path.name for path in file.parent.iterdir()) == [NAME, f"{NAME}.lock", f"{NAME}.sha256"]


def test_progress_counts_bytes(server):
    seen: list[tuple[int, int]] = []
    fetch(NAME, (server.address + NAME,), say=lambda line: None, progress=lambda *now: seen.append(now))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_cut_connection_goes_on_where_it_broke_off(server):
    server.faults[NAME] = ("cut", 300_000, 2)
    file, said = get(server)
    assert file.read_bytes() == CONTENT
    assert server.requests == [(NAME, ""), (NAME, "bytes=300000-"), (NAME, "bytes=600000-")]
    assert said[-1].endswith("(resumed)")


def test_without_an_entity_tag_it_starts_again(server):
    server.tags = False
    server.faults[NAME] = ("cut", 300_000, 1)
    file, _ = get(server)
    assert file.read_bytes() == CONTENT
    assert server.requests == [(NAME, ""), (NAME, "")]


def test_a_file_that_changed_in_between_is_not_put_together_from_two(server):
    """The server answers the whole new file because the tag is another."""
    server.faults[NAME] = ("cut", 100_000, 4)
    with pytest.raises(UserError, match="the connection ended after"):
        get(server)
    server.faults.clear()
    server.files[NAME] = CONTENT[::-1]
    file, _ = get(server, sha256="")
    assert file.read_bytes() == CONTENT[::-1]


def test_a_later_start_goes_on(server):
    server.faults[NAME] = ("cut", 100_000, 4)
    with pytest.raises(UserError, match=r"ended after 400000 of 1048576 bytes\); check the connection, or download "):
        get(server)
    server.requests.clear()
    get(server)
    assert server.requests == [(NAME, "bytes=400000-")]


def test_a_part_that_is_whole_is_fetched_anew(server):
    """A process may be killed after the last byte; a server refuses to go on from there."""
    server.faults[NAME] = ("cut", 100_000, 4)
    with pytest.raises(UserError, match="ended after"):
        get(server)
    server.requests.clear()
    (cache_folder() / f"{NAME}.part").write_bytes(CONTENT)
    assert get(server)[0].read_bytes() == CONTENT
    assert server.requests == [(NAME, f"bytes={len(CONTENT)}-"), (NAME, "")]


def test_another_file_than_the_published_one_is_refused(server):
    with pytest.raises(UserError) as caught:
        get(server, sha256="12345678")
    assert str(caught.value) == (
        f"{cache_folder() / NAME}: cannot be fetched ({server.address}{NAME}: its SHA-256 begins with {SHA256[:16]}, "
        f"and 12345678 was published); download {server.address}{NAME} elsewhere and put it there as {NAME}"
    )
    assert not (cache_folder() / NAME).exists()
    assert not (cache_folder() / f"{NAME}.part").exists()


def test_a_file_that_changes_in_the_cache_is_noticed_and_the_printed_fix_works(server):
    file, _ = get(server, sha256="")
    file.write_bytes(CONTENT[:-1] + b"x")
    for _ in range(2):  # The same command again does not trust it.
        with pytest.raises(
            UserError, match="so it has changed; remove the file and its record, and the same"
        ) as caught:
            get(server, sha256="")
    fix = str(caught.value).rpartition(": ")[2]
    subprocess.run(fix, shell=True, check=True)
    assert get(server, sha256="")[0].read_bytes() == CONTENT


def test_a_file_that_the_user_puts_there_is_judged_by_the_published_hash(server):
    """A truncated one first, then the whole one."""
    cache_folder().mkdir(parents=True)
    file = cache_folder() / NAME
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"remove the file, and the same command fetches it again: rm .*{NAME}'$"):
        get(server)
    file.write_bytes(CONTENT)
    assert get(server) == (file, []) and server.requests == []
    assert get(server) == (file, [])


def test_without_a_length_only_a_published_hash_tells_whether_all_came(server):
    server.faults[NAME] = ("no length",)
    with pytest.raises(UserError, match="it does not say how long the file is"):
        get(server, sha256="")
    assert get(server)[0].read_bytes() == CONTENT


def test_what_is_here_needs_no_lock(server, monkeypatch):
    file, _ = get(server)
    monkeypatch.setattr(download, "locked", None)
    assert get(server) == (file, [])


def test_without_a_home_the_folder_has_to_be_named(monkeypatch):
    for name in (FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UserError, match=f"no home folder for downloaded weights; set {FOLDER} to a folder"):
        cache_folder()


def test_mirrors_come_first_and_the_next_address_helps(server, monkeypatch, tmp_path):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv(MIRRORS, f"{tmp_path / 'mirror'} {server.address}missing")
    file, said = get(server)
    assert said[0] == f"{(tmp_path / 'mirror' / NAME).as_uri()}: no such file"
    assert said[1] == f"{server.address}missing/{NAME}: HTTP status 404 Not Found"
    assert said[2].startswith(f"fetching {server.address}{NAME}, ")
    file.unlink()
    (tmp_path / "mirror" / NAME).write_bytes(CONTENT)
    server.requests.clear()
    file, said = get(server)
    assert file.read_bytes() == CONTENT
    assert said == [f"fetching {(tmp_path / 'mirror' / NAME).as_uri()}, 1.0 MiB"]
    assert server.requests == []


def test_redirects_are_followed(server):
    server.faults["old.pth"] = ("redirect", NAME)
    file, _ = get(server, addresses=(server.address + "old.pth",))
    assert file.read_bytes() == CONTENT


def test_a_404_names_the_address_and_where_to_put_the_file(server):
    with pytest.raises(UserError) as caught:
        get(server, addresses=(server.address + "gone.pth",))
    assert str(caught.value) == (
        f"{cache_folder() / NAME}: cannot be fetched ({server.address}gone.pth: HTTP status 404 Not Found); check the "
        f"connection, or download {server.address}gone.pth elsewhere and put it there as {NAME}"
    )
    assert len(server.requests) == 1  # What is not there does not come by asking again.


def test_a_busy_server_is_asked_again(server):
    server.faults[NAME] = ("status", 503)
    with pytest.raises(UserError, match="HTTP status 503"):
        get(server)
    assert len(server.requests) == download.TRIES


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server, monkeypatch):
    server.files[NAME] = CONTENT[: 20 * 2**10]
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.faults[NAME] = ("slow", 0.03)  # 0.6 s in all, but never 0.3 s without a byte
    assert get(server, sha256="")[0].stat().st_size == 20 * 2**10
    (cache_folder() / NAME).unlink()
    server.faults[NAME] = ("slow", 1.0)
    with pytest.raises(UserError, match="timed out"):
        get(server, sha256="")


def test_offline_says_what_is_missing_and_where_to_put_it(server, monkeypatch, tmp_path):
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(UserError) as caught:
        get(server)
    assert str(caught.value) == (
        f"{cache_folder() / NAME}: not here, and {OFFLINE} is set: download {server.address}{NAME} elsewhere and put "
        f"it there as {NAME}, or unset {OFFLINE}"
    )
    assert server.requests == []
    monkeypatch.setenv(MIRRORS, str(tmp_path))  # A folder without the file, which is no matter of the connection.
    with pytest.raises(UserError, match=f"not here, and {OFFLINE} is set: download"):
        get(server)
    (cache_folder() / NAME).write_bytes(CONTENT)
    assert get(server)[0].read_bytes() == CONTENT  # As it says.


def test_a_full_disk_is_one_line(server, monkeypatch):
    usage = download.shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=rf"net-abc.pth.part: cannot be written \({len(CONTENT)} bytes are needed"):
        get(server)


def test_a_disk_that_fills_up_on_the_way_is_one_line(server, monkeypatch):
    def full(done, total):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device\); free space, or set DEEPLAB_JAX_WEIGHTS"):
        fetch(NAME, (server.address + NAME,), say=lambda line: None, progress=full)


def test_a_file_that_claims_too_much_is_refused(server, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", len(CONTENT) - 1)
    with pytest.raises(UserError, match="1048576 bytes, and 1048575 are the limit"):
        get(server)


def test_two_processes_fetch_one_file_once(server):
    server.files[NAME] = CONTENT[: 100 * 2**10]
    server.faults[NAME] = ("slow", 0.005)
    code = (
        "import sys; from deeplab_jax.weights.download import fetch; "
        "print(fetch(sys.argv[1], (sys.argv[2],), say=lambda line: None).stat().st_size)"
    )
    command = [sys.executable, "-c", code, NAME, server.address + NAME]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [b"102400\n", b"102400\n"]
    assert len(server.requests) == 1
