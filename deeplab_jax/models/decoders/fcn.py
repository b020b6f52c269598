"""Fully convolutional networks (Long et al., arXiv 1411.4038) and torchvision's head of that name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.checks import CheckedModule
from deeplab_jax.models.layers import ConvNorm, Dropout, Features, LayerSettings, classifier, parameter
from deeplab_jax.ops.transposed import conv_transpose2d


def reduce_channels(x: jax.Array, *, dropout: float, settings: LayerSettings, train: bool) -> jax.Array:
    """Apply a 3x3 convolution to a quarter of the channels (submodule `conv`) and dropout, within a compact method."""
    x = ConvNorm(x.shape[-1] // 4, 3, settings=settings, name="conv")(x, train=train)
    return Dropout(dropout, deterministic=not train)(x)


class FCNReduction(CheckedModule):
    """torchvision's FCN before its classifier: 3x3 to a quarter of the channels, dropout.

    Attributes:
      dropout: share dropped in training at the end.
    """

    dropout: float = 0.1
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array, *, output_stride: int, train: bool) -> jax.Array:
        """Map `[N, h, w, C]` to `[N, h, w, C / 4]`."""
        return reduce_channels(x, dropout=self.dropout, settings=self.settings, train=train)


class FCNHead(nn.Module):
    """torchvision's FCN head, here the auxiliary one: 3x3 to a quarter of the channels, dropout, 1x1 to the classes."""

    num_classes: int
    dropout: float = 0.1
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = reduce_channels(x, dropout=self.dropout, settings=self.settings, train=train)
        return classifier(self.num_classes, settings=self.settings, name="classifier")(x)


def bilinear_kernel(key: Any, shape: tuple[int, int, int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Return the kernel `[2s, 2s, C, C]` with which a transposed convolution of stride s upsamples each channel
    bilinearly. It is an initializer; `key` is not used.
    """
    stride = shape[0] // 2
    taps = 1 - np.abs(np.arange(2 * stride) + 0.5 - stride) / stride
    return jnp.asarray(taps[:, None, None, None] * taps[None, :, None, None] * np.eye(shape[2])[None, None], dtype)


class FCNSkips(CheckedModule):
    """Classify the deepest map and those of finer stages, and sum the logits from coarse to fine. A learned transposed
    convolution, which starts as bilinear interpolation, upsamples each of them (sec. 3.3 and 4.2).

    Sample i of a map at stride s covers pixels `s i` to `s i + s - 1`, because 2x2 poolings tile the image. A
    transposed convolution of stride t and 2t taps, cropped by t / 2, preserves that. So the logits end at the image's
    own size without another resize. Within half a stride of the border the next sample is missing, and each axis
    weakens the logits down to a half; the original's padded image has these pixels outside. All skips train together
    ("at once"); the paper's stages are runs with `config.init`.

    The authors' code fixes the bilinear kernels, one for each class. Here all of them are learned, and mix the classes.
    The authors' network that trains at once (voc-fcn8s-atonce) multiplies pool4 by 0.01 and pool3 by 0.0001 before it
    classifies them. The networks of its stages (voc-fcn16s, voc-fcn8s) do not, and neither does this one.

    Attributes:
      num_classes: classes of the logits.
      skips: features to add, from coarse to fine: () for FCN-32s, ("pool4",) for 16s, ("pool4", "pool3") for 8s.
    """

    num_classes: int
    skips: tuple[str, ...] = ()
    settings: LayerSettings = LayerSettings()

    classifier_kernel = 0

    @nn.compact
    def __call__(self, x: jax.Array, features: Features, *, train: bool) -> jax.Array:
        """Map fc7 `[N, h, w, C]` and the features to logits `[N, H, W, num_classes]` of the images."""
        stride = features["context"][1]
        if stride != 32:
            raise ValueError(f"output_stride={stride}: FCN's upsampling is learned for 32 only; leave it out")
        logits = self._classify("fc7", x)
        for name in self.skips:
            finer, finer_stride = features[name]
            logits = self._upsample(logits, stride // finer_stride, finer, name) + self._classify(name, finer)
            stride = finer_stride
        # In float32, as the last resize of other networks: in bfloat16 near classes become equal.
        return self._upsample(logits.astype(jnp.float32), stride, features["image"][0], "image")

    def _classify(self, name: str, x: jax.Array) -> jax.Array:
        # The original starts from zero. Then no gradient would reach the layers before it in the first step.
        return classifier(self.num_classes, settings=self.settings, name=f"classifier_{name}")(x)

    def _upsample(self, logits: jax.Array, factor: int, target: jax.Array, name: str) -> jax.Array:
        shape = (2 * factor, 2 * factor, self.num_classes, self.num_classes)
        kernel = parameter(self, f"classifier_to_{name}", bilinear_kernel, shape)
        grown = conv_transpose2d(logits, kernel.astype(logits.dtype), stride=factor)
        start, (height, width) = factor // 2, target.shape[1:3]
        return grown[:, start : start + height, start : start + width]
