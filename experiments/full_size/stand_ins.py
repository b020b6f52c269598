"""Generated stand-ins for PASCAL VOC, SBD and Cityscapes. They have the layouts, sizes, classes and numbers of the
published data.

Each picture has regions of one colour for each class, under noise. They show that all commands work, and say nothing
about accuracy. Only a few pictures are drawn. All other files are links to them, so they take no space.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from deeplab_jax.data.images import write_image, write_mask
from deeplab_jax.files import write_whole
from deeplab_jax.labels import CITYSCAPES, IGNORE_LABEL, VOC
from experiments.sbd import TRAINAUG, write_lines

DRAWN = 24  # pictures that differ

# The published numbers of images.
VOC_TRAIN, VOC_VAL = 1464, 1449
CITIES = {"train": 2975, "val": 500}

Files = Mapping[str, Callable[[Path], object]]
"""Pattern of a file's name -> what writes such a file."""


def voc(folder: Path, share: float) -> None:
    """Write VOC 2012 into `folder/VOCdevkit/VOC2012`, without the masks of SBD, and SBD into
    `folder/benchmark_RELEASE/dataset`: a share, above 0 and at most 1, of the published numbers of images.
    """
    train, val, more = (max(2, round(share * count)) for count in (VOC_TRAIN, VOC_VAL, TRAINAUG - VOC_TRAIN))
    names = [f"2007_{number:06d}" for number in range(train + val + more)]
    splits = {"train": names[:train], "val": names[train : train + val], "trainval": names[: train + val]}
    root, sbd = folder / "VOCdevkit" / "VOC2012", folder / "benchmark_RELEASE" / "dataset"

    def pictures() -> Iterator[Files]:
        for number in range(min(DRAWN, len(names))):
            # Two of three are wider than high, as most of VOC's photographs are.
            size = (375, 500) if number % 3 else (500, 375)
            ids = regions(size, VOC.num_classes, number)
            mask = ids.copy()
            mask[outlines(ids)] = IGNORE_LABEL
            yield {
                "JPEGImages/{}.jpg": partial(write_image, rgb=painted(ids, VOC.palette, number)),
                "SegmentationClass/{}.png": partial(write_mask, class_ids=mask, palette=VOC.palette),
                "cls/{}.mat": partial(write_sbd, ids=ids),
            }

    def place(pattern: str, name: str) -> Path | None:
        if pattern.startswith("cls"):
            return None if name in splits["val"][::2] else sbd / pattern.format(name)  # SBD has some of VOC's val.
        return root / pattern.format(name) if pattern.startswith("JPEG") or name in official else None

    official = set(splits["trainval"])
    link_all(folder / "drawn", pictures(), names, place)
    for split, listed in splits.items():
        write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", listed)
    annotated = [name for name in names if name not in splits["val"][::2]]
    write_lines(sbd / "train.txt", annotated[::2])
    write_lines(sbd / "val.txt", annotated[1::2])


def cityscapes(folder: Path, share: float) -> None:
    """Write Cityscapes' fine annotations; see `voc`."""
    table = CITYSCAPES.value_map or ()
    ids_of = np.array([stored for stored, train_id in table if train_id != IGNORE_LABEL], np.uint8)
    names = [
        f"{split}/city{number % 18:02d}/city{number % 18:02d}_{number:06d}_000019"
        for split, count in CITIES.items()
        for number in range(max(2, round(share * count)))
    ]

    def pictures() -> Iterator[Files]:
        for number in range(min(DRAWN, len(names))):
            ids = regions((1024, 2048), CITYSCAPES.num_classes, number)
            stored = ids_of[ids]
            stored[-40:] = 1  # The bonnet of the recording car, which does not count.
            yield {
                "leftImg8bit/{}_leftImg8bit.png": partial(write_image, rgb=painted(ids, CITYSCAPES.palette, number)),
                "gtFine/{}_gtFine_labelIds.png": partial(write_mask, class_ids=stored, palette=None),
            }

    link_all(folder / "drawn", pictures(), names, lambda pattern, name: folder / pattern.format(name))


def link_all(
    drawn: Path, pictures: Iterator[Files], names: Sequence[str], place: Callable[[str, str], Path | None]
) -> None:
    """Write each picture once into `drawn`, and link every name's files to one of them.

    `pictures` gives what writes each one's files by a pattern of their names. `place` returns the file for a pattern
    and a name, None where the data set has none.
    """
    sources: list[dict[str, Path]] = []
    for number, files in enumerate(pictures):
        written = {pattern: drawn / f"{number}_{index}{Path(pattern).suffix}" for index, pattern in enumerate(files)}
        for pattern, write in files.items():
            write(written[pattern])
        sources.append(written)
    for number, name in enumerate(names):
        for pattern, source in sources[number % len(sources)].items():
            file = place(pattern, name)
            if file is not None and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, file)


def regions(size: tuple[int, int], classes: int, seed: int) -> np.ndarray:
    """Return class ids in smooth regions, uint8 `[H, W]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((classes, 6, 8), np.float32)
    return np.argmax([cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC) for one in coarse], 0).astype(np.uint8)


def outlines(ids: np.ndarray) -> np.ndarray:
    """Return a mask of the borders between classes, five pixels wide, like VOC's strips of void pixels."""
    edges = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
    return edges > 0


def painted(ids: np.ndarray, palette: Sequence[tuple[int, int, int]], seed: int) -> np.ndarray:
    """Return a noisy picture, uint8 `[H, W, 3]`."""
    colours = 40 + np.asarray(palette, np.int16)[ids] * 2 // 3
    noise = np.random.default_rng(seed).integers(-20, 21, colours.shape, np.int16)
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def write_sbd(path: Path, ids: np.ndarray) -> None:
    """Write a file in SBD's form: class ids in a field of a MATLAB structure."""
    content = {"GTcls": {"Segmentation": ids, "CategoriesPresent": np.unique(ids[ids > 0])[:, None]}}
    write_whole(path, lambda fresh: savemat(fresh, content, appendmat=False))
