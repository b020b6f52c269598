"""From stored pixels to the input of a network, as a record that belongs to the model."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Preprocessing:
    """Value range and normalisation of a network's input.

    Attributes:
      value_range: the values that 0 and 255 become.
      mean: subtracted from each channel (RGB), in units of that range. So a preprocessed zero is the mean pixel, which
        pads images.
      std: each channel is divided by it, in the same units.
    """

    value_range: tuple[float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map uint8 images `[..., 3]` to float32 of the same shape."""
        low, high = self.value_range
        scaled = images.astype(jnp.float32) * ((high - low) / 255.0) + low
        shape = (1,) * (images.ndim - 1) + (3,)
        return (scaled - jnp.reshape(jnp.asarray(self.mean), shape)) / jnp.reshape(jnp.asarray(self.std), shape)

    @property
    def mean_pixel(self) -> tuple[int, int, int]:
        """The mean as stored values 0 to 255, rounded: the colour of padding in the input pipeline."""
        low, high = self.value_range
        red, green, blue = (round((m - low) / (high - low) * 255.0) for m in self.mean)
        return red, green, blue


IMAGENET = Preprocessing((0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = Preprocessing((-1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# The authors' ResNets of the plain form take stored values less ImageNet's mean; their beta forms take [-1, 1].
CAFFE = Preprocessing((0.0, 255.0), (123.15, 115.9, 103.06), (1.0, 1.0, 1.0))
