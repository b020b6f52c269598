"""Plain stacks of convolutions and max pooling: VGG-16 (Simonyan & Zisserman, arXiv 1409.1556) without its classifier,
and, with other numbers, the contracting path of U-Net.
"""

from typing import Literal

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule
from deeplab_jax.models.backbones.dilation import dilate_stages
from deeplab_jax.models.layers import PADDINGS, ConvNorm, Features, LayerSettings
from deeplab_jax.ops.pooling import max_pool


class VGG(CheckedModule):
    """Stages of 3x3 convolutions with ReLU, each with a max pooling of stride 2 after it.

    After the output stride is reached, a pooling keeps its window but has no stride, and its pixels lie as far apart as
    the rate. So a network trained at one output stride runs at another. The authors of DeepLabv1 and v2 pooled adjacent
    pixels there, because Caffe had no dilated pooling; at output stride 8 that concerns pool5.

    Attributes:
      units: number of convolutions in each stage.
      channels: channels of each stage.
      last_pool: whether a pooling follows the last stage too (as in VGG; U-Net has none).
      pool_window: 2 as published; 3, centred, in DeepLab's and ParseNet's nets.
      padding: "same" keeps the size of a map; "valid" loses two pixels with every convolution (U-Net as published).
      width: factor of all channel counts.

    Raises:
      UserError: an unknown window or padding.
    """

    units: tuple[int, ...] = (2, 2, 3, 3, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    last_pool: bool = True
    pool_window: Literal[2, 3] = 2
    padding: Literal["same", "valid"] = "same"
    width: float = 1.0
    settings: LayerSettings = LayerSettings(norm="none")

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> Features:
        """Compute features `{"conv1", "pool1", "conv2", ...: (array [N, h, w, C], stride)}` of images `[N, H, W, C]`.

        conv1 has the images' own resolution; each pooling rounds the size up.
        """
        pools = len(self.units) - (not self.last_pool)
        # The pooling before a stage has its stride, so all of the stage's convolutions come after the stride.
        stages = dilate_stages((1, *[2] * pools), start=1, output_stride=output_stride, first_unit_rate="previous")
        features: Features = {}
        for index, (count, channels) in enumerate(zip(self.units, self.channels, strict=True)):
            stage = stages[index]
            for unit in range(count):
                x = ConvNorm(
                    max(1, round(channels * self.width)),
                    3,
                    rate=stage.rate,
                    padding=PADDINGS[self.padding],
                    settings=self.settings,
                    name=f"conv{index + 1}_{unit + 1}",
                )(x, train=train)
            features[f"conv{index + 1}"] = (x, stage.output_stride)
            if index < pools:
                after = stages[index + 1]
                x = max_pool(x, window=self.pool_window, stride=after.stride, rate=after.first_rate)
                features[f"pool{index + 1}"] = (x, after.output_stride)
        return features
