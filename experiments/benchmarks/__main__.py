"""Measure this package against its peers in PyTorch, and write the tables of `experiments/benchmarks/README.md`.

    python -m experiments.benchmarks [--parts inference,training] [--out FILE] [--write FILE]

Each row is written as soon as it is measured. The next run with the same settings keeps it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.cli import Parser
from deeplab_jax.commands import fail
from deeplab_jax.errors import UserError, did_you_mean
from experiments.benchmarks import (
    compilation,
    evaluation,
    folders,
    growth,
    inference,
    keras_hub,
    limits,
    lowerings,
    machine,
    memory,
    paper,
    pipeline,
    profile,
    remat,
    report,
    training,
)
from experiments.benchmarks.children import print_result
from experiments.benchmarks.session import Session, read_results

PARTS: dict[str, Callable[[Session], None]] = {
    "limits": limits.measure,
    "inference": inference.measure,
    "training": training.measure,
    "keras_hub": keras_hub.measure,
    "lowerings": lowerings.measure,
    "pipeline": pipeline.measure,
    "evaluation": evaluation.measure,
    "folders": folders.measure,
    "compile": compilation.measure,
    "memory": memory.measure,
    "remat": remat.measure,
    "growth": growth.measure,
    "profile": profile.measure,
    "paper": paper.measure,
}
CHILDREN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "compile": compilation.child,
    "memory": memory.child,
    "paper": paper.child,
    "pipeline": pipeline.child,
}
ROUNDS = 7
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts in turn, and return the exit code: 0, 1 where a row failed, or 2 for an error that the user can
    fix.
    """
    # PyTorch needs memory on the GPU, too. And a peak must be the program's, not that of a pool.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    args = parser().parse_args(argv)
    if args.child:
        arguments = json.loads(args.child)
        print_result(CHILDREN[arguments.pop("part")](arguments))
        return 0
    try:
        failures = run(args)
    except UserError as error:
        return fail(str(error))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run(args: argparse.Namespace) -> list[str]:
    """Measure and report as the flags say, and return messages about rows that failed."""
    parts = chosen(args.parts)
    if args.repeats is not None and args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: give at least 1")
    file = Path(args.out) if args.out else default_file(quick=args.quick)
    failures: list[str] = []
    if parts:
        repeats = args.repeats or (2 if args.quick else ROUNDS)
        session = Session(file, repeats=repeats, quick=args.quick, again=args.again, only=args.rows)
        for part in parts:
            PARTS[part](session)
        failures = session.failures
    summary = "\n\n".join(summarize(found) for found in files_to_report(args, file))
    print(f"\n{summary}")
    if args.write:
        report.SECTION.write(Path(args.write), summary)
    return failures


def summarize(file: Path) -> str:
    """Return the summary of a file of results.

    Raises:
      UserError: the file holds other results.
    """
    try:
        return report.summarize(read_results(file))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file}: holds other results than benchmarks write ({type(error).__name__}: {error}); remove it, or give "
            "another --out"
        ) from None


def chosen(parts: str) -> list[str]:
    """Return the named parts in the order of `PARTS`.

    Raises:
      UserError: an unknown name.
    """
    names = [name.strip() for name in parts.split(",") if name.strip()]
    for name in names:
        if name not in PARTS:
            raise UserError(f"--parts {name!r}: {did_you_mean(name, list(PARTS))}")
    return [name for name in PARTS if name in names]


def default_file(*, quick: bool) -> Path:
    """Return the file of this machine's results. For a quick run it is in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / "deeplab_jax_benchmarks" if quick else RESULTS
    return folder / f"{machine.file_name(machine.describe_machine())}.json"


def files_to_report(args: argparse.Namespace, file: Path) -> list[Path]:
    """Return the files of results to summarize: those of all machines, or only `file` where the flags select it."""
    found = [] if args.out or args.quick else sorted(RESULTS.glob("*.json"))
    return found or [file]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = Parser(prog="python -m experiments.benchmarks", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--parts", default=",".join(PARTS), help='names of parts; "" writes the report only')
    flags.add_argument("--rows", default="", metavar="TEXT", help="only rows with this text in their name")
    flags.add_argument("--out", help="file of the results; default experiments/results/benchmarks/MACHINE.json")
    flags.add_argument("--repeats", type=int, help=f"rounds of each race; default {ROUNDS}, with --quick 2")
    flags.add_argument("--quick", action="store_true", help="tiny sizes and networks, to test that everything works")
    flags.add_argument("--again", action="store_true", help="measure again the rows that the file already holds")
    flags.add_argument(
        "--write",
        metavar="FILE",
        help="write the tables into their section of this file, such as experiments/benchmarks/README.md",
    )
    flags.add_argument("--child", help=argparse.SUPPRESS)
    return flags


if __name__ == "__main__":
    sys.exit(main())
