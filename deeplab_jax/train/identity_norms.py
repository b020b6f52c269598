"""Batch norms that start as the identity, for a network whose own were folded into its convolutions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.layers import Conv
from deeplab_jax.models.segmenter import Segmenter, Variables

Statistics = dict[str, tuple[jax.Array, jax.Array]]


def conv_statistics(model: Segmenter, variables: Variables, images: jax.Array) -> Statistics:
    """Return the mean and variance of every convolution's output, float32 `[C]`, by the convolution's path.

    Args:
      model: any.
      variables: its variables.
      images: preprocessed floats `[N, H, W, 3]`.
    """
    found: Statistics = {}

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_function(*args, **kwargs)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            values = output.astype(jnp.float32)
            found["/".join(context.module.path)] = (values.mean((0, 1, 2)), values.var((0, 1, 2)))
        return output

    def run(variables: Variables, images: jax.Array) -> Statistics:
        found.clear()
        with nn.intercept_methods(watch):
            model.apply(variables, images, train=False, method="coarse_logits")
        return dict(found)

    return jax.jit(run)(variables, images)


def identity_norm(bias: jax.Array, mean: jax.Array, var: jax.Array, *, epsilon: float) -> dict[str, jax.Array]:
    """Return the parameters and statistics of a batch norm that only adds `bias` to a convolution's output.

    Args:
      bias: of the folded convolution, `[C]`, which the norm takes over.
      mean, var: of the folded convolution's output, bias included; in training, batches of such statistics pass
        unchanged too, up to how far theirs differ.
      epsilon: of the norm.
    """
    return {
        "params/scale": jnp.sqrt(var + epsilon),
        "params/bias": mean,
        "batch_stats/mean": mean - bias,
        "batch_stats/var": var,
    }


def put_identity_norms(
    names: list[str], model: Segmenter, variables: Variables, images: jax.Array, *, target: Segmenter
) -> dict[str, jax.Array]:
    """Return the variables of batch norms after the convolutions of a folded network, such that its output stays.

    Args:
      names: of variables of `target` that are wanted, flat; those of batch norms are returned.
      model: whose convolutions have biases where `target` has batch norms.
      variables: its variables.
      images: preprocessed floats `[N, H, W, 3]` from which the statistics are taken.
      target: the network with batch norms.

    Returns:
      Those variables that a convolution with a bias of that place in `model` provides, by name.
    """
    statistics = conv_statistics(model, variables, images)
    made = {}
    for name in names:
        collection, *path, leaf = name.split("/")
        if path[-2:] != ["norm", "batch"]:
            continue
        layer: Any = variables["params"]
        for part in [*path[:-2], "conv"]:
            layer = layer.get(part, {})
        conv = "/".join([*path[:-2], "conv"])
        if "bias" in layer and conv in statistics:
            settings = target.backbone_settings if path[0] == "backbone" else target.settings
            norm = identity_norm(layer["bias"], *statistics[conv], epsilon=settings.norm_epsilon)
            made[name] = norm[f"{collection}/{leaf}"]
    return made
