"""The decoder of DeepLabv3+ as segmentation_models_pytorch has it."""

import flax.linen as nn

from deeplab_jax.models.decoders.deeplabv3plus import DeepLabV3PlusDecoder
from deeplab_jax.models.layers import SeparableConvNorm, spatial_conv
from deeplab_jax.models.separable_variants import BareSeparableConvNorm


class DeepLabV3PlusDecoderVariant(DeepLabV3PlusDecoder):
    """The decoder with the separable convolutions of segmentation_models_pytorch.

    Attributes: those of `DeepLabV3PlusDecoder`, and
      depthwise_norm: whether a norm and an activation follow the depthwise convolutions; there, none do.
    """

    depthwise_norm: bool = True

    def spatial_conv(self, features: int, kernel_size: int, *, name: str) -> nn.Module:
        """Return one of the convolutions at a level."""
        return spatial_conv(
            features,
            kernel_size,
            separable=self.separable,
            form=SeparableConvNorm if self.depthwise_norm else BareSeparableConvNorm,
            settings=self.settings,
            name=name,
        )
