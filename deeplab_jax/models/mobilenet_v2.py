"""MobileNetV2 (Sandler et al., arXiv 1801.04381) with atrous stages, without the classifier's last 1x1 convolution,
as DeepLab uses it.
"""

import flax.linen as nn
import jax

from deeplab_jax.models.dilation import FirstUnitRate, dilate_stages
from deeplab_jax.models.inverted_residual import InvertedResidual, scale_channels
from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings

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
      width: multiplies all channel counts, rounded to multiples of 8.
      first_unit_rate: see `dilate_stages`.
    """

    width: float = 1.0
    first_unit_rate: FirstUnitRate = "previous"
    settings: LayerSettings = LayerSettings(norm_epsilon=1e-3)

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv1", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        stages = dilate_stages(
            [row[3] for row in ROWS],
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        x = ConvNorm(
            scale_channels(STEM_CHANNELS, self.width),
            3,
            stride=2,
            activation="relu6",
            settings=self.settings,
            name="stem",
        )(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        count: dict[str, int] = {}
        for (expansion, channels, units, _, name), stage in zip(ROWS, stages, strict=True):
            for unit in range(units):
                first = unit == 0
                count[name] = count.get(name, 0) + 1
                x = InvertedResidual(
                    3,
                    x.shape[-1] * expansion,
                    scale_channels(channels, self.width),
                    squeeze=False,
                    activation="relu6",
                    stride=stage.stride if first else 1,
                    rate=stage.first_rate if first else stage.rate,
                    residual=not first,
                    settings=self.settings,
                    name=f"{name}_unit{count[name]}",
                )(x, train=train)
            features[name] = (x, stage.output_stride)
        return features
