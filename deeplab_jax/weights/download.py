"""Files from the network: each is fetched once, checked, and kept only when it is complete. An interrupted download
resumes.
"""

import errno
import http.client
import os
import re
import shlex
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from deeplab_jax import files
from deeplab_jax.errors import UserError, in_one_line
from deeplab_jax.files import DISK_ERRORS, locked, sha256_of, write_whole

FOLDER = "DEEPLAB_JAX_WEIGHTS"
MIRRORS = "DEEPLAB_JAX_MIRRORS"
OFFLINE = "DEEPLAB_JAX_OFFLINE"
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
TRIES = 4
"""Attempts at one address; each resumes where the one before broke off."""
PAUSE = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
CHUNK = 2**18
LARGEST = 8 * 2**30
"""Most bytes of a file; no entry of the table has 1 GiB."""

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Return the folder of downloaded weights: `DEEPLAB_JAX_WEIGHTS`, else `weights` in the user's cache.

    Raises:
      UserError: the user has no home for a cache.
    """
    try:
        own = os.environ.get(FOLDER)
        return files.at_home(own) if own else files.cache_folder("weights")
    except RuntimeError:
        raise UserError(f"there is no home folder for downloaded weights; set {FOLDER} to a folder") from None


def is_offline() -> bool:
    """Return whether `DEEPLAB_JAX_OFFLINE` forbids the network."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def fetch(
    file: str,
    addresses: Sequence[str],
    *,
    sha256: str = "",
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> Path:
    """Return a file of the cache; download it if it is not there.

    The mirrors of the user come first (`DEEPLAB_JAX_MIRRORS`: folders or addresses, separated by spaces), then
    `addresses`, in their order. An interrupted download resumes where it stopped. Several processes that want one file
    fetch it once. The SHA-256 of a complete file is written beside it and compared at every later use.

    Args:
      file: its name in the cache and in a mirror.
      addresses: `https://`, `http://` or `file://`.
      sha256: the digits that its SHA-256 must start with; "" if unknown.
      say: receives a line about what is fetched, and about addresses that failed.
      progress: receives (bytes done, bytes in all, 0 if unknown).

    Raises:
      UserError: no address gives the file, it is not the file that was published, or the disk is full.
    """
    folder = cache_folder()
    target = folder / file
    if target.is_file() and _record(target).is_file():  # It is whole; another user may own the folder.
        _check_again(target, sha256)
        return target
    with locked(target.with_name(f"{file}.lock"), "", option=f"folder with {FOLDER}", say=say):
        if target.is_file():
            _check_again(target, sha256)
            return target
        own = [f"{mirror.rstrip('/')}/{file}" for mirror in os.environ.get(MIRRORS, "").split()]
        candidates = [*map(_address, own), *addresses]
        if is_offline():
            candidates = [address for address in candidates if address.startswith("file:")]
        problems: list[_NotHere] = []
        for address in candidates:
            try:
                digest = _download(address, target, sha256=sha256, say=say, progress=progress)
            except _NotHere as problem:
                problems.append(type(problem)(f"{address}: {problem}"))
                say(str(problems[-1]))
                continue
            _keep_record(target, digest)
            os.replace(_part(target), target)
            return target
    raise UserError(_missing(target, addresses, problems))


def recorded_sha256(file: Path) -> str:
    """Return the SHA-256 of a file of the cache, as it was written when the file was complete."""
    return _record(file).read_text("ascii").strip()


class _NotHere(Exception):
    """One address does not give the file; the next may."""


class _OtherFile(_NotHere):
    """An address gives another file than the published one, over a connection that works."""


def _missing(target: Path, addresses: Sequence[str], problems: Sequence[_NotHere]) -> str:
    put = f"download {addresses[0]} elsewhere and put it there as {target.name}"
    if is_offline():
        return f"{target}: not here, and {OFFLINE} is set: {put}, or unset {OFFLINE}"
    last = problems[-1]
    fix = put if isinstance(last, _OtherFile) else f"check the connection, or {put}"
    return f"{target}: cannot be fetched ({last}); {fix}"


def _address(mirror: str) -> str:
    return mirror if "://" in mirror else files.at_home(mirror).absolute().as_uri()


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _keep_record(target: Path, digest: str) -> None:
    write_whole(_record(target), lambda path: path.write_text(f"{digest}\n", "ascii"))


