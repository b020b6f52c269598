"""The expanding path of U-Net (Ronneberger et al., arXiv 1505.04597, Fig. 1), for any backbone's features."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.errors import UserError
from deeplab_jax.models.layers import PADDINGS, ConvNorm, Dropout, Features, LayerSettings, parameter
from deeplab_jax.ops.resize import centre_crop
from deeplab_jax.ops.transposed import conv_transpose2d

# As published, 572 pixels become 388: 16 b + 124 become 16 b - 60, with b samples at the bottom before its
# convolutions.
VALID_BORDER = 92
VALID_STEP = 16
VALID_SMALLEST = 188


def next_valid_side(side: int) -> int:
    """Return the smallest side of at least so many pixels that every pooling halves without a remainder. Other sides
    would shift the skips against the deeper maps.
    """
    return VALID_SMALLEST + max(0, -(-(side - VALID_SMALLEST) // VALID_STEP)) * VALID_STEP


class UpConvolution(nn.Module):
    """A transposed 2x2 convolution of stride 2, which doubles the size of a map; parameters as in `Conv`.

    Each pixel of the result sees one tap. So N in the paper's initial deviation, sqrt(2 / N) (sec. 3), is the number of
    input channels.
    """

    features: int
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.settings.dtype)
        init = nn.initializers.he_normal(batch_axis=(0, 1))
        kernel = parameter(self, "kernel", init, (2, 2, x.shape[-1], self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        x = conv_transpose2d(x.astype(dtype), kernel.astype(dtype), stride=2)
        return x + bias.astype(dtype)[None, None, None]


class UNetDecoder(CheckedModule):
    """From the deepest features to the finest: double the size, concatenate the skip, convolve twice.

    Attributes:
      skips: names of the features to concatenate, from coarse to fine; "" for a step without one.
      decoder_channels: channels of each step's convolutions.
      upsampling: "transposed" is the published 2x2 convolution to half of the channels. "nearest" repeats pixels and
        keeps the channels, as in segmentation_models_pytorch.
      padding: "same" keeps the size. "valid", as published, loses pixels with every convolution; skips are cropped to
        the centre.
      dropout: share dropped in training from the deepest features (sec. 3.1 puts it at the end of the contracting
        path).

    Raises:
      UserError: an unknown upsampling or padding, a number of `decoder_channels` other than that of the skips, or
        channels below 1.
    """

    skips: tuple[str, ...] = ("conv4", "conv3", "conv2", "conv1")
    decoder_channels: tuple[int, ...] = (512, 256, 128, 64)
    upsampling: Literal["transposed", "nearest"] = "transposed"
    padding: Literal["same", "valid"] = "same"
    dropout: float = 0.5
    settings: LayerSettings = LayerSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "decoder_channels")
        if len(self.skips) != len(self.decoder_channels):
            raise UserError(
                f"decoder_channels={self.decoder_channels}: one number for each of the {len(self.skips)} skips "
                f"{self.skips}"
            )

    @property
    def classifier_kernel(self) -> int:
        """Kernel size after the upsampling: 1 as published, 3 after repeated pixels."""
        return 1 if self.upsampling == "transposed" else 3

    @property
    def border(self) -> int:
        """Pixels on each side of the images that the result does not cover."""
        return VALID_BORDER if self.padding == "valid" else 0

    def fitting_side(self, side: int) -> int:
        """Return the smallest side of an image, in pixels, of at least `side` that fits."""
        return next_valid_side(side) if self.padding == "valid" else side

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Return `[N, h', w', decoder_channels[-1]]` at the resolution of the last skip, or of the images if the last
        step has none, for the deepest features `[N, h, w, C]`.
        """
        x = Dropout(self.dropout, deterministic=not train)(x)
        stride = features["context"][1]
        for index, (name, channels) in enumerate(zip(self.skips, self.decoder_channels, strict=True)):
            if name and name not in features:
                raise ValueError(f"skips={self.skips}: the backbone has no {name!r}; choose from {', '.join(features)}")
            skip, finer_stride = features[name or "image"]
            if stride != 2 * finer_stride:
                raise ValueError(
                    f"output_stride={features['context'][1]}: U-Net doubles the resolution at every step, which this "
                    "backbone's own output stride needs; leave it out"
                )
            stride = finer_stride
            if self.upsampling == "transposed":
                x = UpConvolution(channels, settings=self.settings, name=f"step{index + 1}_up")(x)
            else:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            if self.padding == "same":
                # Poolings round up, so twice the size may be one pixel too large.
                x = x[:, : skip.shape[1], : skip.shape[2]]
            if name:
                x = jnp.concatenate([x, centre_crop(skip, x.shape[1:3])], axis=-1)
            for unit in (1, 2):
                x = ConvNorm(
                    channels,
                    3,
                    padding=PADDINGS[self.padding],
                    settings=self.settings,
                    name=f"step{index + 1}_conv{unit}",
                )(x, train=train)
        return x
