"""Execute the notebooks and keep their outputs.

python -m experiments.notebooks [NAME...]              # all or some, in place; minutes of training at the first time
python -m experiments.notebooks --quick DIR [NAME...]  # every cell, at sizes that show nothing, into DIR
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from deeplab_jax.cli import fail
from deeplab_jax.errors import did_you_mean
from experiments.notebooks.extent import QUICK

FOLDER = Path(__file__).resolve().parent
NAMES = ("effective_kernel", "output_stride", "boundaries", "your_own_folder")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 3600
# Without it kernels warn that what they say to their client can be overheard on this machine.
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the notebooks in turn. Returns 1 where a cell fails or warns, which leaves its notebook as it was."""
    parser = argparse.ArgumentParser(prog="experiments.notebooks", description="Execute the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; by default all")
    parser.add_argument(
        "--quick", metavar="DIR", default="", help="a handful of steps at small sizes, into this folder"
    )
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in NAMES:
            return fail(f"notebook {name!r}: {did_you_mean(name, NAMES)}")
    out = Path(args.quick).resolve() if args.quick else FOLDER
    # Tests and servers choose other back ends, with which no picture would come back.
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    environment[QUICK] = str(out / "runs") if args.quick else ""
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in args.names or NAMES:
        began = time.perf_counter()
        try:
            notebook = execute(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4), environment)
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if warned := warnings_of(notebook):
            print(f"{name}: a cell warned: {warned}", file=sys.stderr)
            failed += 1
            continue
        nbformat.write(notebook, out / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return 1 if failed else 0


def execute(notebook: Any, environment: dict[str, str]) -> Any:
    """Execute a notebook where Jupyter would, in its own folder, and return it without what depends on the session.

    Raises:
      CellExecutionError: of a cell, with its source.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=KERNEL["name"],
        record_timing=False,
        coalesce_streams=True,
        config=ENCRYPTED,
    )
    return stripped(client.execute(cwd=str(FOLDER), env=environment))


def stripped(notebook: Any) -> Any:
    """Leave out versions, times, and the state of widgets, which the next execution would change for nothing."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in getattr(output, "data", {})]
    return notebook


def warnings_of(notebook: Any) -> str:
    """Return what the cells wrote to stderr."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if getattr(output, "name", "") == "stderr")


if __name__ == "__main__":
    sys.exit(main())
