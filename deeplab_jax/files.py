"""Files from other people, and files that must be complete: paths, reading JSON, writing, locking, checksums."""

import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError

CHECKSUMS = "checksums.json"
TEMPORARY = ".tmp"
"""End of the name of a file that is not complete yet."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of the system that say that a folder cannot be written."""
DEEPEST = 64
"""Most levels of nested lists and objects. Code that visits them recurses as deeply."""
MAX_BYTES = 64 * 2**20
"""Largest size of a file, in bytes. A run's configuration has a few thousand."""


def at_home(path: str | os.PathLike[str]) -> Path:
    """Return a path in which a `~` at the start is the home folder, as in a shell."""
    return Path(os.path.expanduser(path))


def with_home(word: str) -> str:
    """Return an argument in which a `~` at the start of a path is the home folder; shells leave it after a "="."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{os.path.expanduser(value)}"


def read_json(file: Path, *, limit: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file, whose author may be anybody.

    Args:
      file: in UTF-8.
      limit: most bytes that it may have.

    Raises:
      OSError: it does not exist, cannot be read, or is not a regular file (which may have no end).
      ValueError: it is too large, not UTF-8, not JSON, or nested too deeply.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    if status.st_size > limit:
        raise ValueError(f"{status.st_size} bytes, and {limit} are the limit")
    return parse_json(file.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Return the content of a JSON text.

    Raises:
      ValueError: it is not JSON, nested more than `DEEPEST` levels deep, or holds half a surrogate pair.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        inner = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in inner if isinstance(item, dict | list)]
    if level:
        raise ValueError("nested too deeply")
    if "\\ud" in text.lower():  # A text with half a pair of these cannot be written anywhere.
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def cache_folder(name: str) -> Path:
    """Return this package's folder of that name in the user's cache: `XDG_CACHE_HOME`, else `~/.cache`.

    Raises:
      RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "deeplab_jax", name)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path beside `file` for writing, and at the end replace `file` by the written file at once.

    So `file` is the old one or the new one, never half of it; if the block fails, it is the old one. A killed process
    may leave the other file, whose name ends in `TEMPORARY`. A device or a pipe, such as `/dev/stdout`, is written to.

    Raises:
      OSError: it cannot be written.
    """
    if file.exists() and not file.is_file():
        yield file
        return
    fresh = file.with_name(f"{file.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield fresh
        os.replace(fresh, file)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def make_folder(folder: Path, *, option: str = "--out") -> None:
    """Create a folder that an option of the command line names, or raise a UserError if files cannot be written
    there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another {option}") from None


def write_json(file: Path, content: Any) -> None:
    """Write a file, completely or not at all; when this returns, it is on the disk.

    Raises:
      OSError: it cannot be written.
    """
    with replacing(file) as fresh:
        _fill_json(fresh, content)


def save_json(path: str | Path, content: Any) -> Path:
    """Write a JSON file that the user named, as `write_whole` does."""
    return write_whole(path, lambda fresh: _fill_json(fresh, content))


def _fill_json(file: Path, content: Any) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file that the user named, completely or not at all; create its folder if it does not exist.

    Raises:
      UserError: it cannot be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as fresh:
            write(fresh)
    except OSError as error:
        if file.is_dir():
            raise UserError(f"{file}: is a folder; give the path of a file") from None
        raise UserError(
            f"{file}: cannot be written ({error.strerror or error}); free space or choose another path"
        ) from None
    return file


@contextmanager
def locked(file: Path, busy: str, *, option: str, say: Callable[[str], Any] = print) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends, for whatever reason.

    It is one system call. The package filelock tries again and again while it waits. On a file system without locks it
    leaves a file, which after a kill stops the next process.

    Args:
      file: created if it does not exist, with its folder.
      busy: the message if another process holds the lock; "" waits for its release.
      option: option of the command line that gives another folder.
      say: receives a line if the file system has no locks; the block then runs without one.

    Raises:
      UserError: another process holds the lock, or the file cannot be created.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); give another {option}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError as error:  # Some network file systems have none.
            say(
                f"note: {file.parent} cannot be locked ({error.strerror}), so nothing keeps a second process out; "
                "make sure that there is none"
            )
        yield


def write_checksums(folder: Path, parts: Iterable[str]) -> None:
    """Write `checksums.json`, completely or not at all: the SHA-256 of every file in some sub-folders, by its path.

    Raises:
      OSError: a file cannot be read, or this one not be written.
    """
    sums = {name: digest for part in parts for name, digest in _sums(folder, part).items()}
    write_json(folder / CHECKSUMS, sums)


def damage(folder: Path, part: str) -> str:
    """Return in a few words which files of a sub-folder have changed since they were written, "" if none has.

    It is also "" without sums: a process may have been killed before it wrote them.

    Raises:
      OSError: a file cannot be read, which says nothing about its content.
    """
    try:
        wanted = {name: digest for name, digest in read_json(folder / CHECKSUMS).items() if name.startswith(f"{part}/")}
        found = _sums(folder, part)
    except FileNotFoundError:
        return ""
    except (ValueError, AttributeError) as error:
        return f"{CHECKSUMS}: {error}"
    changed = [name for name, digest in wanted.items() if found.get(name) != digest]
    return f"not what was written: {changed[0]}, {len(changed)} of {len(wanted)} files" if changed else ""


def _sums(folder: Path, part: str) -> dict[str, str]:
    files = sorted(file for file in (folder / part).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
      OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
