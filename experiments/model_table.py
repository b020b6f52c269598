"""The README's table of models: name, paper, parameters, multiply-adds at 513x513, and what sets each apart.

python -m experiments.model_table [--write README.md]
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import ARCHITECTURES, BACKBONES, create_model, model_names
from deeplab_jax.models.cost import multiply_adds
from deeplab_jax.models.segmenter import abstract_variables

SIDE = 513
START, END = "<!-- models: python -m experiments.model_table --write README.md -->", "<!-- /models -->"


def row(name: str) -> str:
    """Return one line of the table; the first of an architecture says what that is, the others tell the backbones."""
    model = create_model(name, lowering="direct")  # Counts are the same in every lowering; this one is traced fastest.
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    architecture_name, _, backbone = name.partition("_")
    architecture = ARCHITECTURES[architecture_name]
    first = (backbone or architecture_name) == next(iter(architecture.backbones))
    paper = architecture.paper
    source = f"[{paper}](https://arxiv.org/abs/{paper})" if paper[0].isdigit() else paper
    cost = multiply_adds(model, SIDE, SIDE).total
    columns = (
        f"`{name}`",
        source,
        str(model.output_stride),
        f"{parameters:,}",
        f"{cost / 1e9:.2f}",
        architecture.note if first else f"the same; {BACKBONES[backbone].note}",
    )
    return f"| {' | '.join(columns)} |"


def table(names: Sequence[str]) -> str:
    """Return the table of these models in Markdown."""
    head = "| name | paper | output stride | parameters | multiply-adds, 10⁹ | what sets it apart |"
    return "\n".join([head, "|---|---|---|---|---|---|", *(row(name) for name in names)])


def replace_section(text: str, content: str) -> str:
    """Return a text with what stands between the two marks replaced.

    Raises:
      UserError: a mark is missing.
    """
    if START not in text or END not in text:
        raise UserError(f"the file has no section between {START!r} and {END!r}; add the two lines")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n{content}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it into a file's section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", metavar="FILE", help="file whose section to replace, such as README.md")
    args = parser.parse_args(argv)
    content = table(model_names())
    print(content)
    try:
        if args.write:
            path = Path(args.write)
            path.write_text(replace_section(path.read_text(encoding="utf-8"), content), encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"{args.write}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
