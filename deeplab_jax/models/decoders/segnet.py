"""The decoder of SegNet (Badrinarayanan et al., arXiv 1511.00561, sec. 3): unpooling by the encoder's maxima."""

import flax.linen as nn
import jax

from deeplab_jax.models.layers import ConvNorm, Features, LayerSettings
from deeplab_jax.ops.pooling import max_unpool

UNITS = (2, 2, 3, 3, 3)  # Convolutions of VGG-16's stages conv1 to conv5.


class SegNetDecoder(nn.Module):
    """Mirror VGG-16. Before each stage, put every value where the encoder's pooling found its maximum, zeros elsewhere.

    The encoder's indices are read from the maps that it pooled. The last stage's last convolution is the classifier.
    """

    settings: LayerSettings = LayerSettings()

    classifier_kernel = 3

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Map pool5 `[N, h, w, C]` to `[N, H, W, C']` at the resolution of the images."""
        stride = features["context"][1]
        if stride != 2 ** len(UNITS):
            raise ValueError(f"output_stride={stride}: SegNet unpools every pooling of stride 2; leave it out")
        for stage in range(len(UNITS), 0, -1):
            pooled, _ = features[f"conv{stage}"]
            x = max_unpool(x, pooled)
            narrower = features[f"conv{stage - 1}"][0].shape[-1] if stage > 1 else pooled.shape[-1]
            last = 0 if stage > 1 else 1
            for unit in range(UNITS[stage - 1], last, -1):
                channels = narrower if unit == 1 else pooled.shape[-1]
                x = ConvNorm(channels, 3, settings=self.settings, name=f"conv{stage}_{unit}")(x, train=train)
        return x
