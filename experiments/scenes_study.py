"""The mIoU that colour alone reaches on `scenes`: that of a look-up table of colours.

    python -m experiments.scenes_study

It sees one pixel at a time. It does not see texture, surroundings, scale, or the light of the whole picture, which the
data set is made to need.
"""

import sys
from collections.abc import Sequence

import numpy as np

from deeplab_jax.data.sets.scenes import SCENES, Scenes
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops import metrics
from experiments.program import exits, parser_of

BITS = 5  # of each 8-bit channel that the table of colours keeps


def _pixels(source: Scenes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return colours uint8 [P, 3] and class ids uint8 [P] of the first `count` examples, without ignored pixels."""
    examples = [source[i] for i in range(count)]
    colours = np.concatenate([example["image"].reshape(-1, 3) for example in examples])
    labels = np.concatenate([example["label"].reshape(-1) for example in examples])
    valid = labels != IGNORE_LABEL
    return colours[valid], labels[valid]


def _confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    classes = SCENES.num_classes
    return np.bincount(labels.astype(int) * classes + predictions, minlength=classes**2).reshape(classes, classes)


def colour_table(*, train_images: int, val_images: int, balanced: bool) -> np.ndarray:
    """Return the confusion matrix of a classifier that looks a pixel's colour up in a table.

    Args:
      train_images: number of training images from which the table is counted.
      val_images: number of validation images that are classified.
      balanced: every class has the same weight, as in the mean IoU; otherwise every pixel has.
    """

    def cell(colours: np.ndarray) -> np.ndarray:
        levels = (colours >> (8 - BITS)).astype(int)
        return (levels[:, 0] << 2 * BITS) + (levels[:, 1] << BITS) + levels[:, 2]

    classes = SCENES.num_classes
    colours, labels = _pixels(Scenes("train"), train_images)
    counts = np.bincount(cell(colours) * classes + labels, minlength=classes << 3 * BITS).reshape(-1, classes)
    shares = counts / counts.sum(axis=0) if balanced else counts
    colours, labels = _pixels(Scenes("val"), val_images)
    return _confusion(labels, shares.argmax(axis=1)[cell(colours)])


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print a line for each table of colours: its mean IoU, and the IoU of each class."""
    parser = parser_of("scenes_study", __doc__)
    parser.add_argument("--val_images", type=int, default=256)
    parser.add_argument("--train_images", type=int, default=1024, help="images from which the colour table is counted")
    args = parser.parse_args(argv)
    for weigh, balanced in (("pixels", False), ("classes", True)):
        confusion = colour_table(train_images=args.train_images, val_images=args.val_images, balanced=balanced)
        iou = metrics.iou_per_class(confusion)
        per_class = "  ".join(f"{label} {value:.3f}" for label, value in zip(SCENES.names, iou, strict=True))
        print(f"colour table, {weigh} weigh the same: mIoU {metrics.mean_iou(confusion):.3f}   {per_class}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
