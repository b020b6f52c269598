"""MobileNetV3-Large (Howard et al., arXiv 1905.02244) with atrous stages and without the classifier, as torchvision
builds and dilates it for segmentation.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.models.dilation import dilate_stages
from deeplab_jax.models.layers import Activation, Conv, ConvNorm, Features, LayerSettings
from deeplab_jax.models.mobilenet_v2 import scale_channels
from deeplab_jax.ops.pooling import global_average_pool

# Table 1 of the paper: kernel size, expanded channels, channels, squeeze-and-excitation, activation, stride, and the
# name of the features that the unit leads to.
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


class SqueezeExcitation(nn.Module):
    """Weigh the channels by a gate computed from their averages (MobileNetV3, sec. 5.3; arXiv 1709.01507).

    1x1 convolution to a quarter of the channels (a multiple of 8), ReLU, 1x1 back, hard sigmoid. The average makes the
    gate depend on the map's extent and, slightly, on its stride.
    """

    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.settings
        y = Conv(scale_channels(x.shape[-1] // 4, 1.0), use_bias=True, settings=s, name="reduce")(
            global_average_pool(x)
        )
        y = Conv(x.shape[-1], use_bias=True, settings=s, name="expand")(jax.nn.relu(y))
        return x * jax.nn.hard_sigmoid(y)


class InvertedResidual(nn.Module):
    """1x1 expansion where it widens, depthwise convolution (which carries stride or rate), squeeze-and-excitation after
    its activation, linear 1x1 projection; identity shortcut where `residual` and the channels allow it.
    """

    kernel_size: int
    expanded: int
    channels: int
    squeeze: bool
    activation: Activation
    stride: int
    rate: int
    residual: bool
    settings: LayerSettings

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        s = self.settings
        y = x
        if self.expanded != x.shape[-1]:
            y = ConvNorm(self.expanded, activation=self.activation, settings=s, name="expand")(y, train=train)
        y = ConvNorm(
            self.expanded,
            self.kernel_size,
            stride=self.stride,
            rate=self.rate,
            depthwise=True,
            activation=self.activation,
            settings=s,
            name="depthwise",
        )(y, train=train)
        if self.squeeze:
            y = SqueezeExcitation(s, name="squeeze")(y)
        y = ConvNorm(self.channels, activation="none", settings=s, name="project")(y, train=train)
        return x + y if self.residual and x.shape[-1] == self.channels else y


class MobileNetV3Large(nn.Module):
    """MobileNetV3-Large that returns the features of every stage.

    "conv2", "conv3" and "conv4" end with the first unit at stride 4, 8 and 16, where torchvision's heads take their
    low-level and auxiliary features (conv3, 40 channels); "conv5" is the last 1x1 convolution (960 channels). The tail
    keeps its channels, as torchvision's does by default; the paper also halves them for segmentation (sec. 6.4).

    Attributes:
      width: multiplies all channel counts, rounded to multiples of 8.
      first_unit_rate: "stage" as torchvision, where the unit that lost its stride already has the new rate; "previous"
        keeps the rate before it. The squeeze-and-excitation sees the whole map, so even then features at two output
        strides agree only up to the difference of their averages. See `dilate_stages`.
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
            x = InvertedResidual(
                kernel_size,
                scale_channels(expanded, self.width),
                scale_channels(channels, self.width),
                squeeze,
                activation,
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
