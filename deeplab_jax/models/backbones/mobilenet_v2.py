"""MobileNetV2 (Sandler et al., arXiv 1801.04381) with atrous stages and without the classifier's last 1x1 convolution,
as DeepLab uses it.
"""

from typing import Any, Literal

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule
from deeplab_jax.models.backbones.dilation import dilate_stages
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, scale_channels
from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings

Row = tuple[int, int, int, int, str]
# Table 2 of the paper: expansion, channels, units, stride of the first unit, and the name of the features. The last row
# of a name completes its features.
ROWS: tuple[Row, ...] = (
    (1, 16, 1, 1, "conv1"),
    (6, 24, 2, 2, "conv2"),
    (6, 32, 3, 2, "conv3"),
    (6, 64, 4, 2, "conv4"),
    (6, 96, 3, 1, "conv4"),
    (6, 160, 3, 2, "conv5"),
    (6, 320, 1, 1, "conv5"),
)
STEM_CHANNELS = 32
STEM_STRIDE = 2


class MobileNetV2(CheckedModule):
    """MobileNetV2 that returns the features of every stage.

    Attributes:
      width: factor of all channel counts, which are rounded to multiples of 8.
      first_unit_rate: see `dilate_stages`.

    Raises:
      UserError: `first_unit_rate` is none of these.
    """

    width: float = 1.0
    first_unit_rate: Literal["previous", "stage", "next_stage"] = "previous"
    settings: LayerSettings = LayerSettings(norm_epsilon=1e-3)

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv1", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        rows = self.rows()
        stages = dilate_stages(
            [stride for _, _, _, stride, _ in rows],
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        x = self.stem()(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        count: dict[str, int] = {}
        for (expansion, channels, units, stride, name), stage in zip(rows, stages, strict=True):
            for unit in range(units):
                first = unit == 0
                count[name] = count.get(name, 0) + 1
                module = self.unit(
                    # Every form rounds these to multiples of 8.
                    expanded=x.shape[-1] if expansion == 1 else scale_channels(x.shape[-1] * expansion, 1.0),
                    channels=self.scaled(channels),
                    stride=stage.stride if first else 1,
                    rate=stage.first_rate if first else stage.rate,
                    residual=not first or stride == 1,  # Thin networks have equal channels there (sec. 3.3).
                    name=f"{name}_unit{count[name]}",
                )
                x, depthwise = module(x, train=train)
            features[name] = (self.stage_features(name, x, depthwise), stage.output_stride)
        return features

    # `MobileNetV2Variant` overrides these.

    def stem(self, **how: Any) -> nn.Module:
        """Return the first convolution; `how` has more fields of `ConvNorm`."""
        channels = self.scaled(STEM_CHANNELS)
        return ConvNorm(channels, 3, stride=2, activation="relu6", settings=self.settings, name="stem", **how)

    def unit(self, form: type[InvertedResidual] = InvertedResidual, **how: Any) -> nn.Module:
        """Return one inverted residual; `how` has its other fields."""
        return form(kernel_size=3, activation="relu6", settings=self.settings, **how)

    def rows(self) -> tuple[Row, ...]:
        """Return the rows to build."""
        return ROWS

    def scaled(self, channels: int) -> int:
        """Return a channel count times the width."""
        return scale_channels(channels, self.width)

    def stage_features(self, name: str, output: jax.Array, depthwise: jax.Array) -> jax.Array:
        """Return the features of a stage, of the two maps that its last unit returns."""
        return output
