"""Xception as PyTorch code bases build it."""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.xception import (
    EXIT_1,
    EXIT_2,
    STEM_STRIDE,
    Row,
    Shortcut,
    Xception,
    add_shortcut,
)
from deeplab_jax.models.layers import Conv, ConvNorm, Features, LayerSettings, SeparableConvNorm
from deeplab_jax.models.separable_variants import BareSeparableConvNorm
from deeplab_jax.ops.atrous import Padding
from deeplab_jax.ops.pooling import max_pool


class VariantUnit(nn.Module):
    """Separable convolutions and a shortcut, as in `xception.Unit`, in one of two other forms.

    Attributes:
      channels, shortcut, stride, rates: as in `xception.Unit`.
      depthwise_activation: whether a ReLU follows the depthwise convolutions.
      form: "rectified" has a ReLU after the sum. "original" has nothing between a depthwise and its pointwise
        convolution; its stride is a 3x3 max pooling after the last of them.
    """

    channels: tuple[int, ...]
    shortcut: Shortcut
    stride: int
    rates: tuple[int, ...]
    depthwise_activation: bool
    settings: LayerSettings
    form: Literal["rectified", "original"]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to the output."""
        residual, pooled = self.shortcut != "none", self.form == "original"
        y = x
        for index, (channels, rate) in enumerate(zip(self.channels, self.rates, strict=True)):
            last = index + 1 == len(self.channels)
            y = (BareSeparableConvNorm if pooled else SeparableConvNorm)(
                channels,
                stride=self.stride if last and not pooled else 1,
                rate=rate,
                depthwise_activation="relu" if self.depthwise_activation else "none",
                pointwise_activation="none" if residual else "relu",
                settings=self.settings,
                name=f"separable{index + 1}",
            )(jax.nn.relu(y) if residual else y, train=train)
        if pooled and self.stride > 1:
            y = max_pool(y, window=3, stride=self.stride)
        y = add_shortcut(x, y, shortcut=self.shortcut, stride=self.stride, settings=self.settings, train=train)
        return jax.nn.relu(y) if residual and self.form == "rectified" else y


class OriginalExit(nn.Module):
    """The last two separable convolutions of the form "original".

    Both have a padding of one pixel at any rate, so each takes `rate - 1` pixels off every side of the map. If the map
    is too small for that, its centre remains. After the second there is no normalisation and no ReLU.
    """

    channels: tuple[int, ...]
    rate: int
    settings: LayerSettings

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        first, second = self.channels
        s = self.settings
        x = BareSeparableConvNorm(first, rate=self.rate, settings=s, name="separable1")(x, train=train)
        x = crop(x, self.rate - 1)
        x = Conv(first, 3, rate=self.rate, depthwise=True, settings=s, name="separable2_depthwise")(x)
        return Conv(second, settings=s, name="separable2_pointwise")(crop(x, self.rate - 1))


def crop(x: jax.Array, pixels: int) -> jax.Array:
    """Return `[N, h, w, C]` with up to so many pixels cut off each side, as long as any remain."""
    top, left = (min(pixels, (side - 1) // 2) for side in x.shape[1:3])
    return x[:, top : x.shape[1] - top, left : x.shape[2] - left]


class XceptionVariant(Xception):
    """Xception in the forms of PyTorch code bases.

    - "rectified" (jfzhang95/pytorch-deeplab-xception): the ReLU at the start of a unit works in place, so it changes
      the shortcut too, and every sum is rectified. No ReLU follows a depthwise convolution, not even in the last unit.
      The third convolution of the exit flow's first unit is never dilated. "conv2" and "conv3" are the outputs of the
      units that end at these strides.
    - "original" (VainF/DeepLabV3Plus-Pytorch): the Xception of arXiv 1610.02357. The units of the entry and the exit
      flow have 2 separable convolutions. There is no normalisation between depthwise and pointwise, strides are max
      poolings, and the stem has no padding. "conv2" and "conv3" are as in "rectified"; for the exit flow see
      `OriginalExit`.

    Attributes: those of `Xception` (`depthwise_activation=None` is False in these forms), and
      form: see above; "aligned" is the paper's.

    Raises:
      UserError: an unknown form, or an option that "original" does not have.
    """

    form: Literal["aligned", "rectified", "original"] = "aligned"

    def __post_init__(self) -> None:
        if self.form == "original" and (self.multi_grid != (1, 1, 1) or self.depthwise_activation):
            raise UserError("form='original': without multi_grid and depthwise_activation; leave them out")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv2", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        if self.form == "aligned":
            return super().__call__(x, output_stride=output_stride, train=train)
        units, s = self.units(output_stride), self.settings
        padding: Padding = "VALID" if self.form == "original" else None
        x = ConvNorm(self.scaled(32), 3, stride=2, padding=padding, settings=s, name="stem_conv1")(x, train=train)
        x = ConvNorm(self.scaled(64), 3, padding=padding, settings=s, name="stem_conv2")(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        for (channels, _, shortcut), stage, (number, name) in units:
            scaled = tuple(self.scaled(c) for c in channels)
            if self.form == "original" and shortcut == "none":
                x = OriginalExit(scaled, stage.first_rate, s, name=name)(x, train=train)
            else:
                x = VariantUnit(
                    scaled,
                    shortcut,
                    stride=stage.stride,
                    rates=self.rates(channels, shortcut, stage.first_rate),
                    depthwise_activation=bool(self.depthwise_activation),
                    settings=s,
                    form=self.form,
                    name=name,
                )(x, train=train)
            features[f"conv{number}"] = (x, stage.output_stride)
        return features

    def rows(self) -> list[Row]:
        """Return the rows of the form, one for each unit."""
        if self.form != "original":
            return super().rows()
        entry: list[Row] = [((channels,) * 2, stride, "projection") for channels, stride in self.entry]
        middle = super().rows()[len(entry) : -2]
        return [*entry, *middle, (EXIT_1[:2], 2, "projection"), (EXIT_2[1:], 1, "none")]

    def rates(self, channels: tuple[int, ...], shortcut: Shortcut, rate: int) -> tuple[int, ...]:
        """Return the rates of a unit's convolutions at a stage's rate."""
        if self.form == "rectified" and channels == EXIT_1:
            return (rate, rate, 1)
        return tuple(rate * r for r in self.multi_grid) if shortcut == "none" else (rate,) * len(channels)
