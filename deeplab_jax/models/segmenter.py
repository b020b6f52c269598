"""The one composition: image -> backbone -> context -> decoder -> classifier -> resize to the image."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.checks import CheckedModule
from deeplab_jax.errors import UserError
from deeplab_jax.models.decoders.fcn import FCNHead
from deeplab_jax.models.image_pyramid import ImagePyramid
from deeplab_jax.models.layers import Features, LayerSettings, classifier
from deeplab_jax.models.preprocessing import IMAGENET, Preprocessing
from deeplab_jax.ops.resize import resize_bilinear

Variables = dict[str, Any]

SMALLEST_SIDE = 33


class NamedFeatures(dict[str, tuple[jax.Array, int]]):
    """The features that a decoder sees; a name that is missing is a UserError."""

    def __missing__(self, name: str) -> tuple[jax.Array, int]:
        own = ", ".join(key for key in self if key not in ("context", "image"))
        raise UserError(f"the decoder needs the features {name!r}; the backbone has {own}: name one of them {name!r}")


class Segmenter(CheckedModule):
    """A segmentation network made of parts: from a name by `create_model`, or from your own modules.

        image -> backbone -> context -> decoder -> classifier -> resize to the image

    Parameters do not depend on `output_stride`: `model.clone(output_stride=8)` runs a network that was trained at 16.

    Attributes:
      backbone: module `(images, output_stride=, train=) -> Features`, in order from the finest to the coarsest.
      num_classes: number of logits at each pixel; see `activation`.
      output_stride: input pixels per sample of the backbone's last features.
      context: module `(map, output_stride=, train=) -> map` of the backbone's last features, or None.
      decoder: module `(map, features, train=) -> map`, or None. The features are those of the method `features`, and
        the images themselves as "image". If it has an attribute `classifier_kernel`, that is the classifier's kernel
        size instead of 1; if that is 0, the decoder returns the logits. (The same holds for a context without a
        decoder.) If it has an attribute `border`, the logits, one for each pixel, do not cover so many pixels on each
        side of the images. If it has a method `fitting_side(side)`, that returns the smallest side of images, of at
        least `side` pixels, that the network takes.
      pyramid: an `ImagePyramid` around all of these, or None.
      preprocessing: how stored pixels become the images that `__call__` takes, and how many channels they have.
      settings: settings of the classifier and the resizes.
      aux_features: name of the features under an auxiliary FCN head, or None. With `first_unit_rate="last_unit"` the
        head reads the authors' end point before the stage's last unit, as the decoder does. torchvision's head reads
        the stage's output.
      recipe: the name and options that `create_model` received, as JSON text; `save` writes it.
      activation: what makes probabilities of the logits. "softmax": a pixel has one of `num_classes` classes.
        "sigmoid": each logit stands alone, and a pixel has any number of `num_classes` labels. One logit divides two
        classes, 0 the background and 1 the object, whose probability is its sigmoid.

    Raises:
      UserError: one logit with softmax, whose probability would always be 1; an image pyramid or an auxiliary head with
        a decoder whose logits cover only the centre of the images.
    """

    backbone: nn.Module
    num_classes: int = 21
    output_stride: int = 16
    context: nn.Module | None = None
    decoder: nn.Module | None = None
    pyramid: ImagePyramid | None = None
    preprocessing: Preprocessing = IMAGENET
    settings: LayerSettings = LayerSettings()
    aux_features: str | None = None
    recipe: str = ""
    activation: Literal["softmax", "sigmoid"] = "softmax"

    def __post_init__(self) -> None:
        if self.num_classes == 1 and self.activation == "softmax":
            raise UserError("num_classes=1 with softmax: one class always has probability 1; give activation='sigmoid'")
        if self.valid and (self.pyramid or self.aux_features):
            raise UserError(
                "the logits of this decoder (U-Net: padding='valid') cover only the centre of the images; leave out "
                "image_pyramid and aux_head"
            )
        super().__post_init__()

    def setup(self) -> None:
        if self.aux_features is not None:
            self.aux_head = FCNHead(self.num_classes, settings=self.settings, name="aux_head")
        if self.classifier_kernel:
            self.classifier = classifier(self.num_classes, self.classifier_kernel, settings=self.settings)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Return logits at the size of the images.

        Args:
          images: preprocessed floats `[N, H, W, in_channels]`, H and W from 33 up; U-Net as published takes 188, 204,
            220, ...
          train: whether batch statistics and dropout work as in training.

        Returns:
          float32 `[N, H, W, num_classes]`, H and W less the `border` on both sides. The logits of an auxiliary head, of
          the same shape, are sown under `intermediates/aux`. With the dtype bfloat16 the classifier rounds its logits
          to bfloat16; what follows, such as the resize, is float32.

        Raises:
          UserError: images that are too small, of another rank or number of channels, or of a side that does not fit; a
            decoder that does not lose the `border` that it names.
        """
        return self.resize(self._all_logits(images, train=train, resize_aux=True), images)

    def _all_logits(self, images: jax.Array, *, train: bool, resize_aux: bool) -> jax.Array:
        check_size(self, images)
        if self.pyramid is None:
            whole, _ = self._logits(images, images, train=train, resize_aux=resize_aux)
            check_border(self, whole, images)
            return whole
        views = self.pyramid.views(images, smallest=SMALLEST_SIDE)
        logits, seen = zip(
            *[self._logits(view, images, train=train, resize_aux=resize_aux) for view in views], strict=True
        )
        return self.pyramid(list(logits), list(seen))

    def _logits(
        self, view: jax.Array, images: jax.Array, *, train: bool, resize_aux: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Return the logits of one view of the images as float32, and the map before the classifier. If the decoder
        itself returns the logits, that is the map before the decoder.
        """
        features = self._features(view, train=train)
        x = before = features["context"][0]
        if self.aux_features is not None:
            if self.aux_features not in features:
                raise UserError(f"aux_head: it needs {self.aux_features}; this backbone has {', '.join(features)}")
            aux = self.aux_head(features[self.aux_features][0], train=train)
            self.sow("intermediates", "aux", self.resize(aux, images) if resize_aux else aux.astype(jnp.float32))
        if self.decoder is not None:
            x = self.decoder(x, NamedFeatures({**features, "image": (view, 1)}), train=train)
        if not self.classifier_kernel:
            return x.astype(jnp.float32), before
        return self.classifier(x).astype(jnp.float32), x

    def _features(self, images: jax.Array, *, train: bool) -> Features:
        if images.shape[-1] != self.in_channels:
            raise UserError(f"images of shape {images.shape}: this network takes {self.in_channels} channels")
        features = self.backbone(images, output_stride=self.output_stride, train=train)
        if not isinstance(features, Mapping) or not all(isinstance(entry, tuple) for entry in features.values()):
            raise UserError(f"{type(self.backbone).__name__}: a backbone has to return {{name: (map, stride)}}")
        x, stride = list(features.values())[-1]
        if self.context is not None:
            x = self.context(x, output_stride=stride, train=train)
        return {**features, "context": (x, stride)}

    @property
    def classifier_kernel(self) -> int:
        """Kernel size of the classifier; 0 if there is none because the last part returns the logits."""
        return getattr(self.decoder or self.context, "classifier_kernel", 1)

    @property
    def label_classes(self) -> int:
        """The number of classes of the labels: two for one logit."""
        return max(2, self.num_classes)

    @property
    def multilabel(self) -> bool:
        """Whether a pixel can have several labels."""
        return self.activation == "sigmoid" and self.num_classes > 1

    @property
    def label_axes(self) -> tuple[int, ...]:
        """The axes of labels behind `[H, W]`: `(num_classes,)` where a pixel can have several, else none."""
        return (self.num_classes,) if self.multilabel else ()

    @property
    def backbone_settings(self) -> LayerSettings:
        """Settings of the backbone's layers; those of the other parts if it has none of its own."""
        return getattr(self.backbone, "settings", self.settings)

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return self.preprocessing.in_channels

    @property
    def border(self) -> int:
        """Pixels on each side of the images that the logits do not cover; 0 but for U-Net as published."""
        return getattr(self.decoder, "border", 0)

    @property
    def valid(self) -> bool:
        """Whether the logits cover only the centre of the images."""
        return self.border > 0

    def coarse_logits(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Return the classifier's output as float32 `[N, h, w, num_classes]`, before it is resized to the image; its
        dtype is as `__call__` says. An auxiliary head's output is sown without a resize too.
        """
        return self._all_logits(images, train=train, resize_aux=False)

    def coarse_logits_of_whole(self, images: jax.Array) -> jax.Array:
        """Return logits that cover the images to their borders, which are mirrored if the network is `valid`."""
        if not self.valid:
            return self.coarse_logits(images)
        logits = self.coarse_logits(extend_by_mirroring(images, border=self.border, fit=self.fitting_side))
        return logits[:, : images.shape[1], : images.shape[2]]

    def features(self, images: jax.Array, *, train: bool = False) -> Features:
        """Return `{name: (array [N, h, w, C], stride)}` from the stem to the context's output; of an image pyramid, at
        its first scale.
        """
        if self.pyramid is not None:
            images = self.pyramid.views(images, smallest=SMALLEST_SIDE)[0]
        return self._features(images, train=train)

    def resize(self, logits: jax.Array, images: jax.Array) -> jax.Array:
        """Return float32 logits resized bilinearly to the images' height and width; if `valid`, unresized."""
        logits = logits.astype(jnp.float32)
        if self.valid:
            return logits
        return resize_bilinear(logits, images.shape[1:3], align_corners=self.settings.align_corners)

    def fitting_side(self, side: int) -> int:
        """Return the smallest side of an image, in pixels, of at least `side` that the network takes."""
        fit: Callable[[int], int] = getattr(self.decoder, "fitting_side", lambda side: side)
        # In this order: a symbol in a shape is known to be at least the smallest side, but not whether it is larger.
        return fit(max(side, SMALLEST_SIDE))


def check_size(model: Segmenter, images: jax.Array) -> None:
    """Raise a UserError unless images `[N, H, W, C]` have sides that a network takes."""
    if images.ndim != 4 or any(side < SMALLEST_SIDE for side in images.shape[1:3]):
        raise UserError(
            f"images of shape {images.shape}: expected [N, H, W, C] with H and W of at least {SMALLEST_SIDE}"
        )
    fitting = tuple(model.fitting_side(side) for side in images.shape[1:3])
    if fitting != images.shape[1:3]:
        smallest = model.fitting_side(1)
        raise UserError(
            f"images of {images.shape[1]}x{images.shape[2]}: this network takes {smallest}, "
            f"{model.fitting_side(smallest + 1)}, ... pixels on each side; {fitting[0]}x{fitting[1]} would fit"
        )


def check_border(model: Segmenter, logits: jax.Array, images: jax.Array) -> None:
    """Raise a UserError where a decoder loses another border than it names."""
    covered = tuple(side - 2 * model.border for side in images.shape[1:3])
    if model.valid and logits.shape[1:3] != covered:
        raise UserError(
            f"{type(model.decoder).__name__}.border={model.border}: the logits of images of {images.shape[1]}x"
            f"{images.shape[2]} have to be {covered[0]}x{covered[1]}, not {logits.shape[1]}x{logits.shape[2]}"
        )


def extend_by_mirroring(images: jax.Array, *, border: int, fit: Callable[[int], int]) -> jax.Array:
    """Return images `[N, H, W, C]` extended beyond their borders by mirroring, so that the logits of a network that
    loses a border cover them: so many pixels before, and after them as many as make a side that `fit` returns (U-Net,
    arXiv 1505.04597, sec. 2, Fig. 2).
    """
    pads = [(border, fit(side + 2 * border) - side - border) for side in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *pads, (0, 0)), mode="symmetric")


def abstract_variables(model: Segmenter) -> Variables:
    """Return the shapes and dtypes of the model's variables without computing any."""
    # A copy: a caller's changes to the tree stay with the caller.
    return jax.tree.map(lambda leaf: leaf, _traced_once(model))


def trace(model: Segmenter) -> Variables:
    """Trace the model's initialisation for its side effects, and return the result of `abstract_variables`."""
    side = model.fitting_side(65)
    images = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return {name: tree for name, tree in variables.items() if name in ("params", "batch_stats")}


# Tracing a deep network takes seconds, and building, loading, folding and training each ask for its shapes.
_traced_once = lru_cache(maxsize=32)(trace)
