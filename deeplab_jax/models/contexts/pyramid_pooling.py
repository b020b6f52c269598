"""Context from pooled regions: PSPNet's pyramid pooling, ParseNet's global context, the original spatial pyramid."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.checks import CheckedModule, check_counts, check_positive
from deeplab_jax.models.contexts.fully_connected import FullyConnected, LargeFOV
from deeplab_jax.models.layers import ConvNorm, Dropout, LayerSettings, parameter
from deeplab_jax.ops.pooling import adaptive_average_pool, global_average_pool, spatial_pyramid
from deeplab_jax.ops.resize import resize_bilinear


class PyramidPooling(CheckedModule):
    """PSPNet's context (Zhao et al., arXiv 1612.01105, sec. 3.2): averages over 1x1, 2x2, 3x3 and 6x6 regions. A 1x1
    convolution reduces each, they are resized and joined with the map itself, and a 3x3 convolution follows.

    Attributes:
      bins: regions along a side at each level.
      context_channels: channels after the last convolution.
      dropout: share dropped in training after it.

    Raises:
      UserError: `bins` are not different whole numbers of at least 1, or channels below 1.
    """

    bins: tuple[int, ...] = (1, 2, 3, 6)
    context_channels: int = 512
    dropout: float = 0.1
    settings: LayerSettings = LayerSettings()

    context_kernel = 3  # The kernel of the last convolution.

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("bins", self.bins)
        check_counts(self, "context_channels")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, context_channels]`."""
        s = self.settings
        reduced_channels = max(1, x.shape[-1] // len(self.bins))
        levels = [x]
        for count in self.bins:
            pooled = adaptive_average_pool(x, count)
            reduced = ConvNorm(reduced_channels, settings=self.level_settings(count), name=f"bins{count}")(
                pooled, train=train
            )
            levels.append(resize_bilinear(reduced, x.shape[1:3], align_corners=s.align_corners))
        y = jnp.concatenate(levels, axis=-1)
        y = ConvNorm(self.context_channels, self.context_kernel, settings=s, name="projection")(y, train=train)
        return Dropout(self.dropout, deterministic=not train)(y)

    def level_settings(self, count: int) -> LayerSettings:
        """Return the settings of the level with so many regions along a side."""
        return self.settings


class L2Normalisation(nn.Module):
    """Scale every pixel's channels to unit length, then each channel by a learned factor, at first 10 (ParseNet, sec.
    3.2).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.constant(10.0), x.shape[-1:])
        squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(squares + 1e-10) * scale[None, None, None]).astype(x.dtype)


class GlobalContext(LargeFOV):
    """ParseNet's context (Liu et al., arXiv 1506.04579, sec. 3): fc7 and its global average, each L2-normalised. The
    average is repeated at every pixel and joined with the local features ("early fusion").

    Attributes: those of `FullyConnected`, for fc6 and fc7.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, 2 fc_channels]`."""
        local = FullyConnected(
            fc_kernel=self.fc_kernel,
            fc_channels=self.fc_channels,
            fc_rate=self.fc_rate,
            dropout=self.dropout,
            settings=self.settings,
            name="local",
        )
        x = local(x, output_stride=output_stride, train=train)
        average = L2Normalisation(name="norm_global")(global_average_pool(x))
        return jnp.concatenate([L2Normalisation(name="norm_local")(x), jnp.broadcast_to(average, x.shape)], axis=-1)


class SpatialPyramidContext(CheckedModule):
    """The vector of the original spatial pyramid pooling (He et al., arXiv 1406.4729, sec. 2.2) as context.

    SPP-net classifies. Its maxima over 4x4, 2x2 and 1x1 regions turn a map of any size into a vector of fixed length
    for the fully connected layers. Here one fully connected layer reads that vector, and every pixel of the map
    receives its result, as in ParseNet. That last step is this project's, for segmentation.

    Attributes:
      bins: regions along a side at each level.
      context_channels: channels of the fully connected layer and of the result.

    Raises:
      UserError: `bins` are not different whole numbers of at least 1, or channels below 1.
    """

    bins: tuple[int, ...] = (4, 2, 1)
    context_channels: int = 512
    settings: LayerSettings = LayerSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("bins", self.bins)
        check_counts(self, "context_channels")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, context_channels]`."""
        s, channels = self.settings, self.context_channels
        vector = spatial_pyramid(x, self.bins)[:, None, None]
        vector = ConvNorm(channels, settings=s, name="vector")(vector, train=train)
        everywhere = jnp.broadcast_to(vector, (*x.shape[:3], channels))
        return ConvNorm(channels, settings=s, name="projection")(jnp.concatenate([x, everywhere], axis=-1), train=train)
