"""DeepLabv3 and DeepLabv3+ semantic segmentation in JAX and Flax."""

from deeplab_jax import ops
from deeplab_jax import train as _  # noqa: F401 - First, so that the name `train` stays that of the function below.
from deeplab_jax.analysis.cost import multiply_adds
from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.catalog import create_model, model_names
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.tasks import check_data, evaluate, predict, train
from deeplab_jax.train.live_plot import LivePlot
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.folder import save

__version__ = "0.1.0"

__all__ = [
    "LivePlot",
    "Protocol",
    "UserError",
    "check_data",
    "convert",
    "create_model",
    "evaluate",
    "fold_norm",
    "load",
    "load_config",
    "model_names",
    "multiply_adds",
    "ops",
    "predict",
    "save",
    "segment",
    "train",
]
