"""DeepLabv3 and DeepLabv3+ semantic segmentation in JAX and Flax."""

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model, model_names

__version__ = "0.1.0"

__all__ = ["UserError", "create_model", "model_names"]
