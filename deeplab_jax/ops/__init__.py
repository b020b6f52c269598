"""The papers' mathematics as pure functions on arrays; they know nothing of modules, data or configs.

- `atrous`: atrous convolution (DeepLabv3, sec. 3.1). `geometry`: its sizes, and the valid weights of Fig. 4.
- `transposed`: learned upsampling (FCN). `resize`: bilinear resizing with either corner alignment.
- `pooling`: the average of image-level features, PSPNet's and SPP-net's regions, SegNet's unpooling.
- `batch_norm`: batch normalisation in training.
- `losses`: the table of losses. `loss_pixels`: cross-entropy, focal loss, hard pixels. `loss_regions`: Dice, Jaccard,
  Tversky. `loss_lovasz`: Lovász.
- `crf`: mean-field inference of the DenseCRF (DeepLabv1 and v2).
- `metrics`: mean IoU and others, from a confusion matrix.

`lowerings`, `taps`, `primitive` and `loss_bands` compute the same numbers in less time or memory. `observe` counts
convolutions.
"""

from deeplab_jax.ops import atrous, batch_norm, crf, geometry, losses, metrics, observe, pooling, resize, transposed

__all__ = [
    "atrous",
    "batch_norm",
    "crf",
    "geometry",
    "losses",
    "metrics",
    "observe",
    "pooling",
    "resize",
    "transposed",
]
