"""Which files `predict` reads, and what their predictions are called."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.data.source import IMAGE_SUFFIXES
from deeplab_jax.errors import UserError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


class Found(NamedTuple):
    """A file to predict.

    Attributes:
      path: the file.
      name: name of its prediction without suffix; for a file in a named folder, with the folders between: "sub/a".
    """

    path: Path
    name: str


def find_images(paths: Iterable[str | Path], *, out: str | Path | None = None) -> list[Found]:
    """Return the named files, and the images in the named folders and all folders below, sorted within each folder.

    Hidden files and folders are left out, and so is the folder `out`, which may hold older predictions. A folder is
    visited once, by its own path rather than that of a link. Videos are found only by their own names.

    Raises:
      UserError: a path that does not exist, or a folder without images.
    """
    found: list[Found] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = [Found(file, str(file.relative_to(path).with_suffix(""))) for file in walk(path, skip=out)]
            if not images:
                raise UserError(f"{path}: no image in this folder; give one that holds JPEG or PNG files")
            found += images
        elif path.exists():
            found.append(Found(path, path.stem))
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
    return list(dict.fromkeys(found))


def is_video(path: Path) -> bool:
    """Return whether the name of a file is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def walk(root: Path, *, skip: str | Path | None = None) -> list[Path]:
    """Return the image files of a folder and of those below it, sorted by folder and name; see `find_images`."""
    seen = {os.path.realpath(skip)} if skip is not None else set()
    seen.discard(os.path.realpath(root))
    folders, images = [root], list[Path]()
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # Links come last.
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); allow it, or name its files") from None
        for entry in visible:
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                images.append(Path(entry.path))
    return sorted(images, key=lambda file: (file.parent.parts, file.name))
