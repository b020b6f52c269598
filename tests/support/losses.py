"""The cross-entropy of logits that have the size of the labels."""

from typing import Any

import jax

from deeplab_jax.ops.losses import pixel_losses, sum_hardest, valid_pixels


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, top_k: float = 1.0, **how: Any
) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the cross-entropies of the labelled pixels, and their number."""
    return sum_hardest(pixel_losses(logits, labels, **how), valid_pixels(labels), top_k=top_k)
