"""Separable convolutions as segmentation_models_pytorch and VainF's Xception have them."""

import flax.linen as nn
import jax

from deeplab_jax.models.layers import Conv, LayerSettings, SeparableConvNorm, spatial_conv


class BareSeparableConvNorm(SeparableConvNorm):
    """A separable convolution with no normalisation, bias or activation between the depthwise and the pointwise
    convolution.
    """

    def depthwise(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Apply the depthwise convolution; within a compact method."""
        return Conv(
            x.shape[-1],
            self.kernel_size,
            stride=self.stride,
            rate=self.rate,
            depthwise=True,
            settings=self.settings,
            name="depthwise",
        )(x)


def spatial_conv_variant(
    features: int,
    kernel_size: int,
    *,
    rate: int = 1,
    separable: bool,
    depthwise_norm: bool,
    settings: LayerSettings,
    name: str,
) -> nn.Module:
    """Return what `spatial_conv` does; without `depthwise_norm`, nothing follows the depthwise convolution."""
    if separable and kernel_size > 1 and not depthwise_norm:
        return BareSeparableConvNorm(features, kernel_size, rate=rate, settings=settings, name=name)
    return spatial_conv(features, kernel_size, rate=rate, separable=separable, settings=settings, name=name)
