"""The one composition: image -> backbone -> context -> decoder -> classifier -> resize to the image."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models.layers import Conv, ConvNorm, LayerSettings
from deeplab_jax.models.preprocessing import Preprocessing
from deeplab_jax.models.resnet import Features
from deeplab_jax.ops.resize import resize_bilinear

Variables = dict[str, Any]

SMALLEST_SIDE = 33


class FCNHead(nn.Module):
    """torchvision's FCN head: 3x3 to a quarter of the channels, dropout, 1x1 to the classes;
    here the auxiliary head.
    """

    num_classes: int
    dropout: float = 0.1
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = ConvNorm(x.shape[-1] // 4, 3, settings=self.settings, name="conv")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Conv(self.num_classes, use_bias=True, settings=self.settings, name="classifier")(x)


class Segmenter(nn.Module):
    """A segmentation network made of parts. Build one with `create_model`.

    Parameters do not depend on `output_stride`: `model.clone(output_stride=8)` runs what was trained at 16.

    Attributes:
      backbone: module `(images, output_stride=, train=) -> Features`.
      context: module `(map, output_stride=, train=) -> map`, or None.
      decoder: module `(map, features, train=) -> map`, or None.
      backbone_output: name of the features that the context sees.
      num_classes: classes of the logits.
      output_stride: input pixels per sample of the context's map.
      preprocessing: how stored pixels become the images that `__call__` takes.
      settings: of the classifier and the resizes.
      aux_features: name of the features under an auxiliary FCN head, or None.
      recipe: the name and options that `create_model` was given, as JSON text; `save` writes it.
    """

    backbone: nn.Module
    context: nn.Module | None
    decoder: nn.Module | None
    backbone_output: str
    num_classes: int
    output_stride: int
    preprocessing: Preprocessing
    settings: LayerSettings
    aux_features: str | None
    recipe: str

    def setup(self) -> None:
        self.classifier = Conv(
            self.num_classes,
            use_bias=True,
            settings=self.settings,
            kernel_init=nn.initializers.normal(0.01),
            name="classifier",
        )
        if self.aux_features is not None:
            self.aux_head = FCNHead(self.num_classes, settings=self.settings, name="aux_head")

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute logits at the size of the images.

        Args:
          images: preprocessed floats `[N, H, W, 3]`, H and W from 33 up.
          train: batch statistics and dropout as in training.

        Returns:
          float32 `[N, H, W, num_classes]`. With an auxiliary head its logits, of the same shape, are sown under
          `intermediates/aux`.

        Raises:
          ValueError: images below 33 pixels, or of another rank.
        """
        scores = self.scores(images, train=train)
        return self.resize(scores, images)

    def scores(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the classifier's float32 output `[N, h, w, num_classes]` before it is resized to the image."""
        if images.ndim != 4 or min(images.shape[1:3]) < SMALLEST_SIDE:
            raise ValueError(
                f"images of shape {images.shape}: expected [N, H, W, C] with H and W of at least {SMALLEST_SIDE}"
            )
        features = self.features(images, train=train)
        x, _ = features["context"]
        if self.aux_features is not None:
            aux = self.aux_head(features[self.aux_features][0], train=train)
            self.sow("intermediates", "aux", self.resize(aux, images))
        if self.decoder is not None:
            x = self.decoder(x, features, train=train)
        return self.classifier(x).astype(jnp.float32)

    def features(self, images: jax.Array, *, train: bool = False) -> Features:
        """Compute `{name: (array [N, h, w, C], stride)}` from the stem to the context's output."""
        features = dict(self.backbone(images, output_stride=self.output_stride, train=train))
        x, stride = features[self.backbone_output]
        if self.context is not None:
            x = self.context(x, output_stride=stride, train=train)
        return {**features, "context": (x, stride)}

    def resize(self, scores: jax.Array, images: jax.Array) -> jax.Array:
        """Resize scores bilinearly to the images' height and width, in float32."""
        return resize_bilinear(scores.astype(jnp.float32), images.shape[1:3], align_corners=self.settings.align_corners)


def abstract_variables(model: Segmenter) -> Variables:
    """Return the shapes and dtypes of the model's variables without computing any."""
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return {name: tree for name, tree in variables.items() if name in ("params", "batch_stats")}
