"""VGG-16's fully connected layers as convolutions: FCN's fc6 and fc7, and DeepLabv1's LargeFOV."""

import flax.linen as nn
import jax

from deeplab_jax.models.contexts.aspp import rates_at
from deeplab_jax.models.layers import ConvNorm, LayerSettings

RATES_OUTPUT_STRIDE = 8


class FullyConnected(nn.Module):
    """fc6, a spatial convolution, and fc7, a 1x1, each with ReLU and dropout.

    FCN (arXiv 1411.4038, sec. 3.1) takes 7x7 and 4096 channels, whose kernels are the classifier's matrices. LargeFOV
    (DeepLabv1, arXiv 1412.7062, sec. 3.1 and 5) subsamples them to 3x3 and 1024 channels and sets rate 12 at output
    stride 8. fc6 keeps the size of its map: FCN pads the image by 100 pixels instead, since its fc6 does not, and crops
    the logits by an offset; with the padding in fc6 the map covers the image exactly, whatever its size.

    Attributes:
      kernel_size: of fc6.
      channels: of both.
      rate: of fc6, stated at output stride 8; 0 means 1 at any.
      dropout: after each in training.
    """

    kernel_size: int = 7
    channels: int = 4096
    rate: int = 0
    dropout: float = 0.5
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, channels]`."""
        rate = rates_at((self.rate,), output_stride, stated_at=RATES_OUTPUT_STRIDE)[0] if self.rate else 1
        x = ConvNorm(self.channels, self.kernel_size, rate=rate, settings=self.settings, name="fc6")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = ConvNorm(self.channels, settings=self.settings, name="fc7")(x, train=train)
        return nn.Dropout(self.dropout, deterministic=not train)(x)
