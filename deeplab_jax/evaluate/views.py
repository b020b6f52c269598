"""What of an example is evaluated: all of it at its own size, or what other code bases look at."""

from collections.abc import Sequence

from deeplab_jax.data.source import Example
from deeplab_jax.data.transforms import resize_pair
from deeplab_jax.errors import UserError


def seen(example: Example, *, resize: int = 0, crop: Sequence[int] = ()) -> Example:
    """Resize an example, labels too, and cut out its centre.

    Args:
      example: image and label.
      resize: pixels of the shorter side afterwards (image bilinear, label nearest); 0 keeps the size.
      crop: (height, width) of the centre that is kept, less where the example is smaller; empty keeps all.
    """
    image, label = example["image"], example["label"]
    if resize:
        shorter = min(label.shape)
        height, width = ((2 * side * resize + shorter) // (2 * shorter) for side in label.shape)
        image, label = resize_pair(image, label, (height, width))
    if crop:
        (top, height), (left, width) = (
            (max(side - kept, 0) // 2, kept) for side, kept in zip(label.shape, crop, strict=True)
        )
        image, label = (array[top : top + height, left : left + width] for array in (image, label))
    return {"image": image, "label": label, "name": example["name"]}


def check_seen(resize: int, crop: Sequence[int]) -> None:
    """Raise a UserError where a size makes no sense."""
    if resize < 0:
        raise UserError(f"config.evaluate.resize={resize}: give the pixels of the shorter side, or 0 for none")
    if len(crop) not in (0, 2) or (crop and min(crop) < 1):
        raise UserError(f"config.evaluate.crop={tuple(crop)}: give a height and a width in pixels, such as (513, 513)")
