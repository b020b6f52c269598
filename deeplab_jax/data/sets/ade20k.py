"""ADE20K as published for scene parsing in 2016: 20210 training and 2000 validation images, 150 classes."""

from pathlib import Path

from deeplab_jax.data.source import PairSource, choose_split, list_images, pair_by_stem, require_folder
from deeplab_jax.labels import ADE20K

LAYOUT = "ADEChallengeData2016 with images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
_FOLDERS = {"train": "training", "val": "validation"}


def open_ade20k(dir: str | Path, *, split: str) -> PairSource:
    """Return ADE20K: `dir` is ADEChallengeData2016 or the folder that holds it.

    Raises:
      UserError: a split other than `train` and `val`, a missing folder, or a file without a partner.
    """
    choose_split(split, _FOLDERS, source="ade20k")
    nested = Path(dir) / "ADEChallengeData2016"
    root = nested if nested.is_dir() else Path(dir)
    images = require_folder(root / "images" / _FOLDERS[split], source="ade20k", layout=LAYOUT)
    masks = require_folder(root / "annotations" / _FOLDERS[split], source="ade20k", layout=LAYOUT)
    return PairSource("ade20k", ADE20K, *pair_by_stem(list_images(images), list_images(masks), where=str(images)))
