"""ResNet backbones (He et al., arXiv 1512.03385) with atrous stages: the plain form, with the stride in a unit's 3x3
convolution, and the "beta" form of DeepLab's authors.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule, are_positive
from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.dilation import FirstUnitRate, dilate_stages, plan_units
from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings
from deeplab_jax.ops.pooling import max_pool

STEM_STRIDE = 4
STAGE_WIDTHS = (64, 128, 256, 512)
# Kernel size and channels of the convolutions before the max pooling; the first has stride 2.
STEMS: dict[str, tuple[tuple[int, int], ...]] = {"plain": ((7, 64),), "beta": ((3, 64), (3, 64), (3, 128))}


class Unit(nn.Module):
    """One residual unit: `bottleneck` is 1x1, 3x3, 1x1 with four times the width at its end; `basic` is two 3x3.

    `first_rate` is the rate of the 3x3 convolution that carries the stride; a second 3x3 has `rate`. Returns the unit's
    output, and its residual branch before the addition.
    """

    width: int
    kind: Literal["basic", "bottleneck"]
    stride: int
    rate: int
    first_rate: int
    settings: LayerSettings

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        s = self.settings
        features = self.width * 4 if self.kind == "bottleneck" else self.width
        if self.kind == "bottleneck":
            y = ConvNorm(self.width, settings=s, name="conv1")(x, train=train)
            y = ConvNorm(self.width, 3, stride=self.stride, rate=self.first_rate, settings=s, name="conv2")(
                y, train=train
            )
            y = ConvNorm(features, activation="none", settings=s, name="conv3")(y, train=train)
        else:
            y = ConvNorm(features, 3, stride=self.stride, rate=self.first_rate, settings=s, name="conv1")(
                x, train=train
            )
            y = ConvNorm(features, 3, rate=self.rate, activation="none", settings=s, name="conv2")(y, train=train)
        if x.shape[-1] != features:
            x = ConvNorm(features, stride=self.stride, activation="none", settings=s, name="shortcut")(x, train=train)
        else:
            # As in the authors' code: a projection would have parameters only where a copy of block 4 has a stride.
            # In exports for any size, JAX writes the size of x[:, ::stride] in another way than a convolution's.
            x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, self.stride, self.stride, 1))
        return jax.nn.relu(x + y), y


class ResNet(CheckedModule):
    """A ResNet that returns the features of every stage.

    Attributes:
      units: residual units of blocks 1 to 4 (stages conv2 to conv5).
      kind: kind of the units.
      stem: "plain" is one 7x7 convolution, "beta" three 3x3.
      multi_grid: multi-grid of the last block and of its copies: the rates of its units, which the stage's rate
        multiplies (DeepLabv3, sec. 3.2.1). None is 1 for each unit.
      first_unit_rate: see `dilate_stages`. With "last_unit" a stage ends with its stride. Its features are then what
        the authors' decoder takes: the residual branch, before the addition, of the last unit at the stage's own
        resolution. The last stage's features are its output, as otherwise.
      last_block: 4, or up to 7: blocks 5 to 7 are copies of block 4, each with stride 2 (DeepLabv3, sec. 3.2, Fig. 3).
      width: factor of all channel counts; 1 is the published network.

    Raises:
      UserError: `multi_grid` does not have one rate for each unit of block 4, or an unknown value.
    """

    units: tuple[int, int, int, int]
    kind: Literal["basic", "bottleneck"]
    stem: Literal["plain", "beta"] = "plain"
    multi_grid: tuple[int, ...] | None = None
    first_unit_rate: FirstUnitRate = "previous"
    last_block: Literal[4, 5, 6, 7] = 4
    width: float = 1.0
    settings: LayerSettings = LayerSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        grid, count = self.multi_grid, self.units[3]
        if grid is not None and (len(grid) != count or not are_positive(grid)):
            raise UserError(f"multi_grid={grid}: the last block has {count} units; give as many rates of at least 1")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv2", ..., "conv5"[, ..., "conv8"]: (array [N, h, w, C], stride)}` of images
        `[N, H, W, C]`.
        """
        blocks = self.blocks()
        copies = blocks - 4  # A list times a negative number is empty.
        units = (*self.units, *[self.units[3]] * copies)[:blocks]
        full_widths = (*STAGE_WIDTHS, *[STAGE_WIDTHS[3]] * copies)[:blocks]
        widths = [max(1, round(width * self.width)) for width in full_widths]
        stages = dilate_stages(
            (1, *[2] * (len(units) - 1)),
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        stem = self.stem_convs()
        for index, (kernel_size, channels) in enumerate(stem):
            x = ConvNorm(
                max(1, round(channels * self.width)),
                kernel_size,
                stride=1 if index else 2,
                settings=self.settings,
                name="conv1" if len(stem) == 1 else f"stem_conv{index + 1}",
            )(x, train=train)
        features: Features = {"stem": (x, 2)}
        x = self.pool(x)
        for index, (count, width, stage) in enumerate(zip(units, widths, stages, strict=True)):
            grid = self.multi_grid if self.multi_grid and index >= 3 else (1,) * count
            following = stages[index + 1] if index + 1 < len(stages) else None
            branches = []
            for unit, plan in enumerate(plan_units(stage, following, grid, first_unit_rate=self.first_unit_rate)):
                x, branch = Unit(
                    width,
                    self.kind,
                    stride=plan.stride,
                    rate=self.second_rate(plan.rate),
                    first_rate=plan.first_rate,
                    settings=self.settings,
                    name=f"conv{index + 2}_unit{unit + 1}",
                )(x, train=train)
                branches.append(branch)
            early = self.first_unit_rate == "last_unit" and following is not None
            features[f"conv{index + 2}"] = (branches[-2] if early else x, stage.output_stride)
        return features

    # `ResNetVariant` overrides these.

    def blocks(self) -> int:
        """Return the number of blocks to build."""
        return self.last_block

    def stem_convs(self) -> tuple[tuple[int, int], ...]:
        """Return the kernel size and channels of the stem's convolutions."""
        return STEMS[self.stem]

    def second_rate(self, rate: int) -> int:
        """Return the rate of the second 3x3 convolution of a basic unit in a stage of this rate."""
        return rate

    def pool(self, x: jax.Array) -> jax.Array:
        """Return the pooled stem output; the windows are centred at every size."""
        return max_pool(x, window=3, stride=2)
