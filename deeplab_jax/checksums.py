"""What the files of a folder held when they were written, so that one that a disk has changed since is found out."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from deeplab_jax.jsonfile import read_json, write_json

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path, parts: Iterable[str]) -> None:
    """Write `checksums.json`, the SHA-256 of every file in some sub-folders by its path, whole or not at all.

    Raises:
      OSError: a file cannot be read, or this one not be written.
    """
    sums = {name: digest for part in parts for name, digest in _sums(folder, part).items()}
    write_json(folder / CHECKSUMS, sums)


def damage(folder: Path, part: str) -> str:
    """Say in a few words which files of a sub-folder are not what was written; "" where all are, or no sums are there:
    a process may have been killed before it wrote them.
    """
    try:
        wanted = {name: digest for name, digest in read_json(folder / CHECKSUMS).items() if name.startswith(f"{part}/")}
        found = _sums(folder, part)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as error:
        return f"{CHECKSUMS}: {error}"
    changed = [name for name, digest in wanted.items() if found.get(name) != digest]
    return f"not what was written: {changed[0]}, {len(changed)} of {len(wanted)} files" if changed else ""


def _sums(folder: Path, part: str) -> dict[str, str]:
    files = sorted(file for file in (folder / part).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): _digest(file) for file in files}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
