"""Separable convolutions as segmentation_models_pytorch and VainF's Xception have them."""

import jax

from deeplab_jax.models.layers import Conv, SeparableConvNorm


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
