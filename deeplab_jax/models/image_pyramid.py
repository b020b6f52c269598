"""Image pyramids: one network with shared weights over several scales of the image, their logits fused."""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.checks import CheckedModule
from deeplab_jax.errors import UserError
from deeplab_jax.models.layers import SMALL_NORMAL, Conv, LayerSettings
from deeplab_jax.ops.geometry import scaled_side
from deeplab_jax.ops.resize import resize_bilinear

ATTENTION_CHANNELS = 512


class ImagePyramid(CheckedModule):
    """The scales of an image that a network reads, and how their logits become one.

    The logits are fused at the size of the first scale's. "max" is DeepLabv2's (sec. 4.1.2). "attention" (Chen et al.,
    arXiv 1511.03339, sec. 3) weights the scales at every pixel by a softmax over two convolutions, which read the
    features of all scales. The "laplacian" pyramid (Farabet et al., PAMI 2013, sec. 3.1) shows at each scale only the
    band that the next coarser scale lacks; the coarsest shows the rest. It leaves out Farabet's local normalisation of
    the bands, which would amplify noise where a band is empty, as in a clear sky.

    Attributes:
      image_pyramid: scales from fine to coarse; a side of n pixels becomes `(n - 1) * scale + 1`.
      fusion: how the logits are fused.
      pyramid: "resized" images or the bands of a Laplacian pyramid.

    Raises:
      UserError: scales that do not go from fine to coarse or not lie above 0 and up to 4; an unknown fusion or pyramid.
    """

    image_pyramid: tuple[float, ...] = ()
    fusion: Literal["average", "max", "attention"] = "average"
    pyramid: Literal["resized", "laplacian"] = "resized"
    settings: LayerSettings = LayerSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = self.image_pyramid
        if not scales and (self.fusion, self.pyramid) != ("average", "resized"):
            raise UserError(
                f"fusion={self.fusion!r}, pyramid={self.pyramid!r}: without scales; give image_pyramid=(1.0, 0.75, 0.5)"
            )
        if not all(0 < scale <= 4 for scale in scales):
            raise UserError(f"image_pyramid={scales}: give factors above 0 and up to 4")
        if list(scales) != sorted(set(scales), reverse=True):
            raise UserError(f"image_pyramid={scales}: give different scales from fine to coarse")

    def views(self, images: jax.Array, *, smallest: int) -> list[jax.Array]:
        """Return the images `[N, H, W, C]` at each scale, with no side below `smallest`."""
        sizes = [
            [max(smallest, scaled_side(side, scale)) for side in images.shape[1:3]] for scale in self.image_pyramid
        ]
        resize = partial(resize_bilinear, align_corners=self.settings.align_corners)
        levels = [resize(images, size) for size in sizes]
        if self.pyramid == "resized":
            return levels
        coarser = [resize(level, size) for level, size in zip(levels[1:], sizes, strict=False)]
        return [level - above for level, above in zip(levels, coarser, strict=False)] + levels[-1:]

    @nn.compact
    def __call__(self, logits: list[jax.Array], features: list[jax.Array]) -> jax.Array:
        """Fuse logits `[N, h_s, w_s, K]` of each scale to `[N, h_0, w_0, K]`; attention reads the maps behind them."""
        size = logits[0].shape[1:3]
        resized = [resize_bilinear(x, size, align_corners=self.settings.align_corners) for x in logits]
        if self.fusion == "average":
            return sum(resized[1:], resized[0]) / len(resized)
        if self.fusion == "max":
            return jnp.max(jnp.stack(resized), axis=0)
        seen = [resize_bilinear(x, size, align_corners=self.settings.align_corners) for x in features]
        x = Conv(ATTENTION_CHANNELS, 3, use_bias=True, settings=self.settings, name="attention1")(
            jnp.concatenate(seen, axis=-1)
        )
        # Small at first, so that the scales start with nearly equal weights.
        x = Conv(
            len(resized),
            use_bias=True,
            settings=self.settings,
            kernel_init=SMALL_NORMAL,
            name="attention2",
        )(jax.nn.relu(x))
        weights = jax.nn.softmax(x.astype(jnp.float32))
        return jnp.sum(jnp.stack(resized) * jnp.moveaxis(weights, -1, 0)[..., None], axis=0)
