"""RefineNet (Lin et al., arXiv 1611.06612): refinement from coarse to fine by residual units without normalisation."""

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.models.layers import SMALL_NORMAL, Conv, Dropout, Features, LayerSettings
from deeplab_jax.ops.pooling import max_pool
from deeplab_jax.ops.resize import resize_bilinear

POOLINGS = 4
STAGES = ("conv5", "conv4", "conv3", "conv2")


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to the input (sec. 3.2).

    The second starts small: without normalisation, twenty units of full size would multiply their input many times.
    """

    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s, channels = self.settings, x.shape[-1]
        y = Conv(channels, 3, use_bias=True, settings=s, name="conv1")(jax.nn.relu(x))
        return x + Conv(channels, 3, settings=s, kernel_init=SMALL_NORMAL, name="conv2")(jax.nn.relu(y))


class ChainedResidualPooling(nn.Module):
    """A chain of links, each a 5x5 max pooling of stride 1 and a 3x3 convolution, which starts small. The result is the
    sum of all links and the rectified input.
    """

    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x)
        link = x
        for index in range(POOLINGS):
            link = max_pool(link, window=5, stride=1)
            link = Conv(x.shape[-1], 3, settings=self.settings, kernel_init=SMALL_NORMAL, name=f"conv{index + 1}")(link)
            x = x + link
        return x


class RefineNetDecoder(CheckedModule):
    """Four RefineNet blocks, from conv5 to conv2: reduce and adapt the features (two residual units), fuse them with
    the coarser result, pool in a chain, and refine (three residual units; sec. 3.1 and 3.2).

    The numbers of units and of poolings are those of the authors' released networks. Their chain has four links; the
    paper's figure shows two.

    Attributes:
      decoder_channels: channels of the blocks of conv5, conv4, conv3 and conv2.
      dropout: share dropped in training from the two coarsest features and before the classifier.

    Raises:
      UserError: `decoder_channels` are not four of at least 1.
    """

    decoder_channels: tuple[int, int, int, int] = (512, 256, 256, 256)
    dropout: float = 0.5
    settings: LayerSettings = LayerSettings()

    classifier_kernel = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "decoder_channels")

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Map the features conv2 to conv5 to `[N, h, w, decoder_channels[-1]]` at conv2's resolution."""
        s = self.settings
        coarser: jax.Array | None = None
        for index, (name, channels) in enumerate(zip(STAGES, self.decoder_channels, strict=True)):
            y, _ = features[name]
            if index < 2:
                y = Dropout(self.dropout, deterministic=not train)(y)
            y = Conv(channels, 3, settings=s, name=f"{name}_reduce")(y)
            for unit in (1, 2):
                y = ResidualConvUnit(settings=s, name=f"{name}_adapt{unit}")(y)
            if coarser is not None:
                y = Conv(channels, 3, settings=s, name=f"{name}_fuse")(y)
                coarser = Conv(channels, 3, settings=s, name=f"{name}_fuse_coarser")(coarser)
                y = y + resize_bilinear(coarser, y.shape[1:3], align_corners=s.align_corners)
            y = ChainedResidualPooling(settings=s, name=f"{name}_pooling")(y)
            for unit in (1, 2, 3):
                y = ResidualConvUnit(settings=s, name=f"{name}_refine{unit}")(y)
            coarser = y
        return Dropout(self.dropout, deterministic=not train)(y)
