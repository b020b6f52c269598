"""What can happen to a training image beside the papers' augmentation."""

import dataclasses

import numpy as np

from deeplab_jax import config_keys
from deeplab_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Augmentation(config_keys.Augment):
    """What happens to an example beside the papers' augmentation; the defaults are off.

    `config_keys.Augment` has the types, the defaults and the limits.

    Attributes:
      probability: of each of the following but `vertical_flip`, `quarter_turns`, `resize`, `cat_max_ratio`, `mosaic`
        and `copy_paste`, drawn apart for each. Brightness, contrast, saturation and hue are one.
      vertical_flip: upside down, with probability 1/2.
      quarter_turns: by 0, 90, 180 or 270 degrees, equally likely.
      rotation: largest angle in degrees, either way, around the crop's centre.
      perspective: how far a corner of the crop moves at most along each side, as a share of the side.
      elastic: standard deviation in pixels of random displacements on a coarse grid, between which they are
        interpolated bicubically (U-Net, Ronneberger et al. 2015: 10 pixels, a grid of 3 x 3).
      elastic_grid: points of that grid along each side of the crop.
      resize: the size before random scaling: nothing keeps it; one number is that of the shorter side; two are (height,
        width).
      keep_ratio: whether `resize` with two numbers is the largest size of the image's ratio, whose shorter side has at
        most the smaller number, and whose longer side the larger one (mmsegmentation's `keep_ratio`).
      cat_max_ratio: a crop is drawn again, up to 10 times, unless it has two classes or more, and the share of each
        among the labelled pixels is below this (mmsegmentation's RandomCrop: 0.75); 1: any crop is taken.
      brightness, contrast, saturation: strengths in `[0, 1)`; see `colour.sample_jitter`. Saturation is for RGB alone.
      hue: largest angle in degrees, either way; see `colour.hue_matrix`. For RGB alone.
      gamma: values become 255 * (value / 255) ** g, with g between 1 / (1 + gamma) and 1 + gamma.
      blur: largest standard deviation of a Gaussian blur, in pixels.
      noise: largest standard deviation of normal noise, in levels of 0 to 255.
      jpeg: lowest quality of a JPEG compression, 1 to 100; 0: none. For images of 8 bits, grey or RGB.
      cutout: number of rectangles that get the mean colour.
      cutout_size: largest sides of these, as shares of the crop's.
      cutout_ignored: whether the labels of the rectangles become the ignore label; otherwise they stay, and the network
        has to infer them from what is around.
      mosaic: probability that four crops share the place of one; see `mixing.mosaic`.
      copy_paste: probability that pixels of a second crop are pasted; see `mixing.paste`.
      copy_paste_classes: the ids of the classes whose pixels are pasted; see `mixing.name_classes` for none.

    Raises:
      UserError: `resize` has more than two numbers, or one below 1.
    """

    def check(self, channels: int, dtype: np.dtype | type = np.uint8) -> None:
        """Raise a UserError if the options have no meaning for images of so many channels and this type."""
        for name in ("saturation", "hue"):
            if getattr(self, name) and channels != 3:
                raise UserError(
                    f"config.data.augment.{name}={getattr(self, name)}: images of {channels} channels have no {name}; "
                    f"leave it out: --config.data.augment.{name}=0"
                )
        if self.jpeg and (dtype != np.uint8 or channels not in (1, 3)):
            raise UserError(
                f"config.data.augment.jpeg={self.jpeg}: JPEG has 8 bits and one or three channels, and the images are "
                f"{np.dtype(dtype)} of {channels}; leave it out: --config.data.augment.jpeg=0"
            )


NONE = Augmentation()
"""The papers' augmentation alone."""