def _check_again(target: Path, sha256: str) -> None:
    """Compare a file of the cache with its published SHA-256, and with the one at its first use."""
    digest = sha256_of(target)
    own = recorded_sha256(target) if _record(target).is_file() else digest
    for known in (sha256, own):
        if not digest.startswith(known):
            raise UserError(
                f"{target}: its SHA-256 begins with {digest[:16]}, and {known[:16]} was expected, so it has changed; "
                f"{_fix(target)}"
            )
    if not _record(target).is_file():  # The user has put it here.
        _keep_record(target, digest)


def fix_of(file: Path) -> str:
    """Return the end of a message about a file that cannot be used: "" unless `fetch` has fetched it."""
    return f"; {_fix(file)}" if _record(file).is_file() else ""


def _fix(file: Path) -> str:
    there = [shlex.quote(str(one)) for one in (file, _record(file)) if one.is_file()]
    what = "the file and its record" if len(there) > 1 else "the file"
    return f"remove {what}, and the same command fetches it again: rm {' '.join(there)}"


def _download(
    address: str, target: Path, *, sha256: str, say: Callable[[str], object], progress: Progress | None
) -> str:
    """Complete the part file of `target` from one address, and return its SHA-256."""
    part = _part(target)
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _receive(address, part, checked=bool(sha256), say=say, progress=progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # The part is as long as the file: a process was killed after the last byte.
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise _NotHere(f"HTTP status {error.code} {error.reason}") from None
            problem = f"HTTP status {error.code} {error.reason}"
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError):
                raise _NotHere("no such file") from None
            problem = str(error.reason)
        except _NotHere:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename:  # The disk, not the network.
                raise UserError(f"{part}: cannot be written ({error.strerror}); free space, or set {FOLDER}") from None
            problem = in_one_line(error)
        else:
            digest = sha256_of(part)
            if digest.startswith(sha256):
                return digest
            part.unlink()
            raise _OtherFile(f"its SHA-256 begins with {digest[:16]}, and {sha256[:16]} was published")
    raise _NotHere(problem)


def _receive(
    address: str, part: Path, *, checked: bool, say: Callable[[str], object], progress: Progress | None
) -> None:
    """Append to the part file what it lacks of an address.

    Unless the content will be `checked`, the address must say how long the file is, so that no part passes for all. A
    file beside it holds the address and the entity tag. Without a tag nobody knows whether both parts are of one
    file, so the download starts again.
    """
    tag_file = part.with_name(f"{part.name}.tag")
    done = part.stat().st_size if part.is_file() and tag_file.is_file() else 0
    from_there, _, validator = tag_file.read_text("utf-8").partition("\n") if done else ("", "", "")
    request = urllib.request.Request(address, headers={"User-Agent": "deeplab_jax", "Accept-Encoding": "identity"})
    if done and from_there == address and validator:
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", validator)
    else:
        done = 0
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        goes_on = done > 0 and response.status == 206 and _first_byte(response) == done
        done = done if goes_on else 0
        left = int(response.headers.get("Content-Length") or 0)
        total = done + left if left else 0
        if not (total or checked or response.headers.get("Transfer-Encoding") == "chunked"):
            raise _NotHere(
                "it does not say how long the file is, so a complete download cannot be told from a broken one"
            )
        if total > LARGEST:
            raise _NotHere(f"{total} bytes, and {LARGEST} are the limit")
        say(f"fetching {address}" + (f", {total / 2**20:.1f} MiB" if total else "") + (" (resumed)" if done else ""))
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        try:
            free = shutil.disk_usage(part.parent).free
            if left > free:
                raise OSError(errno.ENOSPC, f"{left} bytes are needed, {free} are free", str(part))
            tag_file.write_text(f"{address}\n{'' if validator.startswith('W/') else validator}", "utf-8")
            with part.open("ab" if goes_on else "wb") as stream:
                while chunk := response.read(CHUNK):
                    stream.write(chunk)
                    done += len(chunk)
                    if done > LARGEST:
                        raise _NotHere(f"more than {LARGEST} bytes")
                    if progress is not None:
                        progress(done, total)
        except OSError as error:
            if error.errno in DISK_ERRORS:  # The file failed, not the connection: name it.
                raise OSError(error.errno, error.strerror, str(part)) from None
            raise
    if total and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
    tag_file.unlink(missing_ok=True)


def _first_byte(response: http.client.HTTPResponse) -> int:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return int(found[1]) if found else -1
