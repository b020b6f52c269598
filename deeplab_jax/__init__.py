"""DeepLabv3 and DeepLabv3+ semantic segmentation in JAX and Flax."""

from deeplab_jax import ops
from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.catalog import create_model, model_names
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.train.loop import train
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.folder import load, save

__version__ = "0.1.0"

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
