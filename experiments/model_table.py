"""Write the table of models in `deeplab_jax/models/README.md`: the cost of each at 513x513, and a note on each.

python -m experiments.model_table [--write deeplab_jax/models/README.md]
"""

import math
import sys
from collections.abc import Sequence

import jax

from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.models.architectures import ARCHITECTURES, BACKBONES
from deeplab_jax.models.catalog import create_model, model_names
from deeplab_jax.models.segmenter import abstract_variables
from experiments.output import Section, add_write, markdown_table
from experiments.program import exits, parser_of

SIDE = 513
SECTION = Section(
    "<!-- models: python -m experiments.model_table --write deeplab_jax/models/README.md -->", "<!-- /models -->"
)


def cells(name: str) -> tuple[str, ...]:
    """Return a model's cells. The note of an architecture's first model describes the architecture, and the notes of
    its other models describe their backbones.
    """
    model = create_model(name, lowering="direct")  # Counts are the same in every lowering; this one is traced fastest.
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    architecture_name, _, backbone = name.partition("_")
    architecture = ARCHITECTURES[architecture_name]
    first = (backbone or architecture_name) == next(iter(architecture.backbones))
    paper = architecture.paper
    source = f"[{paper}](https://arxiv.org/abs/{paper})" if paper[0].isdigit() else paper
    cost = multiply_adds(model, SIDE, SIDE).total
    return (
        f"`{name}`",
        source,
        str(model.output_stride),
        f"{parameters:,}",
        f"{cost / 1e9:.2f}",
        architecture.note if first else f"the same; {BACKBONES[backbone].note}",
    )


def table(names: Sequence[str]) -> str:
    """Return the table of these models in Markdown."""
    head = ("name", "paper", "output stride", "parameters", "multiply-adds, 10⁹", "what sets it apart")
    return markdown_table(head, map(cells, names))


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print the table, and write it into a file's section."""
    parser = parser_of("model_table", __doc__)
    add_write(parser, "deeplab_jax/models/README.md")
    args = parser.parse_args(argv)
    content = table(model_names())
    print(content)
    SECTION.write(args.write, content)


if __name__ == "__main__":
    sys.exit(main())
