"""Modified aligned Xception (DeepLabv3+, arXiv 1802.02611, sec. 3.2 and Fig. 4; Xception: arXiv 1610.02357):
deeper than the original, every max pooling a strided separable convolution, so that any stride can become a rate.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.models.backbones.dilation import dilate_stages
from deeplab_jax.models.layers import Conv, ConvNorm, Features, LayerSettings, Padding, SeparableConvNorm
from deeplab_jax.ops.pooling import max_pool

Shortcut = Literal["projection", "identity", "none"]
Form = Literal["aligned", "rectified", "original"]
Row = tuple[tuple[int, ...], int, Shortcut]  # channels, stride and shortcut of a unit

# (channels, stride) of the entry flow's units after the two convolutions of the stem.
ENTRY_41 = ((128, 2), (256, 2), (728, 2))
ENTRY_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
# (entry flow, units of the middle flow) of the authors' three sizes.
SIZES = {41: (ENTRY_41, 8), 65: (ENTRY_41, 16), 71: (ENTRY_71, 16)}
MIDDLE_CHANNELS = 728
EXIT_1 = (728, 1024, 1024)
EXIT_2 = (1536, 1536, 2048)
STEM_STRIDE = 2


class Unit(nn.Module):
    """Separable convolutions, the stride on the last, and a shortcut: a 1x1 convolution of that stride, the input
    itself, or none.

    With a shortcut, a ReLU comes before each separable convolution and none after it, so the sum is not rectified.
    Without one, none comes before, and one after each depthwise and each pointwise convolution.

    Attributes:
      channels: of the separable convolutions.
      shortcut: see above.
      stride: of the last depthwise convolution and the 1x1 shortcut.
      rates: of the depthwise convolutions.
      depthwise_activation: a ReLU after the depthwise convolutions also where there is a shortcut.
      form: "rectified" has a ReLU after the sum, and leaves it to `depthwise_activation` without a shortcut, too;
        "original" has nothing between a depthwise and its pointwise convolution, and strides by a 3x3 max pooling after
        the last of them.
    """

    channels: tuple[int, ...]
    shortcut: Shortcut
    stride: int
    rates: tuple[int, ...]
    depthwise_activation: bool
    settings: LayerSettings
    form: Form = "aligned"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map `[N, h, w, C]` to the output, and to that of the second separable convolution, at the input's size."""
        residual, pooled = self.shortcut != "none", self.form == "original"
        rectified = self.depthwise_activation or (self.form == "aligned" and not residual)
        outputs = []
        y = x
        for index, (channels, rate) in enumerate(zip(self.channels, self.rates, strict=True)):
            last = index + 1 == len(self.channels)
            y = SeparableConvNorm(
                channels,
                stride=self.stride if last and not pooled else 1,
                rate=rate,
                depthwise_activation="relu" if rectified else "none",
                pointwise_activation="none" if residual else "relu",
                depthwise_norm=not pooled,
                settings=self.settings,
                name=f"separable{index + 1}",
            )(jax.nn.relu(y) if residual else y, train=train)
            outputs.append(y)
        if pooled and self.stride > 1:
            y = max_pool(y, window=3, stride=self.stride)
        if self.shortcut == "projection":
            x = ConvNorm(
                self.channels[-1], stride=self.stride, activation="none", settings=self.settings, name="shortcut"
            )(x, train=train)
        if residual:
            y = jax.nn.relu(x + y) if self.form == "rectified" else x + y
        return y, outputs[1]


class OriginalExit(nn.Module):
    """The last two separable convolutions of the form "original".

    Both are padded by one pixel at any rate, so the map loses `rate - 1` pixels on each side, twice; of a map too small
    for that, the centre remains. After the second there is no normalisation and no ReLU.
    """

    channels: tuple[int, ...]
    rate: int
    settings: LayerSettings

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        first, second = self.channels
        s = self.settings
        x = SeparableConvNorm(first, rate=self.rate, depthwise_norm=False, settings=s, name="separable1")(
            x, train=train
        )
        x = crop(x, self.rate - 1)
        x = Conv(first, 3, rate=self.rate, depthwise=True, settings=s, name="separable2_depthwise")(x)
        return Conv(second, settings=s, name="separable2_pointwise")(crop(x, self.rate - 1))


