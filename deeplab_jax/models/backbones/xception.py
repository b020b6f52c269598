"""Modified aligned Xception (DeepLabv3+, arXiv 1802.02611, sec. 3.2 and Fig. 4; Xception: arXiv 1610.02357): deeper
than the original, with strided separable convolutions instead of max pooling, so that any stride can become a rate.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.models.backbones.dilation import Stage, dilate_stages
from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings, SeparableConvNorm

Shortcut = Literal["projection", "identity", "none"]
Row = tuple[tuple[int, ...], int, Shortcut]  # channels of its convolutions, stride and shortcut of a unit

# (channels, stride) of the entry flow's units after the two convolutions of the stem.
ENTRY_41 = ((128, 2), (256, 2), (728, 2))
ENTRY_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
MIDDLE_CHANNELS = 728
EXIT_1 = (728, 1024, 1024)
EXIT_2 = (1536, 1536, 2048)
STEM_STRIDE = 2


class Unit(nn.Module):
    """Separable convolutions, the last one with the stride, and a shortcut: a 1x1 convolution of that stride, the input
    itself, or none.

    With a shortcut, a ReLU comes before each separable convolution and none after it, so the sum is not rectified.
    Without one, a ReLU comes only after each depthwise and each pointwise convolution.

    Attributes:
      channels: channels of each separable convolution.
      shortcut: see above.
      stride: stride of the last depthwise convolution and of the 1x1 shortcut.
      rates: rates of the depthwise convolutions.
      depthwise_activation: whether a ReLU follows the depthwise convolutions also where there is a shortcut.
    """

    channels: tuple[int, ...]
    shortcut: Shortcut
    stride: int
    rates: tuple[int, ...]
    depthwise_activation: bool
    settings: LayerSettings

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map `[N, h, w, C]` to the output, and to that of the second separable convolution, at the input's size."""
        residual = self.shortcut != "none"
        outputs = []
        y = x
        for index, (channels, rate) in enumerate(zip(self.channels, self.rates, strict=True)):
            y = SeparableConvNorm(
                channels,
                stride=self.stride if index + 1 == len(self.channels) else 1,
                rate=rate,
                depthwise_activation="relu" if self.depthwise_activation or not residual else "none",
                pointwise_activation="none" if residual else "relu",
                settings=self.settings,
                name=f"separable{index + 1}",
            )(jax.nn.relu(y) if residual else y, train=train)
            outputs.append(y)
        y = add_shortcut(x, y, shortcut=self.shortcut, stride=self.stride, settings=self.settings, train=train)
        return y, outputs[1]


def add_shortcut(
    x: jax.Array, y: jax.Array, *, shortcut: Shortcut, stride: int, settings: LayerSettings, train: bool
) -> jax.Array:
    """Return the sum of `y`, the unit's convolutions of `x`, and its shortcut of `x`; within a compact method."""
    if shortcut == "projection":
        x = ConvNorm(y.shape[-1], stride=stride, activation="none", settings=settings, name="shortcut")(x, train=train)
    return y if shortcut == "none" else x + y


class Xception(CheckedModule):
    """A modified aligned Xception that returns the features of every stage, for output strides 2, 4, 8, 16 and 32.

    The features, with their strides at output stride 32 (a smaller output stride limits them):

    - "stem" (2): after the two 3x3 convolutions.
    - "conv2" (4) and "conv3" (8), which the authors' decoder uses: the second separable convolution of the unit that
      ends at stride 8 or 16, after its normalisation and before any ReLU. A unit is named after the stride at its end.
      So "conv2" lies within the submodule `conv3_unit1`, and "conv3" within `conv4_unit1`.
    - "conv4" (16): the middle flow's output, a sum without a ReLU after it.
    - "conv5" (32): the exit flow's output, after a ReLU.

    The place of the activations: Xception's units have a ReLU before each separable convolution. The paper adds batch
    normalisation and a ReLU after each 3x3 depthwise convolution (its sec. 3.2). It does not say whether the first ReLU
    stays; here it does. In the authors' released code and weights, the units with a shortcut have this normalisation
    but not this ReLU: `depthwise_activation=False`. The last unit is the same in both: no ReLU before a separable
    convolution, one after each depthwise and each pointwise convolution.

    Attributes:
      entry: (channels, stride) of the entry flow's units: `ENTRY_41`, also of Xception-65, or `ENTRY_71`.
      middle_units: units of the middle flow.
      multi_grid: multi-grid of the last unit: the rates of its three separable convolutions, which the stage's rate
        multiplies. The paper found no gain from it.
      first_unit_rate: applies to a unit that lost the stride of its last convolution. "previous", as the authors: all
        three convolutions keep the rate before it. "stage": all three take the new rate. See `dilate_stages`.
      depthwise_activation: see above; None is True in this form.
      width: factor of all channel counts; 1 is the published network.

    Raises:
      UserError: an unknown value.
    """

    entry: tuple[tuple[int, int], ...] = ENTRY_41
    middle_units: int = 16
    multi_grid: tuple[int, int, int] = (1, 1, 1)
    first_unit_rate: Literal["previous", "stage"] = "previous"
    depthwise_activation: bool | None = None
    width: float = 1.0
    settings: LayerSettings = LayerSettings(norm_epsilon=1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "multi_grid")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv2", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        units, s = self.units(output_stride), self.settings
        x = ConvNorm(self.scaled(32), 3, stride=2, settings=s, name="stem_conv1")(x, train=train)
        x = ConvNorm(self.scaled(64), 3, settings=s, name="stem_conv2")(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        reached = STEM_STRIDE
        for (channels, stride, shortcut), stage, (number, name) in units:
            rate, grid = stage.first_rate, self.multi_grid if shortcut == "none" else (1, 1, 1)
            x, second_output = Unit(
                tuple(self.scaled(c) for c in channels),
                shortcut,
                stride=stage.stride,
                rates=tuple(rate * r for r in grid),
                depthwise_activation=self.depthwise_activation is not False,
                settings=s,
                name=name,
            )(x, train=train)
            if stride > 1 and number in (3, 4):
                features[f"conv{number - 1}"] = (second_output, reached)
            if number >= 4:
                features[f"conv{number}"] = (x, stage.output_stride)
            reached = stage.output_stride
        return features

    def rows(self) -> list[Row]:
        """Return the rows of Fig. 4, one for each unit."""
        entry: list[Row] = [((channels,) * 3, stride, "projection") for channels, stride in self.entry]
        middle: list[Row] = [((MIDDLE_CHANNELS,) * 3, 1, "identity")] * self.middle_units
        return [*entry, *middle, (EXIT_1, 2, "projection"), (EXIT_2, 1, "none")]

    def units(self, output_stride: int) -> list[tuple[Row, Stage, tuple[int, str]]]:
        """Return each unit's row, its stride and rates, and its stage's number with its name."""
        rows = self.rows()
        stages = dilate_stages(
            [stride for _, stride, _ in rows],
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        return list(zip(rows, stages, unit_names(rows), strict=True))

    def scaled(self, channels: int) -> int:
        """Return a channel count times the width."""
        return max(1, round(channels * self.width))


def unit_names(rows: list[Row]) -> list[tuple[int, str]]:
    """Return the stage's number and the name of each unit: conv2 ends at stride 4, conv5 at 32."""
    names, nominal, unit = [], STEM_STRIDE, 0
    for _, stride, _ in rows:
        nominal, unit = nominal * stride, 1 if stride > 1 else unit + 1
        number = nominal.bit_length() - 1
        names.append((number, f"conv{number}_unit{unit}"))
    return names
