"""Text files that list the examples of a split, written by whatever editor or program.

A list may be UTF-8, or UTF-16 with its mark (as PowerShell and some editors write it), with any line ends. A line names
an image, or an image and its mask: by name, with or without a suffix, with or without folders, of this machine or of
another, with slashes or backslashes, with or without quotes.
"""

import codecs
import collections
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.data.image_files import IMAGE_SUFFIXES
from deeplab_jax.data.source import normal_name
from deeplab_jax.errors import UserError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Line(NamedTuple):
    """A line of a list that is not blank: its number, from 1, and its text."""

    number: int
    text: str


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a text file, without blank ones and those that start with `#`.

    Raises:
      UserError: the file does not exist, holds no such line, or is not text.
    """
    try:
        if not path.is_file():  # A pipe may never have a writer.
            raise FileNotFoundError(path)
        text = _decode(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list of the split; add it (one name per line), or correct --config.data.dir or "
            "the name of the split"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: cannot read the list of the split ({error}); save it as UTF-8 text, one name per line"
        ) from None
    lines = [Line(number, line.strip()) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1)]
    lines = [line for line in lines if line.text and not line.text.startswith("#")]
    if not lines:
        raise UserError(f"{path}: the list names nothing; write one name per line")
    return lines


def read_names(path: Path) -> list[str]:
    """Return the names in a published list: the stem of the first word of each line.

    Raises:
      UserError: as `read_lines`.
    """
    return [normal_name(_stem(line.text.split()[0].rpartition("/")[2])) for line in read_lines(path)]


class Names:
    """Files by the texts with which a list may name them.

    Args:
      files: name of the example -> file.
      root: folder of the data set; a list may name files from there.
    """

    def __init__(self, files: Mapping[str, Path], root: Path) -> None:
        self._names = {name: name for name in files}
        for name, path in files.items():
            for place in (os.path.relpath(path, root), os.path.abspath(path), os.path.realpath(path)):
                self._names.setdefault(_stem(_tidy(place)), name)
        stems = collections.Counter(normal_name(path.stem) for path in files.values())
        self._stems = {stem: name for name, path in files.items() if stems[stem := normal_name(path.stem)] == 1}

    def find(self, text: str, *, whole: bool = False) -> str | None:
        """Return the name of the example whose file a text names, or None.

        Unless `whole`, folders that are not here are passed over from the left, so a list of another machine works.
        """
        for spelled in dict.fromkeys((_tidy(text), _tidy(_unquoted(text)))):
            for candidate in (spelled, _stem(spelled)):
                if candidate in self._stems and "/" not in candidate and candidate not in self._names:
                    return self._stems[candidate]
                parts = candidate.split("/")
                for start in range(1 if whole else len(parts)):
                    if (name := self._names.get("/".join(parts[start:]))) is not None:
                        return name
        return None


def find_listed(file: Path, images: Names, masks: Names) -> list[tuple[str, str, int]]:
    """Return the names of image and mask for each line of a list, and its number, in its order.

    A whole line that names a file here wins; then a split of the line into two, an image and a mask; then a whole line
    that names a file of another folder; then a first word, if only numbers follow. An image alone has the mask of
    its own name.

    Raises:
      UserError: as `read_lines`; a line that names no image; the message gives its number.
    """
    listed = []
    for line in read_lines(file):
        found = _find(line.text, images, masks)
        if found is None:
            raise UserError(
                f"{file}, line {line.number}: {line.text!r:.200} names no image here, whole or as an image and a mask; "
                "correct the line, or add the file"
            )
        listed.append((*found, line.number))
    return listed


def _find(text: str, images: Names, masks: Names) -> tuple[str, str] | None:
    if (whole := images.find(text, whole=True)) is not None:
        return whole, whole
    for first, second in _halves(text):
        image, mask = images.find(first), masks.find(second)
        if image is not None and mask is not None:
            return image, mask
    if (whole := images.find(text)) is not None:
        return whole, whole
    first, _, rest = text.partition(" ")
    if re.fullmatch(r"[\s\d.+-]*", rest) and (image := images.find(first)) is not None:
        return image, image
    return None


def _halves(text: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to read a line as two names."""
    for at in re.finditer(r"\s*[\t,;]\s*|\s+", text):
        yield text[: at.start()], text[at.end() :]


def _decode(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    text = data.decode(encoding)
    if "\0" in text:
        raise ValueError("it holds zero bytes")
    return text


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", os.path.expanduser(text.strip()).replace("\\", "/").removeprefix("./"))


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _stem(word: str) -> str:
    # A list may name files ("a.jpg", "/JPEGImages/a.jpg") or examples ("a", and also "scene.7"): only the suffix of an
    # image, or of its outlines, is cut off.
    stem, dot, suffix = word.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in (*IMAGE_SUFFIXES, ".json") else word
