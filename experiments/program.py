"""The parser and the exit code of the programs in this folder."""

import functools
from collections.abc import Callable, Sequence

from deeplab_jax.commands import fail
from deeplab_jax.errors import UserError
from deeplab_jax.flags import Parser

Main = Callable[[Sequence[str] | None], int | None]


def parser_of(name: str, about: str | None) -> Parser:
    """Return a parser for `python -m experiments.NAME`; `about` is the module's docstring."""
    return Parser(prog=f"python -m experiments.{name}", description=(about or "").splitlines()[0], allow_abbrev=False)


def exits(run: Main) -> Callable[..., int]:
    """Make a program's `main` return its exit code: 0 where it returns None, and 2 for an error that the user can
    fix.
    """

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            return run(argv) or 0
        except UserError as error:
            return fail(str(error))

    return main
