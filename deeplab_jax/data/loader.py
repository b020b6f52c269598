"""Input pipelines on Grain: augmented training batches, and validation examples in order."""

from collections.abc import Iterator
from typing import TypedDict

import grain
import numpy as np
from absl import flags

from deeplab_jax.data.pairs import Example, Source
from deeplab_jax.data.transforms import augment


class Batch(TypedDict):
    """Images uint8 `[N, H, W, 3]` and labels uint8 `[N, H, W]`, 255 ignored."""

    image: np.ndarray
    label: np.ndarray


def training_batches(
    source: Source,
    *,
    batch_size: int,
    steps: int,
    start: int = 0,
    seed: int = 0,
    crop_size: tuple[int, int],
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_step: float = 0.25,
    flip: bool = True,
    color_jitter: float = 0.0,
    fill: tuple[int, int, int],
    threads: int = 4,
    workers: int = 0,
) -> Iterator[Batch]:
    """Iterate over the batches of steps `start` to `steps - 1`.

    What step k sees depends on the seed and k alone: order and augmentation are drawn per position of one endless,
    reshuffled sequence. So a run that resumes at k sees what it would have seen.

    Args:
      source: training examples.
      batch_size: images of one step on this process.
      steps: end of training.
      start: first step to yield.
      seed: of order and augmentation.
      crop_size, scale_range, scale_step, flip, color_jitter, fill: see `transforms.augment`.
      threads: that read ahead.
      workers: processes that read ahead; 0 uses threads of this one. OpenCV and Pillow work without the interpreter
        lock, so threads suffice until augmentation outruns one core's worth of Python.
    """

    def transform(example: Example, rng: np.random.Generator) -> Batch:
        image, label = augment(
            example["image"],
            example["label"],
            rng,
            crop_size=crop_size,
            scale_range=scale_range,
            scale_step=scale_step,
            flip=flip,
            color_jitter=color_jitter,
            fill=fill,
        )
        return {"image": image, "label": label}

    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
    examples = examples.slice(slice(start * batch_size, steps * batch_size))
    batches = examples.batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(num_threads=max(1, threads), prefetch_buffer_size=max(1, 2 * threads))
    iterable = batches.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's processes read absl's flags, which only an absl program parses.
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(iterable)


def examples_in_order(source: Source, *, threads: int = 2, limit: int | None = None) -> Iterator[Example]:
    """Iterate over a source once, in order, reading a few examples ahead."""
    dataset = grain.MapDataset.source(source)
    if limit is not None:
        dataset = dataset.slice(slice(0, limit))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))
