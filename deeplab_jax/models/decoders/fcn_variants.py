"""The FCN head as mmsegmentation has it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.decoders.fcn import FCNReduction
from deeplab_jax.models.layers import ConvNorm, Dropout


class FCNReductionVariant(FCNReduction):
    """mmsegmentation's FCN before its classifier. After two 3x3 convolutions, a third one takes their result and the
    map itself.

    Attributes: those of `FCNReduction`, and
      join_input: whether it has this form; otherwise it is `FCNReduction`.
    """

    join_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, C / 4]`."""
        if not self.join_input:
            return super().__call__(x, output_stride=output_stride, train=train)
        s, y = self.settings, x
        for name in ("conv1", "conv2"):
            y = ConvNorm(x.shape[-1] // 4, 3, settings=s, name=name)(y, train=train)
        y = jnp.concatenate([x, y], axis=-1)
        y = ConvNorm(x.shape[-1] // 4, 3, settings=s, name="joined")(y, train=train)
        return Dropout(self.dropout, deterministic=not train)(y)
