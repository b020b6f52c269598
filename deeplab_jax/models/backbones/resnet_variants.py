"""ResNets as other code bases build them: their padding and ends."""

from typing import Literal

import jax

from deeplab_jax.models.backbones.resnet import ResNet
from deeplab_jax.ops.pooling import max_pool

LAST_BLOCKS = {"conv3": 2, "conv4": 3}


class ResNetVariant(ResNet):
    """A ResNet with what the weights of other code bases need.

    Attributes: those of `ResNet`, and
      last_stage: name of the last features; the network ends there (segmentation_models_pytorch).
      pool_padding: padding of the max pooling. "symmetric" centres its windows at every size. "same" is TensorFlow's,
        as in the authors' code; it differs where the pooled map has an even side.

    Raises:
      UserError: an unknown value.
    """

    last_stage: Literal["conv3", "conv4", "conv5"] = "conv5"
    pool_padding: Literal["symmetric", "same"] = "symmetric"

    def blocks(self) -> int:
        """Return the number of blocks to build."""
        return LAST_BLOCKS.get(self.last_stage, self.last_block)

    def pool(self, x: jax.Array) -> jax.Array:
        """Pool the stem's output."""
        return max_pool(x, window=3, stride=2, padding="SAME" if self.pool_padding == "same" else None)
