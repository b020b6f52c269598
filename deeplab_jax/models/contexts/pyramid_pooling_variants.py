"""PSPNet's context as other code bases have it."""

from dataclasses import replace
from typing import Literal

from deeplab_jax.models.contexts.pyramid_pooling import PyramidPooling
from deeplab_jax.models.layers import LayerSettings


class PyramidPoolingVariant(PyramidPooling):
    """PSPNet's context with the choices of segmentation_models_pytorch.

    Attributes: those of `PyramidPooling`, and
      context_kernel: kernel size of the last convolution; 1 there.
      classifier_kernel: kernel size of the classifier after it; 3 there.
      norm_single: whether the level of one region is normalised too. Otherwise its convolution has a bias, as there,
        because a batch of one image gives its batch norm one value.

    Raises:
      UserError: a kernel size other than 1 and 3.
    """

    context_kernel: Literal[1, 3] = 3
    classifier_kernel: Literal[1, 3] = 1
    norm_single: bool = True

    def level_settings(self, count: int) -> LayerSettings:
        """Return the settings of the level with so many regions along a side."""
        return self.settings if self.norm_single or count > 1 else replace(self.settings, norm="none")
