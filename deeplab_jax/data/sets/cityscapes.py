"""Cityscapes: street scenes of 2048x1024 pixels with fine annotations, 19 evaluated classes."""

from pathlib import Path

from deeplab_jax.data.source import PairSource, choose_split, list_images, pair_by_name, require_folder
from deeplab_jax.labels import CITYSCAPES

LAYOUT = "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png with gtFine/{train,val}/CITY/*_gtFine_labelIds.png"
_IMAGE_END = "_leftImg8bit.png"
_MASK_END = "_gtFine_labelIds.png"


def open_cityscapes(dir: str | Path, *, split: str) -> PairSource:
    """Return Cityscapes in the layout of its two archives.

    It reads the published label ids, not the train ids that its scripts can write. The annotations of the test split
    are not public (its published masks are blank), so only `train` and `val` exist here.

    Raises:
      UserError: an unknown split, a missing folder, or a file without a partner.
    """
    choose_split(split, ("train", "val"), source="cityscapes")
    folder = require_folder(Path(dir) / "leftImg8bit" / split, source="cityscapes", layout=LAYOUT)
    annotations = require_folder(Path(dir) / "gtFine" / split, source="cityscapes", layout=LAYOUT)
    images = _by_frame(folder, _IMAGE_END)
    masks = _by_frame(annotations, _MASK_END)
    return PairSource("cityscapes", CITYSCAPES, *pair_by_name(images, masks, where=str(folder)))


def _by_frame(folder: Path, end: str) -> dict[str, Path]:
    cities = sorted(path for path in folder.iterdir() if path.is_dir())
    return {path.name.removesuffix(end): path for city in cities for path in list_images(city, suffixes=(end.lower(),))}
