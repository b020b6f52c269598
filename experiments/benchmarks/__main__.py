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

from deeplab_jax.errors import UserError, did_you_mean
from experiments import ROOT
from experiments.benchmarks import (
    compilation,
    evaluation,
    folders,
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
from experiments.benchmarks.children import MARK
from experiments.benchmarks.session import Session, read_results
from experiments.output import add_write
from experiments.program import exits, parser_of

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
    "profile": profile.measure,
    "paper": paper.measure,
}
CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "compile": compilation.child,
    "keras_hub": keras_hub.child,
    "memory": memory.child,
    "paper": paper.child,
    "pipeline": pipeline.child,
}
ROUNDS, QUICK_ROUNDS = 7, 2
RESULTS = ROOT / "experiments" / "results" / "benchmarks"


@exits
def main(argv: Sequence[str] | None) -> int:
    """Measure the parts in turn and report, and return the exit code: 1 where a row failed."""
    # PyTorch needs memory on the GPU, too. And a peak must be the program's, not that of a pool.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = parser_of("benchmarks", __doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help='names of parts; "" writes the report only')
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with this text in their name")
    parser.add_argument(
        "--out", type=Path, help="file of the results; default experiments/results/benchmarks/MACHINE.json"
    )
    parser.add_argument(
        "--repeats", type=int, help=f"rounds of each race; default {ROUNDS}, with --quick {QUICK_ROUNDS}"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes and networks, to test that everything works")
    parser.add_argument("--again", action="store_true", help="measure again the rows that the file already holds")
    add_write(parser, "experiments/benchmarks/README.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        arguments = json.loads(args.child)
        print(MARK + json.dumps(CHILDREN[arguments.pop("part")](**arguments)), flush=True)
        return 0
    parts = [name.strip() for name in args.parts.split(",") if name.strip()]
    for name in parts:
        if name not in PARTS:
            raise UserError(f"--parts {name!r}: {did_you_mean(name, list(PARTS))}")
    if args.repeats is not None and args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: give at least 1")
    file = args.out or default_file(quick=args.quick)
    failed = 0
    if parts:
        repeats = args.repeats or (QUICK_ROUNDS if args.quick else ROUNDS)
        session = Session(file, repeats=repeats, quick=args.quick, again=args.again, only=args.rows)
        for name, measure in PARTS.items():
            if name in parts:
                measure(session)
        failed = session.report_failures()
    found = [] if args.out or args.quick else sorted(RESULTS.glob("*.json"))
    summary = "\n\n".join(map(summarize, found or [file]))
    print(f"\n{summary}")
    report.SECTION.write(args.write, summary)
    return failed


def summarize(file: Path) -> str:
    """Return the summary of a file of results.

    Raises:
      UserError: the file holds other results.
    """
    content = read_results(file)
    try:
        return report.summarize(content)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{file}: holds other results than benchmarks write ({type(error).__name__}: {error}); remove it, or give "
            "another --out"
        ) from None


def default_file(*, quick: bool) -> Path:
    """Return the file of this machine's results. For a quick run it is in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / "deeplab_jax_benchmarks" if quick else RESULTS
    return folder / f"{machine.file_name(machine.describe_machine())}.json"


if __name__ == "__main__":
    sys.exit(main())
