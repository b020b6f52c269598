"""ResNets as other code bases build them: their padding, ends and stems."""

from typing import Literal

import jax

from deeplab_jax.models.backbones.resnet import ResNet
from deeplab_jax.ops.pooling import max_pool

LAST_BLOCKS = {"conv3": 2, "conv4": 3}
DEEP_STEM = ((3, 32), (3, 32), (3, 64))


class ResNetVariant(ResNet):
    """A ResNet with what the weights of other code bases need.

    Attributes: those of `ResNet`, and
      last_stage: name of the last features; the network ends there (segmentation_models_pytorch). If it ends before
        conv5, leave out `multi_grid`.
      pool_padding: padding of the max pooling. "symmetric" centres its windows at every size. "same" is TensorFlow's,
        as in the authors' code; it differs where the pooled map has an even side.
      deep_stem: whether three 3x3 convolutions of 32, 32 and 64 channels stand in place of the 7x7 (mmsegmentation's
        ResNetV1c).
      dilate_second: whether the second 3x3 convolution of a basic unit is dilated; in mmsegmentation it is not.

    Raises:
      UserError: an unknown value.
    """

    last_stage: Literal["conv3", "conv4", "conv5"] = "conv5"
    pool_padding: Literal["symmetric", "same"] = "symmetric"
    deep_stem: bool = False
    dilate_second: bool = True

    def blocks(self) -> int:
        """Return the number of blocks to build."""
        return LAST_BLOCKS.get(self.last_stage, self.last_block)

    def stem_convs(self) -> tuple[tuple[int, int], ...]:
        """Return the kernel size and channels of the stem's convolutions."""
        return DEEP_STEM if self.deep_stem else super().stem_convs()

    def second_rate(self, rate: int) -> int:
        """Return the rate of the second 3x3 convolution of a basic unit."""
        return rate if self.dilate_second else 1

    def pool(self, x: jax.Array) -> jax.Array:
        """Pool the stem's output."""
        return max_pool(x, window=3, stride=2, padding="SAME" if self.pool_padding == "same" else None)
