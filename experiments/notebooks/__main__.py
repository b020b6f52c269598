"""Execute the notebooks and keep their outputs.

python -m experiments.notebooks [NAME...]              # all or some, in place; the first time they train for minutes
python -m experiments.notebooks --quick DIR [NAME...]  # every cell, at tiny sizes for a test, into DIR
"""

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

from deeplab_jax.errors import UserError, did_you_mean
from experiments.notebooks.extent import QUICK
from experiments.program import exits, parser_of

FOLDER = Path(__file__).resolve().parent
NAMES = ("effective_kernel", "output_stride", "boundaries", "your_own_folder")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 3600
# Without encryption, kernels warn that others on this machine can read their messages.
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


@exits
def main(argv: Sequence[str] | None) -> int:
    """Execute the notebooks in turn, and return the exit code: 1 where a cell fails or warns. A notebook with such a
    cell is not written.
    """
    parser = parser_of("notebooks", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; by default all")
    parser.add_argument(
        "--quick", metavar="DIR", default="", help="train for a few steps at tiny sizes, and write into this folder"
    )
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in NAMES:
            raise UserError(f"notebook {name!r}: {did_you_mean(name, NAMES)}")
    out = Path(args.quick).resolve() if args.quick else FOLDER
    # Tests and servers set other back ends, with which the notebooks get no pictures.
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
    """Execute a notebook in its own folder, as Jupyter does, and return it `stripped`.

    Raises:
      CellExecutionError: a cell fails; the error has its source.
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
    """Return a notebook without versions, times and the state of widgets, which differ in every execution."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in getattr(output, "data", {})]
    return notebook


def warnings_of(notebook: Any) -> str:
    """Return the stderr of all cells."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if getattr(output, "name", "") == "stderr")


if __name__ == "__main__":
    sys.exit(main())
