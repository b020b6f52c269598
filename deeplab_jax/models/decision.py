"""From logits to probabilities, and from probabilities to classes: what a network's `activation` decides."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.models.segmenter import Segmenter

THRESHOLD = 0.5


def to_probabilities(model: Segmenter, logits: jax.Array) -> jax.Array:
    """Return the probabilities `[..., num_classes]` of logits: for one logit, that of the object."""
    return jax.nn.softmax(logits) if model.activation == "softmax" else jax.nn.sigmoid(logits)


def decide(model: Segmenter, probabilities: Any, threshold: float | jax.Array) -> Any:
    """Return the classes of probabilities `[..., num_classes]`, integers `[...]`: JAX arrays of JAX arrays, numpy's of
    numpy's.

    A softmax decides for the most probable class, one logit for the object where its probability is above the
    threshold. Where a pixel has several labels, each is decided alone: 0 or 1, `[..., num_classes]`.
    """
    if model.activation == "softmax":
        return probabilities.argmax(axis=-1)
    positive = (probabilities > threshold).astype(np.int32)
    return positive if model.multilabel else positive[..., 0]


def by_pairs(refine: Callable[[jax.Array], jax.Array], probabilities: jax.Array) -> jax.Array:
    """Return the probabilities of sigmoids `[H, W, K]` after each, with its complement, is refined as two classes that
    exclude each other.

    Args:
      refine: takes and returns probabilities `[H, W, 2]`.
      probabilities: the probability of each label.
    """
    pairs = (jnp.stack([1 - own, own], axis=-1) for own in jnp.moveaxis(probabilities, -1, 0))
    return jnp.stack([refine(pair)[..., 1] for pair in pairs], axis=-1)
