"""The unit of MobileNetV2 and V3 (arXiv 1801.04381, sec. 3.3; arXiv 1905.02244, sec. 5.3), and their channel counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.layers import Activation, Conv, ConvNorm, LayerSettings
from deeplab_jax.ops.atrous import Padding
from deeplab_jax.ops.pooling import global_average_pool


def scale_channels(channels: int, width: float, *, divisor: int = 8) -> int:
    """Scale a channel count and round it to a multiple of `divisor`, the nearest that loses no more than a tenth."""
    scaled = max(divisor, int(channels * width + divisor / 2) // divisor * divisor)
    return scaled + divisor if scaled < 0.9 * channels * width else scaled


class SqueezeExcitation(nn.Module):
    """Weight the channels by a gate computed from their averages (MobileNetV3, sec. 5.3; arXiv 1709.01507).

    1x1 convolution to a quarter of the channels (a multiple of 8), ReLU, 1x1 back, hard sigmoid. Because of the
    averages the gate depends on the map's size and, slightly, on its stride.
    """

    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.settings
        y = Conv(scale_channels(x.shape[-1] // 4, 1.0), use_bias=True, settings=s, name="reduce")(
            global_average_pool(x)
        )
        y = Conv(x.shape[-1], use_bias=True, settings=s, name="expand")(jax.nn.relu(y))
        return x * jax.nn.hard_sigmoid(y)


class InvertedResidual(nn.Module):
    """1x1 expansion if it widens, depthwise convolution with the stride or rate, squeeze-and-excitation after its
    activation, linear 1x1 projection. The shortcut is the identity where `residual` and the channels allow it.
    """

    kernel_size: int
    expanded: int
    channels: int
    activation: Activation
    stride: int
    residual: bool
    settings: LayerSettings
    squeeze: bool = False
    rate: int = 1
    padding: Padding = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return the unit's output, and the map after its depthwise convolution and the activation."""
        s = self.settings
        y, padding = self.padded(x)
        if self.expanded != x.shape[-1]:
            y = ConvNorm(self.expanded, activation=self.activation, settings=s, name="expand")(y, train=train)
        y = depthwise = ConvNorm(
            self.expanded,
            self.kernel_size,
            stride=self.stride,
            rate=self.rate,
            depthwise=True,
            activation=self.activation,
            padding=padding,
            settings=s,
            name="depthwise",
        )(y, train=train)
        if self.squeeze:
            y = SqueezeExcitation(s, name="squeeze")(y)
        y = ConvNorm(self.channels, activation="none", settings=s, name="project")(y, train=train)
        return (x + y if self.residual and x.shape[-1] == self.channels else y), depthwise

    def padded(self, x: jax.Array) -> tuple[jax.Array, Padding]:
        """Return the input of the expansion, and the padding of the depthwise convolution."""
        return x, self.padding


class PaddedFirst(InvertedResidual):
    """An inverted residual that pads the map with zeros before the expansion, which turns them into other values
    (VainF's and jfzhang95's code).
    """

    def padded(self, x: jax.Array) -> tuple[jax.Array, Padding]:
        """Return the input of the expansion, and the padding of the depthwise convolution."""
        border = (self.kernel_size - 1) // 2 * self.rate
        return jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0))), "VALID"