def crop(x: jax.Array, pixels: int) -> jax.Array:
    """Take up to so many pixels off each side of `[N, h, w, C]`, as long as any remain."""
    top, left = (min(pixels, (side - 1) // 2) for side in x.shape[1:3])
    return x[:, top : x.shape[1] - top, left : x.shape[2] - left]


class Xception(nn.Module):
    """A modified aligned Xception that returns the features of every stage, for output strides 2, 4, 8, 16 and 32.

    The features, with their strides at output stride 32 (below it, capped by it):

    - "stem" (2): after the two 3x3 convolutions.
    - "conv2" (4) and "conv3" (8), where the authors attach the decoder: the second separable convolution of the unit
      that strides to 8 and 16, after its normalisation and before any ReLU. So "conv2" lies within the submodule
      `conv3_unit1`, and "conv3" within `conv4_unit1`: a unit is named after the stride at which it ends.
    - "conv4" (16): the middle flow's output, a sum that no ReLU follows.
    - "conv5" (32): the exit flow's output, rectified.

    Where activations stand: the paper adds to Xception, whose units have a ReLU before each separable convolution,
    batch normalisation and a ReLU after each 3x3 depthwise convolution (its sec. 3.2), and leaves open whether the
    former ReLU stays; here it does. The authors' released code and weights have the normalisation but not the ReLU in
    the units with a shortcut: `depthwise_activation=False`. The last unit is the same in both: no ReLU before, one
    after each depthwise and each pointwise convolution.

    PyTorch code bases have other forms:

    - "rectified" (jfzhang95/pytorch-deeplab-xception): a ReLU in place, at the start of a unit, reaches its shortcut
      too, so that every sum is rectified; no ReLU after a depthwise convolution, nor in the last unit; the third
      convolution of the exit flow's first unit is never dilated; "conv2" and "conv3" are the outputs of the units that
      end at these strides.
    - "original" (VainF/DeepLabV3Plus-Pytorch): the Xception of arXiv 1610.02357, with 2 separable convolutions in the
      entry flow's and the exit flow's units, without normalisation between depthwise and pointwise, max pooling for
      strides, and no padding in the stem. "conv2" and "conv3" as in "rectified"; for the exit flow see `OriginalExit`.

    Attributes:
      entry: (channels, stride) of the entry flow's units; see `SIZES`.
      middle_units: units of the middle flow.
      multi_grid: rates of the last unit's three separable convolutions, multiplied by the stage's; the paper found no
        gain in them.
      first_unit_rate: "previous" as the authors: of a unit whose stride, on its last convolution, was removed, all
        three convolutions keep the rate before it. "stage": all three already take the new one; see `dilate_stages`.
      depthwise_activation: see above; None is a ReLU in the form "aligned" only.
      form: see above; "aligned" is the paper's.
      width: multiplies all channel counts; 1 is the published network.
    """

    entry: tuple[tuple[int, int], ...] = ENTRY_41
    middle_units: int = 16
    multi_grid: tuple[int, int, int] = (1, 1, 1)
    first_unit_rate: Literal["previous", "stage"] = "previous"
    depthwise_activation: bool | None = None
    form: Form = "aligned"
    width: float = 1.0
    settings: LayerSettings = LayerSettings(norm_epsilon=1e-3)

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv2", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        rows = self._rows()
        stages = dilate_stages(
            [stride for _, stride, _ in rows],
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        s = self.settings
        padding: Padding = "VALID" if self.form == "original" else None
        x = ConvNorm(self._scaled(32), 3, stride=2, padding=padding, settings=s, name="stem_conv1")(x, train=train)
        x = ConvNorm(self._scaled(64), 3, padding=padding, settings=s, name="stem_conv2")(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        aligned = self.form == "aligned"
        nominal, reached, unit = STEM_STRIDE, STEM_STRIDE, 0
        for (channels, stride, shortcut), stage in zip(rows, stages, strict=True):
            nominal, unit = nominal * stride, 1 if stride > 1 else unit + 1
            number = nominal.bit_length() - 1  # conv2 ends at stride 4, conv5 at 32
            scaled, name = tuple(self._scaled(c) for c in channels), f"conv{number}_unit{unit}"
            if self.form == "original" and shortcut == "none":
                x = second_output = OriginalExit(scaled, stage.first_rate, s, name=name)(x, train=train)
            else:
                x, second_output = Unit(
                    scaled,
                    shortcut,
                    stride=stage.stride,
                    rates=self._rates(channels, shortcut, stage.first_rate),
                    depthwise_activation=aligned if self.depthwise_activation is None else self.depthwise_activation,
                    settings=s,
                    form=self.form,
                    name=name,
                )(x, train=train)
            if aligned and stride > 1 and number in (3, 4):
                features[f"conv{number - 1}"] = (second_output, reached)
            if number >= 4 or not aligned:
                features[f"conv{number}"] = (x, stage.output_stride)
            reached = stage.output_stride
        return features

    def _rows(self) -> list[Row]:
        convs, exit_1, exit_2 = (2, EXIT_1[:2], EXIT_2[1:]) if self.form == "original" else (3, EXIT_1, EXIT_2)
        entry: list[Row] = [((channels,) * convs, stride, "projection") for channels, stride in self.entry]
        middle: list[Row] = [((MIDDLE_CHANNELS,) * 3, 1, "identity")] * self.middle_units
        return [*entry, *middle, (exit_1, 2, "projection"), (exit_2, 1, "none")]

    def _rates(self, channels: tuple[int, ...], shortcut: Shortcut, rate: int) -> tuple[int, ...]:
        if self.form == "rectified" and channels == EXIT_1:
            return (rate, rate, 1)
        return tuple(rate * r for r in self.multi_grid) if shortcut == "none" else (rate,) * len(channels)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))
