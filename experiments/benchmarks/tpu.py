"""Compile every training of the papers for TPUs, without having one, and write XLA's estimates of memory and time.

    python -m experiments.benchmarks.tpu [--targets v5e:2x2,v6e:2x2] [--regime paper] [--rows v3_table6] \
        [--out FILE] [--write experiments/benchmarks/README.md]

It needs `pip install 'deeplab_jax[tpu-compile]'`. A program takes ten minutes and more on two cores. Each row is
written as soon as it is compiled. The next run with the same versions keeps it. Ctrl-C loses only the present row.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.analysis.compiled_table import by_stage
from deeplab_jax.analysis.targets import Target, compiler_version, devices_of, parse_target, start_without_accelerator
from deeplab_jax.errors import UserError
from deeplab_jax.files import save_json
from deeplab_jax.train.ahead import Ahead, cache_folder
from experiments import ROOT
from experiments.outcomes.files import read_given
from experiments.output import Section, add_write, escape, markdown_table
from experiments.program import exits, parser_of
from experiments.regimes import find_regime
from experiments.run.resolve import Resolved, Settings, resolve
from experiments.tables import TABLES

RESULTS = ROOT / "experiments" / "results" / "tpu_estimated.json"
SECTION = Section("<!-- tpu:begin -->", "<!-- tpu:end -->")
TARGETS = "v5e:2x2,v5e:4x4,v6e:2x2,v6e:4x4"
HEAD = ("training", "images", "chips", "fits", "memory, GiB a chip", "10⁶ cycles", "bound by", "images/s", "hours")
Content = dict[str, Any]


@exits
def main(argv: Sequence[str] | None) -> None:
    """Compile the trainings that the file lacks for the targets, and write the table."""
    parser = parser_of("benchmarks.tpu", __doc__)
    parser.add_argument("--targets", default=TARGETS, help=f"slices, separated by commas; default {TARGETS}")
    parser.add_argument(
        "--regime", "--scale", default="paper", help="a regime of experiments/regimes.py; default paper"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="dtype of the activations")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only trainings with this text in their name")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the results")
    add_write(parser, "experiments/benchmarks/README.md")
    args = parser.parse_args(argv)
    find_regime(args.regime)  # A wrong name is told before the compiler starts.
    targets = [parse_target(word) for word in args.targets.split(",")]
    for target in targets:
        start_without_accelerator(target)
        devices_of(target)
    content = read_results(args.out)
    for name, found in trainings(args.regime, args.dtype):
        for target in targets if args.rows in name else ():
            row = f"{name} on {target.name}"
            settings = {"training": found.training_key, "compiler": compiler_version(target)}
            old = content["rows"].get(row)
            if old is None or old["settings"] != settings:
                content["rows"][row] = {"settings": settings, **compiled(found, target)}
                save_json(args.out, content)
            told = zip(HEAD[1:], cells(content["rows"][row]), strict=True)
            print(f"{row}: {', '.join(f'{column} {cell}' for column, cell in told)}", flush=True)
    text = summarize(content)
    print(f"\n{text}")
    SECTION.write(args.write, text)


def in_dtype(dtype: str) -> Settings:
    """Return the settings of trainings with activations in this dtype."""
    return Settings(overrides=(f"--config.model.options.dtype={dtype}",))


def trainings(regime: str, dtype: str) -> Iterator[tuple[str, Resolved]]:
    """Yield each training of the papers' tables once, with the name of the first row that asks for it."""
    chosen, seen = find_regime(regime), set()
    for table in (one for one in TABLES.values() if not one.name.startswith("extra_")):
        for name, row in table.named_rows().items():
            found = resolve(row, table, chosen, in_dtype(dtype)) if row.train else None
            if isinstance(found, Resolved) and found.training_key not in seen:
                seen.add(found.training_key)
                yield f"{table.name}/{name}", found


def compiled(found: Resolved, target: Target) -> dict[str, Any]:
    """Return the report of a training on a target, with its cycles by stage, or an `error` where there is none."""
    try:
        report = Ahead(found.config, target, folder=cache_folder()).report()
    except UserError as error:
        return {"error": str(error)}
    report["steps"] = found.config.train.steps
    if report["fits"]:
        report["cycles_by_layer"] = by_stage(report["cycles_by_layer"])
    return report


def summarize(content: Mapping[str, Any]) -> str:
    """Return the table of a file in Markdown."""
    compilers = sorted({row["settings"]["compiler"] for row in content["rows"].values()})
    rows = [(escape(name), *cells(row)) for name, row in content["rows"].items()]
    return (
        f"All numbers are **estimated** by XLA ({', '.join(compilers)}); nothing was run on a TPU.\n\n"
        f"{markdown_table(HEAD, rows, numbers=5)}"
    )


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row, without its name."""
    found = ["-", "-", f"no: {escape(row['error'])}"] if "error" in row else [str(row["images"]), str(row["devices"])]
    if "error" not in row and not row["fits"]:
        found.append(f"no: {escape(row['why'])}")
    elif "error" not in row:
        found += ["yes", f"{row['total_memory'] / 2**30:.2f} of {row['chip_memory'] / 2**30:.2f}"]
        if estimated := row.get("estimated"):
            found += [f"{row['cycles'] / 1e6:.1f}", max(row["bounds"], key=row["bounds"].__getitem__)]
            found += [f"{estimated['images_per_second']:.0f}", f"{estimated['hours']:.1f}"]
    return found + ["-"] * (len(HEAD) - 1 - len(found))


def read_results(file: Path) -> Content:
    """Return the content of a file of results, or that of a new one.

    Raises:
      UserError: the file holds no estimates of TPUs.
    """
    fix = ", so it holds no estimates of TPUs; give another --out"
    return read_given(file, needs=("rows",), fix=fix) or {"rows": {}}


if __name__ == "__main__":
    sys.exit(main())
