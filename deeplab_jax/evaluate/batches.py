"""Examples of many sizes as batches of a few."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from deeplab_jax.data.source import Example
from deeplab_jax.evaluate.inference import pad_images, run_size
from deeplab_jax.labels import IGNORE_LABEL

Size = tuple[int, int]

WAITING = 8  # Batches' worth of images that wait for others of their size: in `exact` mode every size may be different.


def grouped(
    examples: Iterable[Example], batch_size: int, *, mode: str, pad_to: Sequence[Size]
) -> Iterator[tuple[Size, list[Example]]]:
    """Group examples that run at one size.

    A group leaves when it is full, or when `WAITING` batches of examples wait and no group has more; what is left
    leaves at the end.
    """
    waiting: dict[Size, list[Example]] = {}
    for example in examples:
        height, width = example["label"].shape
        size = run_size((height, width), mode=mode, pad_to=pad_to)
        group = waiting.setdefault(size, [])
        group.append(example)
        if len(group) == batch_size:
            yield size, waiting.pop(size)
        elif sum(map(len, waiting.values())) >= WAITING * batch_size:
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            yield fullest, waiting.pop(fullest)
    yield from waiting.items()


def padded(batch: Sequence[Example], size: Size, *, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stack examples at the top left of `size`, filled up with empty ones to `count`.

    Returns:
      Images uint8 `[count, H, W, 3]`, labels uint8 `[count, H, W]` with 255 around them, true sizes int32 `[count, 2]`.
    """
    images, sizes = pad_images([example["image"] for example in batch], size, count=count)
    labels = np.full((count, *size), IGNORE_LABEL, np.uint8)
    for index, example in enumerate(batch):
        height, width = example["label"].shape
        labels[index, :height, :width] = example["label"]
    return images, labels, sizes
