"""Atrous spatial pyramid pooling as segmentation_models_pytorch and mmsegmentation have it."""

from typing import Literal

import flax.linen as nn

from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.layers import SeparableConvNorm, spatial_conv
from deeplab_jax.models.separable_variants import BareSeparableConvNorm


class ASPPVariant(ASPP):
    """ASPP with the separable convolutions of segmentation_models_pytorch, and the projection of mmsegmentation.

    Attributes: those of `ASPP`, and
      aspp_separable: the same as `separable`, but for the branches alone; None takes the value of `separable`.
      depthwise_norm: whether a norm and an activation follow the depthwise convolutions; there, none do.
      projection_kernel: kernel size of the projection; 3 in mmsegmentation.

    Raises:
      UserError: a kernel size other than 1 and 3.
    """

    aspp_separable: bool | None = None
    depthwise_norm: bool = True
    projection_kernel: Literal[1, 3] = 1

    def spatial_conv(self, features: int, kernel_size: int, *, rate: int = 1, name: str) -> nn.Module:
        """Return a convolution of a branch or of the head."""
        of_branch = name.startswith("branch") and self.aspp_separable is not None
        return spatial_conv(
            features,
            kernel_size,
            rate=rate,
            separable=bool(self.aspp_separable) if of_branch else self.separable,
            form=SeparableConvNorm if self.depthwise_norm else BareSeparableConvNorm,
            settings=self.settings,
            name=name,
        )
