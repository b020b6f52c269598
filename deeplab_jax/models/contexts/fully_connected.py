"""VGG-16's fully connected layers as convolutions: FCN's fc6 and fc7, and DeepLabv1's LargeFOV."""

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.errors import UserError
from deeplab_jax.models.contexts.aspp import rates_at
from deeplab_jax.models.layers import ConvNorm, Dropout, LayerSettings

VGG_RATES_OUTPUT_STRIDE = 8


class FullyConnected(CheckedModule):
    """fc6, a spatial convolution, and fc7, a 1x1, each with ReLU and dropout (FCN, arXiv 1411.4038, sec. 3.1).

    The kernels of FCN are the classifier's matrices: 7x7 and 4096 channels. FCN's own fc6 shrinks its map; FCN pads the
    image by 100 pixels instead and crops the logits by an offset. Here fc6 itself has the padding and keeps the size of
    its map, so the map covers an image of any size exactly.

    Attributes:
      fc_kernel: kernel size of fc6.
      fc_channels: channels of fc6 and of fc7.
      fc_rate: atrous rate of fc6, stated at output stride 8; 0 means rate 1 at any output stride.
      dropout: share dropped in training after each of the two.

    Raises:
      UserError: a kernel size or channels below 1, or a rate below 0.
    """

    fc_kernel: int = 7
    fc_channels: int = 4096
    fc_rate: int = 0
    dropout: float = 0.5
    settings: LayerSettings = LayerSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "fc_kernel", "fc_channels")
        if self.fc_rate < 0:
            raise UserError(f"fc_rate={self.fc_rate}: give a whole number of at least 0")

    def rate_at(self, output_stride: int) -> int:
        """Return the rate of fc6 at an output stride."""
        if not self.fc_rate:
            return 1
        option = f"fc_rate={self.fc_rate}"
        return rates_at((self.fc_rate,), output_stride, stated_at=VGG_RATES_OUTPUT_STRIDE, option=option)[0]

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, fc_channels]`."""
        s = self.settings
        rate = self.rate_at(output_stride)
        x = ConvNorm(self.fc_channels, self.fc_kernel, rate=rate, settings=s, name="fc6")(x, train=train)
        x = Dropout(self.dropout, deterministic=not train)(x)
        x = ConvNorm(self.fc_channels, settings=s, name="fc7")(x, train=train)
        return Dropout(self.dropout, deterministic=not train)(x)


class LargeFOV(FullyConnected):
    """DeepLabv1's fc6 and fc7 (arXiv 1412.7062, sec. 3.1 and 5): subsampled to 3x3 and 1024 channels, with rate 12 at
    output stride 8. The authors' Caffe network averages pool5 over 3x3 samples before fc6. The paper does not, and
    neither does this network.

    Attributes: those of `FullyConnected`.
    """

    fc_kernel: int = 3
    fc_channels: int = 1024
    fc_rate: int = 12
