"""The Lovász losses (Berman et al., CVPR 2018): a convex extension of the Jaccard loss of the predicted classes."""

import jax
import jax.numpy as jnp

from deeplab_jax.ops.loss_bands import over_bands
from deeplab_jax.ops.loss_pixels import LossSums, is_right, stands_alone, valid_pixels
from deeplab_jax.ops.loss_regions import mean_of_classes
from deeplab_jax.ops.resize import resize_bilinear


def lovasz(
    logits: jax.Array,
    labels: jax.Array,
    *,
    align_corners: bool,
    class_weights: jax.Array | None = None,
    top_k: float = 1.0,
    parts: int = 1,
) -> LossSums:
    """Return the Lovász-softmax, or for sigmoids the Lovász hinge, in the form of `LOSSES`.

    Each class's labelled pixels of the whole batch are sorted by their error: the softmax's distance from the label, or
    the hinge 1 - z for label 1 and 1 + z for label 0, at least 0. A batch counts as one image, and so does each
    micro-batch. Lovász-softmax is the mean over the classes that the batch has. Both are as by default in the
    `LovaszLoss` of segmentation_models_pytorch. The hinge of one logit is that of the object. With several labels a
    pixel, ours is the mean over the classes with a label, known to be 0 or 1; that package takes all classes together
    as one.

    The classes come one after another. So the loss holds about ten maps `[N, H, W]` of 4 bytes a pixel at once, however
    many classes there are. Each class takes the time of two sorts, one of them for the gradient. A sort is over all
    pixels of the global batch, so every device receives all of them.

    Args:
      logits, labels, align_corners, parts: see `over_bands`.
      class_weights: `[K]`, for a weighted mean of the classes; of no effect for one logit.
      top_k: of no effect; the loss is no sum over pixels.

    Returns:
      `(loss times count, count, right)`: the count is that of the labelled pixels, or of all labels where a pixel has
      several.
    """
    alone, classes = stands_alone(logits, labels), logits.shape[-1]

    def compare(logits: jax.Array, labels: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[()]]:
        right = is_right(logits, labels)
        return ((right,) if alone else (right, jax.nn.logsumexp(logits, axis=-1))), ()

    (right, *normaliser), _ = over_bands(compare, logits, labels, align_corners=align_corners, parts=parts)

    @jax.checkpoint
    def of_class(index: jax.Array, logit: jax.Array, *normaliser: jax.Array) -> tuple[jax.Array, jax.Array]:
        logit = resize_bilinear(logit[..., None], labels.shape[1:3], align_corners=align_corners)[..., 0]
        own = jnp.take(labels, index, axis=-1) if labels.ndim == logits.ndim else labels
        valid = valid_pixels(own)
        there = own == (1 if alone else index)
        if alone:
            errors = jax.nn.relu(1 - jnp.where(there, logit, -logit))
        else:
            probability = jnp.exp(logit - normaliser[0])
            errors = jnp.where(there, 1 - probability, probability)
        weights = jaccard_weights(errors, there, valid)
        return jnp.sum(jnp.where(valid, errors * weights, 0.0)), jnp.any(valid if alone else there)

    each = jnp.arange(classes), jnp.moveaxis(logits.astype(jnp.float32), -1, 0)
    losses, present = jax.lax.map(lambda inputs: of_class(*inputs, *normaliser), each)
    count = jnp.sum(valid_pixels(labels), dtype=jnp.float32)
    return mean_of_classes(losses, class_weights, present=present) * count, count, right


def jaccard_weights(errors: jax.Array, there: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the gradient of the Lovász extension of the Jaccard loss by the errors (Alg. 1 of the paper).

    It is what the Jaccard loss grows by if a pixel is wrong in addition to all those with a larger error. Here each
    growth is a quotient of whole numbers. The paper's code subtracts neighbours among the Jaccard losses, whose digits
    do not suffice for millions of pixels. Where errors are equal, those of the class come first; the loss is the same
    in any order.

    Args:
      errors: `[...]`, float32; below 0 counts as 0.
      there: of that shape, whether a pixel is of the class.
      valid: of that shape, which pixels count.

    Returns:
      float32 of that shape, a constant for derivatives; without a meaning where a pixel does not count. If the class
      has no pixel, the largest error has the weight 1 and all others 0.
    """
    # The bits of a float that is not negative are a whole number of the same order, and leave one bit for `there`. On a
    # CPU, XLA sorts such a number and its place in much less time than a float with both.
    errors, there, counts = (x.ravel() for x in (jax.lax.stop_gradient(errors), there & valid, valid))
    bits = jax.lax.bitcast_convert_type(jnp.maximum(errors, 0.0), jnp.uint32)
    key = jnp.where(counts, ~(2 * bits + there), jnp.uint32(2**32 - 1))
    key, place = jax.lax.sort((key, jnp.arange(errors.size, dtype=jnp.int32)), num_keys=1)
    there = (1 - key % 2).astype(jnp.int32)
    total = jnp.sum(there)
    missing = jnp.cumsum(there)
    union = total + jnp.arange(1, errors.size + 1) - missing
    left, union = (total - missing).astype(jnp.float32), union.astype(jnp.float32)
    grown = jnp.where(there == 1, 1 / union, left / jnp.maximum(union - 1, 1.0) / union)
    grown = jnp.where(total > 0, grown, jnp.arange(errors.size) == 0)
    return jnp.zeros_like(errors).at[place].set(grown, unique_indices=True).reshape(valid.shape)
