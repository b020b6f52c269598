"""`train`, `evaluate`, `predict` and `check_data`: what the commands of these names do, as functions for a program.

Each imports only what it needs: reading images sets limits, warnings and loggers of Pillow for the whole process.
"""

from deeplab_jax.tasks.checking import check_data
from deeplab_jax.tasks.evaluation import evaluate
from deeplab_jax.tasks.prediction import predict
from deeplab_jax.tasks.training import train

__all__ = ["check_data", "evaluate", "predict", "train"]
