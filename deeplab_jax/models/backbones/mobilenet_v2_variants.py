"""MobileNetV2 as other code bases build it: their paddings, roundings and ends."""

from typing import Any, Literal

import flax.linen as nn
import jax

from deeplab_jax.checks import check_counts
from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, PaddedFirst, scale_channels
from deeplab_jax.models.backbones.mobilenet_v2 import ROWS, MobileNetV2, Row
from deeplab_jax.models.layers import ConvNorm, Features
from deeplab_jax.ops.atrous import Padding


class MobileNetV2Variant(MobileNetV2):
    """MobileNetV2 with what the weights of other code bases need.

    Attributes: those of `MobileNetV2`, and
      channel_divisor: channel counts are rounded to multiples of it; the authors' DeepLab has 1 for widths other than
        1.
      strided_padding: "symmetric" samples the same pixels at every output stride. "same" is TensorFlow's, as in the
        authors' code: where a strided convolution meets an odd side it is the same, at an even side it is shifted by a
        pixel.
      last_stage: name of the last features; the network ends there (segmentation_models_pytorch).
      last_channels: channels of a 1x1 convolution at the end (1280 in Table 2), whose output becomes the last features;
        0 means no such convolution.
      stem_padding: "same" pads the first convolution like every other one, "valid" does not (VainF).
      pad_input: pads before the expansion; see `PaddedFirst`.
      low_level_within: whether the features "conv2" and "conv3" are the maps within the stage's last unit, after its
        depthwise convolution, as in the decoder of the authors' code.

    Raises:
      UserError: an unknown value.
    """

    channel_divisor: int = 8
    strided_padding: Literal["symmetric", "same"] = "symmetric"
    last_stage: Literal["conv3", "conv4", "conv5"] = "conv5"
    last_channels: int = 0
    stem_padding: Literal["same", "valid"] = "same"
    pad_input: bool = False
    low_level_within: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "channel_divisor")
        if self.last_channels < 0:
            raise UserError(f"last_channels={self.last_channels}: give a number of channels, or 0 for no convolution")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute the features of `MobileNetV2`, up to `last_stage`."""
        features = super().__call__(x, output_stride=output_stride, train=train)
        if self.last_channels:
            x, stride = features[self.last_stage]
            last = ConvNorm(self.last_channels, activation="relu6", settings=self.settings, name="last")
            features[self.last_stage] = (last(x, train=train), stride)
        return features

    def stem(self, **how: Any) -> nn.Module:
        """Return the first convolution."""
        return super().stem(padding="VALID" if self.stem_padding == "valid" else self.pads, **how)

    def unit(self, form: type[InvertedResidual] = InvertedResidual, **how: Any) -> nn.Module:
        """Return one inverted residual."""
        return super().unit(PaddedFirst if self.pad_input else form, padding=self.pads, **how)

    @property
    def pads(self) -> Padding:
        """Padding of the strided and the depthwise convolutions."""
        return "SAME" if self.strided_padding == "same" else None

    def rows(self) -> tuple[Row, ...]:
        """Return the rows to build."""
        return tuple(row for row in ROWS if row[4] <= self.last_stage)

    def scaled(self, channels: int) -> int:
        """Return a channel count times the width."""
        return scale_channels(channels, self.width, divisor=self.channel_divisor)

    def stage_features(self, name: str, output: jax.Array, depthwise: jax.Array) -> jax.Array:
        """Return the features of a stage, of the two maps that its last unit returns."""
        return depthwise if self.low_level_within and name in ("conv2", "conv3") else output
