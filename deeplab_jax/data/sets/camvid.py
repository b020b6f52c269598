"""CamVid in the split and class grouping of SegNet: street scenes of 480x360 pixels, 11 classes."""

from pathlib import Path

from deeplab_jax.data.source import PairSource, choose_split, list_images, pair_by_stem, require_folder
from deeplab_jax.labels import CAMVID

LAYOUT = "train/*.jpg or *.png with trainannot/*.png, and val/ with valannot/"


def open_camvid(dir: str | Path, *, split: str) -> PairSource:
    """Return CamVid: `dir/train/NAME.jpg` (or `.png`) with `dir/trainannot/NAME.png`; `val` in the same way.

    The test split is left out: it is for a final result by others, not for training or selection here.

    Raises:
      UserError: the split is neither `train` nor `val`, a folder does not exist, or a file has no partner.
    """
    choose_split(split, ("train", "val"), source="camvid")
    folder = require_folder(Path(dir) / split, source="camvid", layout=LAYOUT)
    masks = require_folder(Path(dir) / f"{split}annot", source="camvid", layout=LAYOUT)
    return PairSource("camvid", CAMVID, *pair_by_stem(list_images(folder), list_images(masks), where=str(folder)))
