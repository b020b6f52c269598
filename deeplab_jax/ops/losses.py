"""Losses over labelled pixels, as (sum, count) so that they add up over shards,
micro-batches and devices before the one division.
"""

import chex
import jax
import jax.numpy as jnp

IGNORE_LABEL = 255


def valid_pixels(labels: jax.Array, *, ignore_label: int = IGNORE_LABEL) -> jax.Array:
    """Return which pixels carry a label, as booleans of the shape of `labels`."""
    return labels != ignore_label


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = IGNORE_LABEL,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy summed over the labelled pixels.

    Args:
      logits: `[..., K]`, any floating dtype; the sum is taken in float32.
      labels: integer `[...]`, class ids 0 to K - 1 or `ignore_label`. Other values are the caller's fault and are not
        noticed here (an accelerator cannot raise); training checks its first batches on the host.
      ignore_label: pixels with this value count for nothing.
      class_weights: float `[K]`, the factor of each class's pixels, or None for 1. The count stays the number of
        pixels, as in the authors' TensorFlow code; PyTorch divides by the sum of the weights instead.
      top_k: share (0 to 1] of the labelled pixels to keep, those with the largest loss (hard-pixel mining). Over all
        pixels given, which under `jit` with a sharded batch is the global batch.

    Returns:
      `(sum of losses, number of pixels summed)`, float32 scalars; both 0 if no pixel is labelled.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    valid = valid_pixels(labels, ignore_label=ignore_label)
    target = jnp.where(valid, labels, 0).astype(jnp.int32)
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    if class_weights is not None:
        losses = losses * jnp.asarray(class_weights, jnp.float32)[target]
    losses = jnp.where(valid, losses, 0.0)
    count = jnp.sum(valid, dtype=jnp.float32)
    if top_k >= 1.0:
        return jnp.sum(losses), count
    # Rounding must not turn a product that is whole into the next number: 0.3 of 50 pixels are 15.
    kept = jnp.ceil(top_k * count * (1 - 1e-6))
    # Ignored pixels are pushed behind the labelled ones, even behind those of zero loss.
    ranked = jnp.sort(jnp.where(valid, losses, -1.0).ravel(), descending=True)
    rank = jnp.arange(ranked.size, dtype=jnp.float32)
    return jnp.sum(jnp.where(rank < kept, ranked, 0.0)), kept


def mean_loss(total: jax.Array, count: jax.Array) -> jax.Array:
    """Divide a summed loss by its count; 0 where nothing was counted (a batch of ignored pixels only)."""
    return total / jnp.maximum(count, 1.0)
