"""Lite R-ASPP (MobileNetV3, arXiv 1905.02244, sec. 6.4 and Fig. 10), as torchvision builds it."""

import flax.linen as nn
import jax

from deeplab_jax.checks import CheckedModule, check_counts
from deeplab_jax.models.layers import Conv, ConvNorm, Features, LayerSettings, classifier
from deeplab_jax.ops.pooling import global_average_pool
from deeplab_jax.ops.resize import resize_bilinear

LOW_LEVEL = "conv3"  # Name of the finer features, at stride 8.


class LiteRASPP(CheckedModule):
    """A reduced map, weighted by a gate of image-level features; its logits and those of finer features are added.

    The gate averages the whole map, as in torchvision; the paper's averages windows of 49x49 samples.

    Attributes:
      num_classes: classes of the logits.
      context_channels: channels of the reduced map and its gate.

    Raises:
      UserError: channels below 1.
    """

    num_classes: int
    context_channels: int = 128
    settings: LayerSettings = LayerSettings()

    classifier_kernel = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "context_channels")

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` and the features to logits `[N, h', w', num_classes]` at the finer features' stride."""
        s = self.settings
        low, _ = features[LOW_LEVEL]
        gate = jax.nn.sigmoid(Conv(self.context_channels, settings=s, name="gate")(global_average_pool(x)))
        reduced = gate * ConvNorm(self.context_channels, settings=s, name="reduction")(x, train=train)
        high = resize_bilinear(reduced, low.shape[1:3], align_corners=s.align_corners)
        logits = [
            classifier(self.num_classes, settings=s, name=f"classifier_{name}")(x)
            for name, x in (("low", low), ("high", high))
        ]
        return logits[0] + logits[1]
