"""DeepLabv3 and DeepLabv3+ semantic segmentation in JAX and Flax."""

from pathlib import Path
from typing import Any

from deeplab_jax import ops
from deeplab_jax import train as _  # noqa: F401 - First, so that the name `train` stays that of the function below.
from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.protocol import DEFAULT, Protocol
from deeplab_jax.extensions import allow
from deeplab_jax.models.catalog import create_model, model_names
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.folder import save

__version__ = "0.1.0"


def evaluate(
    model: Segmenter, variables: Variables, source: Any, protocol: Protocol = DEFAULT, **how: Any
) -> dict[str, Any]:
    """Return the contents of `metrics.json` for a model on a labelled source, by a protocol. `how` takes other
    arguments of `deeplab_jax.evaluate.evaluator.evaluate`, such as `split` and `batch_size`.
    """
    # Imported here because reading images sets limits, warnings and loggers of Pillow for the whole process.
    from deeplab_jax.evaluate import evaluator

    return evaluator.evaluate(model, variables, source, protocol, **how)


def train(config: Any, workdir: str | Path, *, module: str = "", **options: Any) -> dict[str, Any] | None:
    """Train as a configuration says, or resume in the run directory; see `train.loop.train`. The file that
    `config.module` names runs only if the argument `module` names it, too.
    """
    from deeplab_jax.train import loop

    allow(module)
    return loop.train(config, workdir, **options)


__all__ = [
    "Protocol",
    "UserError",
    "convert",
    "create_model",
    "evaluate",
    "fold_norm",
    "load",
    "model_names",
    "multiply_adds",
    "ops",
    "save",
    "segment",
    "train",
]
