"""How far colour alone goes on `scenes`: a look-up table of colours, and a network of 1x1 convolutions.

    python -m experiments.scenes_study

Both see one pixel at a time. What they lack is what the data set asks for: texture, surroundings, scale, and the light
of the picture as a whole.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from deeplab_jax.data.sets.scenes import SCENES, Scenes
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.ops import metrics


def _pixels(source: Scenes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours uint8 [P, 3] and class ids uint8 [P] of the first `count` examples, ignored pixels left out."""
    examples = [source[i] for i in range(count)]
    colours = np.concatenate([example["image"].reshape(-1, 3) for example in examples])
    labels = np.concatenate([example["label"].reshape(-1) for example in examples])
    valid = labels != IGNORE_LABEL
    return colours[valid], labels[valid]


def _confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    classes = SCENES.num_classes
    return np.bincount(labels.astype(int) * classes + predictions, minlength=classes**2).reshape(classes, classes)


def colour_table(*, train_images: int, val_images: int, bits: int = 5, balanced: bool = True) -> np.ndarray:
    """Confusion matrix of a classifier that looks a pixel's colour up in a table of 2^bits levels per channel.

    Args:
      train_images: the table is counted on so many training images.
      val_images: and judged on so many validation images.
      bits: of each 8-bit channel that are kept.
      balanced: every class weighs the same, which is what mean IoU rewards; otherwise every pixel does.
    """

    def cell(colours: np.ndarray) -> np.ndarray:
        levels = (colours >> (8 - bits)).astype(int)
        return (levels[:, 0] << 2 * bits) + (levels[:, 1] << bits) + levels[:, 2]

    classes = SCENES.num_classes
    colours, labels = _pixels(Scenes("train"), train_images)
    counts = np.bincount(cell(colours) * classes + labels, minlength=classes << 3 * bits).reshape(-1, classes)
    shares = counts / counts.sum(axis=0) if balanced else counts
    colours, labels = _pixels(Scenes("val"), val_images)
    return _confusion(labels, shares.argmax(axis=1)[cell(colours)])


class PixelNetwork(nn.Module):
    """1x1 convolutions with batch norm: all that a network can tell from one pixel."""

    channels: Sequence[int] = (64, 64, 64)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for width in self.channels:
            x = nn.Conv(width, (1, 1), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Conv(SCENES.num_classes, (1, 1))(x)


def pixel_network(*, steps: int, batch: int, val_images: int, seed: int, learning_rate: float = 3e-3) -> np.ndarray:
    """Confusion matrix of `PixelNetwork` after `steps` of Adam; every fourth row and column of a picture will do."""
    model = PixelNetwork()

    def preprocess(images: np.ndarray) -> jax.Array:
        return jnp.asarray(images, jnp.float32) / 127.5 - 1

    variables = model.init(jax.random.key(seed), jnp.zeros((1, 33, 33, 3)), train=False)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
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


def main() -> None:
    """Print one line per classifier: mean IoU and the IoU of each class."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--val_images", type=int, default=256)
    parser.add_argument("--train_images", type=int, default=1024, help="that the colour tables are counted on")
    parser.add_argument("--steps", type=int, default=400, help="of the network of 1x1 convolutions")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    images = {"train_images": flags.train_images, "val_images": flags.val_images}
    rows: dict[str, Callable[[], np.ndarray]] = {
        "colour table, pixels weigh the same": lambda: colour_table(**images, balanced=False),
        "colour table, classes weigh the same": lambda: colour_table(**images, balanced=True),
        "network of 1x1 convolutions": lambda: pixel_network(
            steps=flags.steps, batch=flags.batch, val_images=flags.val_images, seed=flags.seed
        ),
    }
    for name, measure in rows.items():
        confusion = measure()
        iou = metrics.iou_per_class(confusion)
        per_class = "  ".join(f"{label} {value:.3f}" for label, value in zip(SCENES.names, iou, strict=True))
        print(f"{name:38} mIoU {metrics.mean_iou(confusion):.3f}   {per_class}", flush=True)


if __name__ == "__main__":
    main()
