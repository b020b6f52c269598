"""The decoder of DeepLabv3+ (sec. 3.1, Fig. 2; its ablations: Tables 1 and 2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.errors import UserError
from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings, spatial_conv
from deeplab_jax.ops.resize import resize_bilinear


class DeepLabV3PlusDecoder(CheckedModule):
    """Refine the context's output with low-level features, from the coarsest to the finest.

    At each level: reduce the low-level features by a 1x1 convolution, resize the coarser map to their size, concatenate
    both, and convolve.

    Attributes:
      low_level: names of the backbone's features to use; ("conv2",) in the paper, ("conv2", "conv3") in its ablation.
      low_level_channels: channels after the 1x1 convolution.
      decoder_convs: (kernel size, channels) of the convolutions at each level.
      separable: whether the convolutions are depthwise separable.

    Raises:
      UserError: unknown low-level features, none, or the same twice; channels or kernel sizes below 1.
    """

    low_level: tuple[str, ...] = ("conv2",)
    low_level_channels: int = 48
    decoder_convs: tuple[tuple[int, int], ...] = ((3, 256), (3, 256))
    separable: bool = False
    settings: LayerSettings = LayerSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "low_level_channels", "decoder_convs")
        if sorted(self.low_level) not in (["conv2"], ["conv3"], ["conv2", "conv3"]):
            raise UserError(f"low_level={self.low_level}: choose from 'conv2' and 'conv3', each once")

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Return `[N, h', w', C']` at the stride of the finest low-level features, for the context's output
        `[N, h, w, C]`.
        """
        s = self.settings
        for name in sorted(self.low_level, reverse=True):  # Not by stride: it can be the same at small output strides.
            low, _ = features[name]
            low = ConvNorm(self.low_level_channels, settings=s, name=f"{name}_reduction")(low, train=train)
            x = jnp.concatenate([resize_bilinear(x, low.shape[1:3], align_corners=s.align_corners), low], axis=-1)
            for index, (kernel_size, channels) in enumerate(self.decoder_convs):
                x = self.spatial_conv(channels, kernel_size, name=f"{name}_conv{index + 1}")(x, train=train)
        return x

    def spatial_conv(self, features: int, kernel_size: int, *, name: str) -> nn.Module:
        """Return one of the convolutions at a level; `DeepLabV3PlusDecoderVariant` replaces it."""
        return spatial_conv(features, kernel_size, separable=self.separable, settings=self.settings, name=name)
