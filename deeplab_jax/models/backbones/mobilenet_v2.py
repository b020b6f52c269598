"""MobileNetV2 (Sandler et al., arXiv 1801.04381) with atrous stages; as DeepLab uses it, without the classifier's last
1x1 convolution.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.models.backbones.dilation import FirstUnitRate, dilate_stages
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, scale_channels
from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings, Padding

# Table 2 of the paper: expansion, channels, units, stride of the first unit, and the name of the features that the row
# leads to; the last row of each name completes them.
ROWS = (
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


class MobileNetV2(nn.Module):
    """MobileNetV2 that returns the features of every stage.

    Attributes:
      width: multiplies all channel counts.
      channel_divisor: of which they are rounded to multiples; the authors' DeepLab has 1 where the width is not 1.
      first_unit_rate: see `dilate_stages`.
      strided_padding: "symmetric" samples the same pixels at every output stride; "same" is TensorFlow's, of the
        authors' code: equal to it where a strided convolution meets an odd side, shifted by a pixel where it meets an
        even one.
      last_stage: name of the last features; what follows them is left out.
      last_channels: of a 1x1 convolution at the end (1280 in Table 2), whose output then are the last features; 0 has
        none.
      stem_padding: "same" pads the first convolution like every other one, "valid" does not (VainF's code).
      pad_input: see `InvertedResidual`.
    """

    width: float = 1.0
    channel_divisor: int = 8
    first_unit_rate: FirstUnitRate = "previous"
    strided_padding: Literal["symmetric", "same"] = "symmetric"
    last_stage: str = "conv5"
    last_channels: int = 0
    stem_padding: Literal["same", "valid"] = "same"
    pad_input: bool = False
    settings: LayerSettings = LayerSettings(norm_epsilon=1e-3)

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv1", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        rows = [row for row in ROWS if row[4] <= self.last_stage]
        stages = dilate_stages(
            [row[3] for row in rows],
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        padding: Padding = "SAME" if self.strided_padding == "same" else None
        x = ConvNorm(
            self._scaled(STEM_CHANNELS),
            3,
            stride=2,
            activation="relu6",
            padding="VALID" if self.stem_padding == "valid" else padding,
            settings=self.settings,
            name="stem",
        )(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        count: dict[str, int] = {}
        for (expansion, channels, units, _, name), stage in zip(rows, stages, strict=True):
            for unit in range(units):
                first = unit == 0
                count[name] = count.get(name, 0) + 1
                x = InvertedResidual(
                    3,
                    # To multiples of 8 whatever `channel_divisor`, as in the authors' code.
                    x.shape[-1] if expansion == 1 else scale_channels(x.shape[-1] * expansion, 1.0),
                    self._scaled(channels),
                    squeeze=False,
                    activation="relu6",
                    stride=stage.stride if first else 1,
                    rate=stage.first_rate if first else stage.rate,
                    residual=not first,
                    settings=self.settings,
                    padding=padding,
                    pad_input=self.pad_input,
                    name=f"{name}_unit{count[name]}",
                )(x, train=train)
            features[name] = (x, stage.output_stride)
        if self.last_channels:
            x = ConvNorm(self.last_channels, activation="relu6", settings=self.settings, name="last")(x, train=train)
            features[name] = (x, stage.output_stride)
        return features

    def _scaled(self, channels: int) -> int:
        return scale_channels(channels, self.width, divisor=self.channel_divisor)
