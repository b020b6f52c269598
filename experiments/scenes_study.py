"""The mIoU that colour alone reaches on `scenes`: a look-up table of colours, and a network of 1x1 convolutions.

    python -m experiments.scenes_study

Both see one pixel at a time. They do not see texture, surroundings, scale, or the light of the whole picture, which the
data set is made to need.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from deeplab_jax.data.sets.scenes import SCENES, Scenes
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops import metrics
from experiments.program import exits, parser_of

BITS = 5  # of each 8-bit channel that the table of colours keeps
LEARNING_RATE = 3e-3


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


class PixelNetwork(nn.Module):
    """1x1 convolutions with batch norm. They see one pixel at a time."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for _ in range(3):
            x = nn.Conv(64, (1, 1), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Conv(SCENES.num_classes, (1, 1))(x)


def pixel_network(*, steps: int, batch: int, val_images: int, seed: int) -> np.ndarray:
    """Return the confusion matrix of `PixelNetwork` after `steps` of Adam, on every fourth row and column of a
    picture.
    """
    model = PixelNetwork()

    def preprocess(images: np.ndarray) -> jax.Array:
        return jnp.asarray(images, jnp.float32) / 127.5 - 1

    variables = model.init(jax.random.key(seed), jnp.zeros((1, 33, 33, 3)), train=False)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    params, statistics = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)

    @jax.jit
    def step(params, statistics, state, images, labels):  # type: ignore[no-untyped-def]
        def loss(params):  # type: ignore[no-untyped-def]
            logits, changed = model.apply(
                {"params": params, "batch_stats": statistics}, images, train=True, mutable=["batch_stats"]
            )
            valid = labels != IGNORE_LABEL
            targets = jnp.where(valid, labels, 0).astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return (losses * valid).sum() / valid.sum(), changed["batch_stats"]

        gradients, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), statistics, state

    source = Scenes("train", count=steps * batch, seed=seed)
    for first in range(0, steps * batch, batch):
        examples = [source[i] for i in range(first, first + batch)]
        images, labels = (np.stack([example[key][::4, ::4] for example in examples]) for key in ("image", "label"))
        params, statistics, state = step(params, statistics, state, preprocess(images), labels)

    confusion = np.zeros((SCENES.num_classes, SCENES.num_classes), np.int64)

    @jax.jit
    def predict(images: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params, "batch_stats": statistics}, images, train=False)
        return logits.argmax(-1)

    held_out = Scenes("val", count=val_images)
    for i in range(val_images):
        example = held_out[i]
        labels = example["label"][::4, ::4]
        valid = labels != IGNORE_LABEL
        predictions = np.asarray(predict(preprocess(example["image"][None, ::4, ::4])))[0]
        confusion += _confusion(labels[valid], predictions[valid])
    return confusion


@exits
def main(argv: Sequence[str] | None) -> None:
    """Print a line for each classifier: its mean IoU, and the IoU of each class."""
    parser = parser_of("scenes_study", __doc__)
    parser.add_argument("--val_images", type=int, default=256)
    parser.add_argument("--train_images", type=int, default=1024, help="images from which the colour table is counted")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the network of 1x1 convolutions")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    table = partial(colour_table, train_images=args.train_images, val_images=args.val_images)
    rows: dict[str, Callable[[], np.ndarray]] = {
        "colour table, pixels weigh the same": partial(table, balanced=False),
        "colour table, classes weigh the same": partial(table, balanced=True),
        "network of 1x1 convolutions": partial(
            pixel_network, steps=args.steps, batch=args.batch, val_images=args.val_images, seed=args.seed
        ),
    }
    for name, measure in rows.items():
        confusion = measure()
        iou = metrics.iou_per_class(confusion)
        per_class = "  ".join(f"{label} {value:.3f}" for label, value in zip(SCENES.names, iou, strict=True))
        print(f"{name:38} mIoU {metrics.mean_iou(confusion):.3f}   {per_class}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
