"""From stored pixels to the input of a network, as a record that belongs to the model."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.checks import check_fields
from deeplab_jax.errors import UserError

MOST_CHANNELS = 1024


@dataclass(frozen=True)
class Preprocessing:
    """How files become the input of a network: the bands that are read, their values, and their normalisation.

    Attributes:
      value_range: the values that 0 and 255 become.
      mean: subtracted from each channel, in units of that range. So a preprocessed zero is the mean pixel, which pads
        images. Its length is the number of channels.
      std: each channel is divided by it, in the same units.
      channels: the bands of a file that are the channels, from 0; empty: red, green and blue as a viewer shows them.
      stored_range: (low, high), the stored values of a file that become 0 and 255; empty: the full range of its
        integer type.

    Raises:
      UserError: lengths that differ, a mean outside `value_range`, a standard deviation of 0, a band below 0, or a
        range that does not rise.
    """

    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: tuple[int, ...] = ()
    stored_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.mean or len(self.mean) != len(self.std):
            raise UserError(f"mean={self.mean}, std={self.std}: give one value of each for every channel")
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise UserError(f"mean={self.mean}, std={self.std}: give finite numbers, those of std above 0")
        if self.channels and len(self.channels) != self.in_channels:
            raise UserError(
                f"channels={self.channels}: {len(self.channels)} bands for a network of {self.in_channels} channels; "
                f"give {self.in_channels} bands, such as {','.join(map(str, range(self.in_channels)))}"
            )
        if not all(band >= 0 for band in self.channels):
            raise UserError(f"channels={self.channels}: give the numbers of bands, from 0")
        for option, ends in (("value_range", self.value_range), ("stored_range", self.stored_range or (0, 255))):
            if len(ends) != 2 or not ends[0] < ends[1]:
                raise UserError(f"{option}={ends}: give two numbers, the lower one first")
        low, high = self.value_range
        if not all(low <= value <= high for value in self.mean):
            raise UserError(
                f"mean={self.mean}: outside value_range={self.value_range}; give a mean in that range, or "
                "value_range=(0,255) for a mean in levels"
            )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images `[..., C]`, uint8 or floats of 0 to 255, to float32 of the same shape."""
        low, high = self.value_range
        scaled = images.astype(jnp.float32) * ((high - low) / 255.0) + low
        shape = (1,) * (images.ndim - 1) + (self.in_channels,)
        return (scaled - jnp.reshape(jnp.asarray(self.mean), shape)) / jnp.reshape(jnp.asarray(self.std), shape)

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return len(self.mean)

    @property
    def stored_as(self) -> type:
        """The type of images before preprocessing: uint8, or float32 where `stored_range` makes fractions of levels.
        Files of more than 8 bits are float32, too, which only the files say.
        """
        return np.float32 if self.stored_range else np.uint8

    @property
    def bands(self) -> tuple[int, ...]:
        """The bands to read of a file: `channels`, or the first ones if the network does not take three; empty: RGB."""
        return self.channels or (() if self.in_channels == 3 else tuple(range(self.in_channels)))

    @property
    def normalisation(self) -> dict[str, Any]:
        """The options of `create_model` that set value range, mean and standard deviation to these."""
        return {"value_range": self.value_range, "mean": self.mean, "std": self.std}

    @property
    def mean_pixel(self) -> tuple[int, ...]:
        """The mean as values 0 to 255, rounded: the colour of padding in the input pipeline."""
        low, high = self.value_range
        return tuple(round((m - low) / (high - low) * 255.0) for m in self.mean)

    def for_channels(self, in_channels: int) -> Self:
        """Return the record of a network with another number of channels: each has the average of the means, and of
        the standard deviations. The bands to read are those of a new file, so `channels` becomes empty.

        Raises:
          UserError: an impossible number.
        """
        if not isinstance(in_channels, int) or isinstance(in_channels, bool) or not 1 <= in_channels <= MOST_CHANNELS:
            raise UserError(f"in_channels={in_channels!r}: give a whole number from 1 to {MOST_CHANNELS}")
        if in_channels == self.in_channels:
            return self
        mean, std = ((sum(values) / len(values),) * in_channels for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std, channels=())

    def levels(self, stored: Any) -> Any:
        """Return integers as stored, an array of numpy or JAX, as levels 0 to 255: uint8 as it is, others as float32,
        with fractions. `stored_range` applies if it is set. Floats are levels already.
        """
        if not np.issubdtype(stored.dtype, np.integer) or (stored.dtype == np.uint8 and not self.stored_range):
            return stored
        low, high = self.stored_range or (0, np.iinfo(stored.dtype).max)
        return ((stored.astype(np.float32) - low) * (255.0 / (high - low))).clip(0.0, 255.0)

    def check(self, image: Any, *, name: str) -> None:
        """Raise a UserError unless an image `[..., C]` has the channels of the network; the message calls it `name`."""
        if image.shape[-1] != self.in_channels:
            raise UserError(
                f"{name}: an image of {image.shape[-1]} channels, and the network takes {self.in_channels}; choose "
                "bands of the files by config.data.channels (predict: --channels), or train with another in_channels"
            )


IMAGENET = Preprocessing((0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = Preprocessing((-1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# The authors' ResNets of the plain form take stored values less ImageNet's mean; their beta forms take [-1, 1].
CAFFE = Preprocessing((0.0, 255.0), (123.15, 115.9, 103.06), (1.0, 1.0, 1.0))


def preprocessing_with(base: Preprocessing, options: dict[str, Any]) -> Preprocessing:
    """Return a backbone's record with the options of `create_model`: fields of the record, and `in_channels`.

    Without `in_channels`, the bands in `channels` are counted, or else the values in `mean` or `std`.

    Raises:
      UserError: an impossible number of channels, or options that name different ones.
    """
    given = {key: value for key, value in options.items() if key != "in_channels"}
    lengths = (len(given[key]) for key in ("channels", "mean", "std") if given.get(key) and type(given[key]) is tuple)
    count = options["in_channels"] if "in_channels" in options else next(lengths, base.in_channels)
    return replace(base.for_channels(count), **given)
