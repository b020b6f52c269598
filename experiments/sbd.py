"""Add the masks of the Semantic Boundaries Data Set (SBD) to PASCAL VOC, for its split `trainaug`.

    python -m experiments.sbd --sbd benchmark_RELEASE/dataset --voc VOCdevkit/VOC2012

It writes the folder SegmentationClassAug and the list ImageSets/Segmentation/trainaug.txt into the VOC folder. The list
has all images of SBD (train and val) and of VOC's train, but none of VOC's val. The published archives give 10582
images. An image with a mask of VOC keeps it; all others get SBD's (Hariharan et al., ICCV 2011; DeepLabv3, sec. 4).
SBD's masks mark no void pixels. Files that exist are not written again, so after an interruption the same command goes
on.
"""

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from deeplab_jax.data.images import write_mask
from deeplab_jax.data.lists import read_names
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from deeplab_jax.labels import VOC
from experiments.program import exits, parser_of

TRAINAUG = 10_582  # images, from the published archives
LISTS = "ImageSets/Segmentation"


@exits
def main(argv: Sequence[str] | None) -> None:
    """Write the masks and the list."""
    parser = parser_of("sbd", __doc__)
    parser.add_argument("--sbd", type=Path, required=True, help="folder of SBD with cls/, train.txt and val.txt")
    parser.add_argument("--voc", type=Path, required=True, help="folder VOCdevkit/VOC2012, which gets the masks")
    args = parser.parse_args(argv)
    count = augment(args.sbd, args.voc)
    said = "as published" if count == TRAINAUG else f"the published archives give {TRAINAUG}"
    print(f"{count} images of trainaug ({said}); masks in {args.voc / 'SegmentationClassAug'}")


def augment(sbd: Path, voc: Path) -> int:
    """Write the masks and the list of `trainaug`, and return the number of its images.

    Raises:
      UserError: a list or a file is missing or damaged, or nothing can be written.
    """
    train, val = (set(read_names(voc / LISTS / f"{split}.txt")) for split in ("train", "val"))
    in_sbd = {name for split in ("train", "val") for name in read_names(sbd / f"{split}.txt")}
    names = sorted((train | in_sbd) - val)
    for name in names:
        target = voc / "SegmentationClassAug" / f"{name}.png"
        if not target.exists():
            official, file = voc / "SegmentationClass" / f"{name}.png", sbd / "cls" / f"{name}.mat"
            write_whole(target, partial(_write, official=official, file=file))
    write_lines(voc / LISTS / "trainaug.txt", names)
    return len(names)


def write_lines(file: Path, lines: Sequence[str]) -> None:
    """Write a list, one entry on a line."""
    write_whole(file, lambda fresh: fresh.write_text("".join(f"{line}\n" for line in lines), "utf-8"))


def _write(fresh: Path, *, official: Path, file: Path) -> None:
    if official.is_file():
        shutil.copyfile(official, fresh)
    else:
        write_mask(fresh, read_sbd(file), VOC.palette)


def read_sbd(file: Path) -> np.ndarray:
    """Return the class ids of one of SBD's files, uint8 `[H, W]`.

    Raises:
      UserError: the file is missing or damaged, or holds no classes of VOC.
    """
    if not file.is_file():
        raise UserError(f"{file}: it is not there; give --sbd the folder dataset of SBD's archive")
    try:
        ids = loadmat(file)["GTcls"][0, 0]["Segmentation"]
    except Exception as error:
        raise UserError(f"{file}: cannot be read ({type(error).__name__}: {error}); unpack the archive anew") from None
    if ids.ndim != 2 or ids.dtype.kind not in "ui" or not ids.size or not 0 <= ids.min() <= ids.max() < VOC.num_classes:
        raise UserError(f"{file}: it holds no class ids of VOC; unpack the archive anew")
    return np.asarray(ids, np.uint8)


if __name__ == "__main__":
    sys.exit(main())
