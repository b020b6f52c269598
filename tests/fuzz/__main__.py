"""Fuzz whatever reads files from outside, through the command line.

    python -m tests.fuzz --count 20000 --seed 1
    python -m tests.fuzz --family weights --seed 1 --case 57

Every case writes damaged files and calls a command line's `main` on them in a worker process. It must return 0, or 2
with a line that says why, within 10 seconds and 512 MiB, and without a traceback. The files of a case that does
otherwise are kept.
"""

import argparse
import collections
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from tests.fuzz.cases import families
from tests.fuzz.watch import Outcome, outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and return 1 where a case failed."""
    args = parser().parse_args(argv)
    keep = Path(args.keep or tempfile.mkdtemp(prefix="fuzz_"))
    names = args.family or list(families())
    failures = 0
    total: collections.Counter[str] = collections.Counter()
    for name in names:
        began = time.monotonic()
        counts: collections.Counter[int] = collections.Counter()
        inputs = cases = 0
        for outcome in chosen(name, args, keep):
            cases += 1
            inputs += outcome.inputs
            counts[outcome.code] += 1
            if outcome.fault:
                failures += 1
                print(f"{name} case {outcome.index}: {outcome.fault}\n  {outcome.words}\n  kept in {outcome.saved}")
        seconds = time.monotonic() - began
        total.update(inputs=inputs, cases=cases)
        codes = dict(sorted(counts.items()))
        print(f"{name}: {inputs} damaged files in {cases} calls, {seconds:.0f} s; exit codes {codes}", flush=True)
    print(f"{total['inputs']} damaged files in {total['cases']} calls of main(argv), {failures} failures")
    return 1 if failures else 0


def chosen(name: str, args: argparse.Namespace, keep: Path) -> Iterator[Outcome]:
    """Run the cases that the flags ask for: one, or the family's share of all damaged files."""
    if args.case is not None:
        yield from outcomes(name, args.seed, args.case, args.case + 1, keep)
        return
    everything = families()
    whole = sum(everything[family].share for family in args.family or everything)
    left = args.count * everything[name].share / whole
    with closing(outcomes(name, args.seed, 0, args.count, keep)) as found:
        for outcome in found:
            yield outcome
            left -= outcome.inputs
            if left <= 0:
                return


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--count", type=int, default=20_000, help="damaged files")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--family", action="append", choices=list(families()), help="only this one; again for more")
    flags.add_argument("--case", type=int, help="only this case of it")
    flags.add_argument("--keep", help="folder for the files of failing cases; default a temporary one")
    return flags


if __name__ == "__main__":
    sys.exit(main())
