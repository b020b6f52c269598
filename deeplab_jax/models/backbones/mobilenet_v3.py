"""MobileNetV3-Large (Howard et al., arXiv 1905.02244) with atrous stages and without the classifier. torchvision builds
and dilates it so for segmentation.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule
from deeplab_jax.models.backbones.dilation import dilate_stages
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, scale_channels
from deeplab_jax.models.layers import Activation, ConvNorm, Features, LayerSettings

# Table 1 of the paper: kernel size, expanded channels, channels, squeeze-and-excitation, activation, stride, and the
# name of the features.
ROWS: tuple[tuple[int, int, int, bool, Activation, int, str], ...] = (
    (3, 16, 16, False, "relu", 1, "conv2"),
    (3, 64, 24, False, "relu", 2, "conv2"),
    (3, 72, 24, False, "relu", 1, "conv3"),
    (5, 72, 40, True, "relu", 2, "conv3"),
    (5, 120, 40, True, "relu", 1, "conv4"),
    (5, 120, 40, True, "relu", 1, "conv4"),
    (3, 240, 80, False, "hard_swish", 2, "conv4"),
    (3, 200, 80, False, "hard_swish", 1, "conv5"),
    (3, 184, 80, False, "hard_swish", 1, "conv5"),
    (3, 184, 80, False, "hard_swish", 1, "conv5"),
    (3, 480, 112, True, "hard_swish", 1, "conv5"),
    (3, 672, 112, True, "hard_swish", 1, "conv5"),
    (5, 672, 160, True, "hard_swish", 2, "conv5"),
    (5, 960, 160, True, "hard_swish", 1, "conv5"),
    (5, 960, 160, True, "hard_swish", 1, "conv5"),
)
STEM_CHANNELS = 16
STEM_STRIDE = 2
LAST_EXPANSION = 6


class MobileNetV3Large(CheckedModule):
    """MobileNetV3-Large that returns the features of every stage.

    "conv2", "conv3" and "conv4" end with the first unit at stride 4, 8 and 16. torchvision's heads take their low-level
    and auxiliary features there (conv3, 40 channels). "conv5" is the last 1x1 convolution (960 channels). The last
    stage keeps its channels, as in torchvision by default; the paper also halves them for segmentation (sec. 6.4).

    Attributes:
      width: factor of all channel counts, which are rounded to multiples of 8.
      first_unit_rate: "stage", as in torchvision: the unit that lost its stride already has the new rate. "previous":
        it keeps the rate before. Even then features at two output strides agree only up to the difference of their
        averages, because squeeze-and-excitation sees the whole map. See `dilate_stages`.

    Raises:
      UserError: `first_unit_rate` is none of these.
    """

    width: float = 1.0
    first_unit_rate: Literal["previous", "stage"] = "stage"
    settings: LayerSettings = LayerSettings(norm_epsilon=1e-3)

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"stem", "conv2", ..., "conv5": (array [N, h, w, C], stride)}` of images `[N, H, W, C]`."""
        stages = dilate_stages(
            [row[5] for row in ROWS],
            start=STEM_STRIDE,
            output_stride=output_stride,
            first_unit_rate=self.first_unit_rate,
        )
        x = ConvNorm(
            scale_channels(STEM_CHANNELS, self.width),
            3,
            stride=2,
            activation="hard_swish",
            settings=self.settings,
            name="stem",
        )(x, train=train)
        features: Features = {"stem": (x, STEM_STRIDE)}
        count: dict[str, int] = {}
        for (kernel_size, expanded, channels, squeeze, activation, stride, name), stage in zip(
            ROWS, stages, strict=True
        ):
            count[name] = count.get(name, 0) + 1
            x, _ = InvertedResidual(
                kernel_size=kernel_size,
                expanded=scale_channels(expanded, self.width),
                channels=scale_channels(channels, self.width),
                squeeze=squeeze,
                activation=activation,
                stride=stage.stride,
                rate=stage.first_rate,
                residual=stride == 1,
                settings=self.settings,
                name=f"{name}_unit{count[name]}",
            )(x, train=train)
            features[name] = (x, stage.output_stride)
        x = ConvNorm(LAST_EXPANSION * x.shape[-1], activation="hard_swish", settings=self.settings, name="conv5_last")(
            x, train=train
        )
        features["conv5"] = (x, stages[-1].output_stride)
        return features
