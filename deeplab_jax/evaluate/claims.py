"""Which file is written for which image: none is written twice, and none is written over what is read."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from deeplab_jax.errors import UserError


class Claims:
    """The files of a folder, each with the image, video or example for which it is written.

    Args:
      folder: where they are written.
      inputs: files that are never overwritten.
      fix: what to do if two want one file.
      apart: whether no file is written into a folder that has an input.
    """

    def __init__(self, folder: Path, inputs: Iterable[str | Path], *, fix: str, apart: bool = False) -> None:
        self._folder, self._fix = folder, fix
        self._inputs = {Path(each).resolve() for each in inputs}
        self._folders = {path.parent for path in self._inputs} if apart else set()
        self._owners: dict[str, str] = {}

    def claim(self, owner: str, files: Sequence[str]) -> None:
        """Give files, relative to the folder, to one owner; or raise a UserError if one is another's or an input."""
        paths = [self._folder / file for file in files]
        for file, path in zip(files, paths, strict=True):
            if (other := self._owners.setdefault(file, owner)) != owner:
                raise UserError(f"{owner}: its prediction would overwrite that of {other} ({file}); {self._fix}")
            if path.resolve() in self._inputs:
                raise UserError(f"{path}: an input that a prediction would overwrite; give another --out")
        if beside := next((path for path in paths if path.resolve().parent in self._folders), None):
            raise UserError(f"{beside}: a prediction beside the images that are read; give another --out")

    def owner(self, file: str) -> str | None:
        """Return for what a file is written, or None."""
        return self._owners.get(file)
