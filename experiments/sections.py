"""Sections of the README that a command writes, each between two marks."""

from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole


@dataclass(frozen=True)
class Section:
    """What stands between two lines of a file."""

    start: str
    end: str

    def replace(self, text: str, content: str) -> str:
        """Return a text with the section's content replaced.

        Raises:
          UserError: a mark is missing, or there more than once.
        """
        if text.count(self.start) != 1 or text.count(self.end) != 1 or text.index(self.start) > text.index(self.end):
            raise UserError(
                f"the file has no section between {self.start!r} and {self.end!r}; add the two lines, each once"
            )
        before, after = text.split(self.start)[0], text.split(self.end)[1]
        return f"{before}{self.start}\n{content}\n{self.end}{after}"

    def write(self, file: Path, content: str) -> None:
        """Replace the section's content in a file.

        Raises:
          UserError: the file cannot be read or written, or has no such section.
        """
        try:
            text = self.replace(file.read_text(encoding="utf-8"), content)
            write_whole(file, lambda fresh: fresh.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; give --write a file that can be written") from None
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
