"""Writes the results of experiments: Markdown tables, and the sections of a page that a command keeps up to date."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_jax import files
from deeplab_jax.errors import UserError

PAGE = "experiments/results/README.md"  # of the results, with the sections that commands write


def markdown_row(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table. The cells must be Markdown; `escape` makes it from a text."""
    return f"| {' | '.join(cells)} |"


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[str]], *, numbers: int = 0) -> str:
    """Return a Markdown table. The last `numbers` columns hold numbers, and are aligned to the right."""
    rule = "|" + "---|" * (len(head) - numbers) + "---:|" * numbers
    return "\n".join([markdown_row(head), rule, *map(markdown_row, rows)])


def escape(text: str) -> str:
    """Return a text on one line in which nothing is mark-up, so that it fits into a cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


@dataclass(frozen=True)
class Section:
    """The part of a file between two given lines."""

    start: str
    end: str

    def replace(self, text: str, content: str) -> str:
        """Return a text with the section's content replaced.

        Raises:
          UserError: one of the two lines is missing, or is there more than once.
        """
        if text.count(self.start) != 1 or text.count(self.end) != 1 or text.index(self.start) > text.index(self.end):
            raise UserError(
                f"the file has no section between {self.start!r} and {self.end!r}; add the two lines, each once"
            )
        before, after = text.split(self.start)[0], text.split(self.end)[1]
        return f"{before}{self.start}\n{content}\n{self.end}{after}"

    def write(self, file: Path | None, content: str) -> None:
        """Replace the section's content in a file; do nothing where there is none.

        Raises:
          UserError: the file cannot be read or written, or has no such section.
        """
        if file is None:
            return
        try:
            text = self.replace(file.read_text(encoding="utf-8"), content)
            files.write_whole(file, lambda fresh: fresh.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; give --write a file that can be written") from None
        except UserError as error:
            raise UserError(f"{file}: {error}") from None


def add_write(parser: argparse.ArgumentParser, page: str) -> None:
    """Add the flag `--write FILE`, whose file has a `Section`."""
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"write into the section of this file, such as {page}"
    )
