"""Every data set that a config names, in the layout in which it is published, a few small pictures large."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_jax.data.sets.coco import CATEGORIES, CATEGORY_NAMES

SIZE = (40, 52)  # height, width


def write_pair(image: Path, mask: Path | None, *, values: Sequence[int], seed: int = 0) -> None:
    """Write a noisy image, and a mask whose left and right halves hold the first two of `values`."""
    rng = np.random.default_rng(seed)
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(image)
    if mask is not None:
        mask.parent.mkdir(parents=True, exist_ok=True)
        stored = np.full(SIZE, values[0], np.uint8)
        stored[:, SIZE[1] // 2 :] = values[1]
        Image.fromarray(stored).save(mask)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def camvid(root: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            write_pair(
                root / f"{split}/{index}.png", root / f"{split}annot/{index}.png", values=(index, 11), seed=index
            )


def voc(root: Path) -> None:
    splits = {"train": ["2007_1", "2007_2"], "val": ["2008_1"]}
    for name in (*splits["train"], *splits["val"]):
        write_pair(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png", values=(15, 255))
        write_pair(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClassAug/{name}.png", values=(15, 0))
    for split, names in {**splits, "trainaug": splits["train"], "trainval": [*splits["train"], *splits["val"]]}.items():
        write_lines(root / f"ImageSets/Segmentation/{split}.txt", names)


def cityscapes(root: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for index in range(count):
            frame = f"{split}/ulm/ulm_{index:06}_000019"
            write_pair(
                root / f"leftImg8bit/{frame}_leftImg8bit.png",
                root / f"gtFine/{frame}_gtFine_labelIds.png",
                values=(7, 4),
            )


def ade20k(root: Path) -> None:
    for split, count in (("training", 3), ("validation", 1)):
        for index in range(count):
            name = f"{split}/ADE_{index:08}"
            write_pair(root / f"images/{name}.jpg", root / f"annotations/{name}.png", values=(index, 150), seed=index)


def coco(root: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        outline = [0, 0, 50, 0, 50, 38, 0, 38]
        region = {"category_id": 18, "segmentation": [outline], "area": 1900, "iscrowd": 0}
        pictures = [
            {"id": i, "file_name": f"{i:012}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(1, count + 1)
        ]
        for picture in pictures:
            write_pair(root / f"{split}2017" / str(picture["file_name"]), None, values=())
        categories = [{"id": i, "name": name} for i, name in zip(CATEGORIES, CATEGORY_NAMES, strict=True)]
        content = {
            "categories": categories,
            "images": pictures,
            "annotations": [{"image_id": p["id"], **region} for p in pictures],
        }
        write_lines(root / f"annotations/instances_{split}2017.json", [json.dumps(content)])


def coco_file(root: Path) -> None:
    """One file of annotations with two categories, for all images."""
    pictures = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(8)]
    outline = [0, 0, 30, 0, 30, 20, 0, 20]
    for picture in pictures:
        write_pair(root / "images" / str(picture["file_name"]), None, values=())
    content = {
        "categories": [{"id": 3, "name": "crack"}, {"id": 7, "name": "rust"}],
        "images": pictures,
        "annotations": [
            {"image_id": p["id"], "category_id": c, "segmentation": [outline], "area": 600, "iscrowd": 0}
            for p, c in zip(pictures, (3, 7) * 4, strict=True)
        ],
    }
    write_lines(root / "annotations.json", [json.dumps(content)])


def pet(root: Path) -> None:
    names = [f"Beagle_{index}" for index in range(40)]
    for name in names:
        write_pair(root / f"images/{name}.jpg", root / f"annotations/trimaps/{name}.png", values=(1, 2))
    write_lines(root / "annotations/trainval.txt", [f"{name} 1 1 1" for name in names])
    write_lines(root / "annotations/test.txt", [f"{name} 1 1 1" for name in names[:2]])


def folder(root: Path) -> None:
    for index in range(12):
        write_pair(root / f"images/{index}.png", root / f"masks/{index}.png", values=(0, 1), seed=index)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "camvid": camvid,
    "voc": voc,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "coco": coco,
    "coco_file": coco_file,
    "pet": pet,
    "folder": folder,
}
"""Name of a data set -> what writes it into a folder. `scenes` needs none."""

ARGUMENTS = {"folder": ["--config.data.options.class_names=('ground','crack')"]}
"""What a config of that data set has to be told besides the folder."""


def data_arguments(name: str, root: Path) -> list[str]:
    """Write a data set and return the arguments with which a config reads it."""
    if name == "scenes":
        return []
    LAYOUTS[name](root)
    return [f"--config.data.dir={root}", *ARGUMENTS.get(name, [])]
