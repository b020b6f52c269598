"""Pure functions on arrays; they know nothing of modules, data or configs."""

from deeplab_jax.ops import atrous, batch_norm, crf, geometry, losses, metrics, observe, pooling, resize, transposed

__all__ = [
    "atrous",
    "batch_norm",
    "crf",
    "geometry",
    "losses",
    "metrics",
    "observe",
    "pooling",
    "resize",
    "transposed",
]
