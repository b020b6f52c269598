"""PASCAL VOC 2012 segmentation, with the augmented training set of the DeepLab papers.

`train` (1464 images), `val` (1449) and `trainval` are the challenge's own. `trainaug` (10582) adds the annotations of
the Semantic Boundaries Data Set (Hariharan et al., 2011). They are distributed as a folder SegmentationClassAug and a
list trainaug.txt beside the challenge's files.
"""

import dataclasses
from pathlib import Path

from deeplab_jax.data.lists import read_names
from deeplab_jax.data.source import PairSource, choose_split, list_images, pair_named, require_folder
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.labels import IGNORE_LABEL, VOC

LAYOUT = "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/*.txt"
SPLITS = ("train", "val", "trainval", "trainaug")
BORDERS = {
    "ignore": VOC,
    "background": dataclasses.replace(VOC, value_map=(*enumerate(range(VOC.num_classes)), (IGNORE_LABEL, 0))),
}
_AUGMENTED_LISTS = (
    "Segmentation/trainaug.txt",
    "SegmentationAug/trainaug.txt",
    "Segmentation/train_aug.txt",
    "SegmentationAug/train_aug.txt",
)


def open_voc(dir: str | Path, *, split: str, border: str = "ignore") -> PairSource:
    """Return PASCAL VOC 2012: `dir` is the VOC2012 folder, or a folder that holds `VOC2012` or `VOCdevkit/VOC2012`.

    The masks of `trainaug` all come from SegmentationClassAug, those of the other splits from SegmentationClass.
    `border="background"` counts the void strips around objects as background; by default they are ignored.

    Raises:
      UserError: an unknown split or `border`, a folder or list that does not exist, or a list that names missing files.
    """
    choose_split(split, SPLITS, source="voc")
    if border not in BORDERS:
        raise UserError(f"config.data.options.border={border!r}: {did_you_mean(border, BORDERS)}")
    root = _find_root(Path(dir))
    names_file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    masks = root / "SegmentationClass"
    if split == "trainaug":
        candidates = [root / "ImageSets" / name for name in _AUGMENTED_LISTS]
        names_file = next((path for path in candidates if path.is_file()), candidates[0])
        masks = root / "SegmentationClassAug"
    images = require_folder(root / "JPEGImages", source="voc", layout=LAYOUT)
    require_folder(
        masks, source="voc", layout="SegmentationClassAug/ beside SegmentationClass/" if split == "trainaug" else LAYOUT
    )
    pairs = pair_named(read_names(names_file), list_images(images), list_images(masks), names_file=names_file)
    return PairSource("voc", BORDERS[border], pairs)


def _find_root(dir: Path) -> Path:
    candidates = (dir, dir / "VOC2012", dir / "VOCdevkit" / "VOC2012")
    for root in candidates:
        if (root / "JPEGImages").is_dir():
            return root
    raise UserError(
        f"{dir}: no JPEGImages in it, in VOC2012 or in VOCdevkit/VOC2012; set --config.data.dir to the "
        f"folder of {LAYOUT}"
    )
