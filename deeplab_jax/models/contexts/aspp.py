"""Atrous spatial pyramid pooling (DeepLabv3, sec. 3.3, Fig. 5; its separable form: DeepLabv3+, sec. 3.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.models.layers import ConvNorm, Dropout, LayerSettings, spatial_conv
from deeplab_jax.ops.pooling import global_average_pool
from deeplab_jax.ops.resize import resize_bilinear

RATES_OUTPUT_STRIDE = 16


def rates_at(
    rates: tuple[int, ...], output_stride: int, *, stated_at: int = RATES_OUTPUT_STRIDE, option: str = ""
) -> tuple[int, ...]:
    """Return atrous rates at another output stride than the one they are stated at (DeepLabv3: 16): doubled at half of
    it, and so on. A message calls them `option`, or else aspp_rates with their values.

    Raises:
      ValueError: a rate that is not a whole number there.
    """
    if any(rate * stated_at % output_stride for rate in rates):
        raise ValueError(
            f"{option or f'aspp_rates={rates}'} (stated at output stride {stated_at}) gives no whole rates at output "
            f"stride {output_stride}"
        )
    return tuple(rate * stated_at // output_stride for rate in rates)


class ASPP(CheckedModule):
    """Parallel branches over one map: a 1x1 convolution, one 3x3 for each rate, and image-level features. A 1x1
    convolution projects their concatenation.

    Attributes:
      aspp_channels: channels of every branch and of the result.
      aspp_rates: atrous rates, stated at output stride 16. Without rates only the 1x1 branch and the image pooling
        remain.
      image_pooling: whether to add the branch of image-level features (global average, 1x1, resized to the map).
      separable: whether the 3x3 convolutions are depthwise separable.
      head_convs: (kernel size, channels) of convolutions after the projection; torchvision has one 3x3 of 256 there.
      dropout: share dropped in training after the projection: none in the papers, 0.1 in the authors' code, 0.5 in
        torchvision.

    Raises:
      UserError: channels, rates or kernel sizes below 1.
    """

    aspp_channels: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    image_pooling: bool = True
    separable: bool = False
    head_convs: tuple[tuple[int, int], ...] = ()
    dropout: float = 0.0
    settings: LayerSettings = LayerSettings()

    projection_kernel = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "aspp_channels", "aspp_rates", "head_convs")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map features `[N, h, w, C]` at `output_stride` to `[N, h, w, aspp_channels]`."""
        s = self.settings
        branches = [ConvNorm(self.aspp_channels, settings=s, name="branch_1x1")(x, train=train)]
        for index, rate in enumerate(rates_at(self.aspp_rates, output_stride)):
            branch = self.spatial_conv(self.aspp_channels, 3, rate=rate, name=f"branch_atrous{index + 1}")
            branches.append(branch(x, train=train))
        if self.image_pooling:
            pooled = ConvNorm(self.aspp_channels, settings=s, name="image_pooling")(global_average_pool(x), train=train)
            branches.append(resize_bilinear(pooled, x.shape[1:3], align_corners=s.align_corners))
        y = jnp.concatenate(branches, axis=-1)
        y = ConvNorm(self.aspp_channels, self.projection_kernel, settings=s, name="projection")(y, train=train)
        y = Dropout(self.dropout, deterministic=not train)(y)
        for index, (kernel_size, channels) in enumerate(self.head_convs):
            y = self.spatial_conv(channels, kernel_size, name=f"head{index + 1}")(y, train=train)
        return y

    def spatial_conv(self, features: int, kernel_size: int, *, rate: int = 1, name: str) -> nn.Module:
        """Return a convolution of a branch or of the head; `ASPPVariant` replaces it."""
        return spatial_conv(
            features, kernel_size, rate=rate, separable=self.separable, settings=self.settings, name=name
        )
