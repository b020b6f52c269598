"""The pyramid of DeepLabv2 (Chen et al., arXiv 1606.00915, sec. 3.2 and 4.1): logits for each rate, summed."""

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule, check_positive
from deeplab_jax.models.contexts.aspp import rates_at
from deeplab_jax.models.contexts.fully_connected import VGG_RATES_OUTPUT_STRIDE, FullyConnected
from deeplab_jax.models.layers import Features, LayerSettings, classifier


class SummedPyramid(CheckedModule):
    """Parallel atrous branches that each end in class logits; the logits are added. No normalisation.

    Attributes:
      num_classes: classes of the logits.
      aspp_rates: atrous rates, stated at output stride 8: (6, 12, 18, 24) is the paper's ASPP-L, (2, 4, 8, 12) ASPP-S.
      fc_channels: channels of the fc6 (3x3 at the rate) and fc7 that each branch has on VGG-16. 0 means none, as on
        ResNet-101: there a branch is a single 3x3 convolution to the logits.
      dropout: share dropped in training after fc6 and fc7.

    Raises:
      UserError: the rates are not different whole numbers of at least 1.
    """

    num_classes: int
    aspp_rates: tuple[int, ...] = (6, 12, 18, 24)
    fc_channels: int = 0
    dropout: float = 0.5
    settings: LayerSettings = LayerSettings()

    classifier_kernel = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("aspp_rates", self.aspp_rates)

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to logits `[N, h, w, num_classes]`."""
        output_stride = features["context"][1]
        logits = []
        for index, rate in enumerate(self.aspp_rates):
            if self.fc_channels:
                fully_connected = FullyConnected(
                    fc_kernel=3,
                    fc_channels=self.fc_channels,
                    fc_rate=rate,
                    dropout=self.dropout,
                    settings=self.settings,
                    name=f"branch{index + 1}",
                )
                branch, kernel_size, own_rate = fully_connected(x, output_stride=output_stride, train=train), 1, 1
            else:
                branch, kernel_size = x, 3
                (own_rate,) = rates_at((rate,), output_stride, stated_at=VGG_RATES_OUTPUT_STRIDE)
            logits.append(
                classifier(
                    self.num_classes,
                    kernel_size,
                    rate=own_rate,
                    settings=self.settings,
                    name=f"classifier_branch{index + 1}",
                )(branch)
            )
        return sum(logits[1:], logits[0])
