"""Which files `predict` reads, and what their predictions are called."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.data.source import walk_files
from deeplab_jax.errors import UserError
from deeplab_jax.files import at_home

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
    """Return the named files, and the images in the named folders and all folders below; see `walk_files`.

    The folder `out` is left out, because it may hold older predictions. Videos are found only by their own names.

    Raises:
      UserError: a path that does not exist, or a folder without images.
    """
    found: list[Found] = []
    for path in map(at_home, paths):
        if path.is_dir():
            images = [Found(file, str(file.relative_to(path).with_suffix(""))) for file in walk_files(path, skip=out)]
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
