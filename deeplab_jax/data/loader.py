"""Input pipelines on Grain: augmented training batches, and validation examples in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypedDict

import grain
import numpy as np
from absl import flags

from deeplab_jax import config_keys
from deeplab_jax.data.augment import ClassInCrop
from deeplab_jax.data.faults import NOT_REPLACED, Read, Replacing, Skipped, never, start_worker, within
from deeplab_jax.data.sampling import ClassSampling
from deeplab_jax.data.source import Example, Source
from deeplab_jax.data.transforms import Arrays
from deeplab_jax.errors import UserError, did_you_mean, spell

ON_ERROR = ("stop", "skip")
TIMEOUT = config_keys.Loader.timeout  # seconds


class Rows:
    """The examples that one process reads of each batch, as a sequence.

    Args:
      examples: those of all processes, batch after batch.
      rows: positions within a batch, from 0.
      batch_size: images of a batch over all processes.
    """

    def __init__(self, examples: Any, rows: Sequence[int], batch_size: int) -> None:
        self._examples, self._rows, self._batch_size = examples, rows, batch_size

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, row = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[row]]


class Batch(TypedDict):
    """Images uint8 or float32 `[N, H, W, C]`, and labels uint8 `[N, H, W]`, or `[N, H, W, K]` where a pixel can have
    several; 255 is ignored.
    """

    image: np.ndarray
    label: np.ndarray


Sequences = tuple[grain.MapDataset, grain.MapDataset]
Mix = Callable[[grain.MapDataset, grain.MapDataset], Sequences]
"""From the endless sequences of examples' indices and of crops to others of their kind."""


class Transform(Protocol):
    """`augment` with its options."""

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, wanted: ClassInCrop | None
    ) -> Arrays: ...


def training_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    steps: int,
    start: int = 0,
    seed: int = 0,
    sampling: ClassSampling | None = None,
    mix: Mix | None = None,
    threads: int = 4,
    workers: int = 0,
    timeout: float = TIMEOUT,
    stopped: Callable[[], bool] = never,
    skipped: Skipped | None = None,
) -> Iterator[Batch]:
    """Return an iterator over the batches of steps `start` to `steps - 1`.

    The input of step k depends only on the seed and k: order and augmentation are drawn for each position of one
    endless, reshuffled sequence. So a run that resumes at k reads the same as without a stop.

    Args:
      source: training examples.
      transform: the augmentation of each, to one size.
      batch_size: images of one step, over all processes.
      rows: the positions in the batch, from 0, that this process reads; None: all. A position holds the same example in
        any process.
      steps: last step of training.
      start: first step to yield.
      seed: seed of order and augmentation.
      sampling: how images are drawn; None: each once, in another order each time.
      mix: `mixing.mixed`, which makes crops of several; None: each crop stays alone.
      threads: number of threads that read ahead.
      workers: number of processes that read ahead; 0 uses threads of this one. OpenCV and Pillow work without the
        interpreter lock, so threads suffice until the Python code of augmentation needs more than one core.
      timeout: seconds within which a batch must arrive.
      stopped: ends the batches before the next one when it returns True.
      skipped: receives the examples that cannot be read, which the next ones replace; None stops at the first.

    Raises:
      UserError: an example cannot be read, too many cannot, or a worker process died.
      StuckError: no batch within the time.
    """
    part = slice(start * batch_size, steps * batch_size)
    rows = range(batch_size) if rows is None else rows
    positions, examples = _sequences(source, skipped is not None, seed, transform, sampling)
    if mix is not None:
        positions, examples = mix(positions, examples)
    order = Rows(positions[part], rows, batch_size)
    own = grain.MapDataset.source(Rows(examples[part], rows, batch_size))
    batches = own.batch(len(rows), drop_remainder=True)
    options = grain.ReadOptions(num_threads=max(1, threads), prefetch_buffer_size=max(1, 2 * threads))
    iterable = batches.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's processes read absl's flags, which only programs of absl parse.
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), start_worker)

    def files(number: int) -> str:
        indices = np.hstack([order[i] for i in range(number * len(rows), (number + 1) * len(rows))])
        return f"{spell([describe(source, index) for index in indices.tolist()])} (step {start + number + 1})"

    for batch in within(lambda: iter(iterable), timeout, what=files, workers=workers, stopped=stopped):
        for index in batch["replaced"][batch["replaced"] != NOT_REPLACED].tolist():
            assert skipped is not None
            skipped.add(index)
        yield {"image": batch["image"], "label": batch["label"]}


def _sequences(
    source: Source,
    replaces: bool,
    seed: int,
    transform: Transform,
    sampling: ClassSampling | None,
) -> Sequences:
    """Return the endless sequences of the examples' indices, and of the augmented examples."""

    def transformed(
        read: Example | Read, rng: np.random.Generator, wanted: ClassInCrop | None = None
    ) -> dict[str, np.ndarray]:
        example, replaced = read if isinstance(read, Read) else (read, NOT_REPLACED)
        image, label = transform(example["image"], example["label"], rng, wanted=wanted)
        return {"image": image, "label": label, "replaced": np.asarray(replaced)}

    def ordered(items: object) -> grain.MapDataset:
        return grain.MapDataset.source(items).seed(seed).shuffle().repeat()

    reader = Replacing(source) if replaces else source
    if sampling is None:
        return ordered(range(len(source))), ordered(reader).random_map(transformed)
    drawn = grain.MapDataset.range(1).seed(seed).repeat().random_map(lambda _, rng: sampling.draw(rng))
    examples = drawn.map(lambda one: (reader[one.example], sampling.wanted(one)))
    return drawn.map(lambda one: one.example), examples.random_map(lambda one, rng: transformed(one[0], rng, one[1]))


def examples_in_order(
    source: Source,
    indices: range | None = None,
    *,
    threads: int = 2,
    timeout: float = TIMEOUT,
    stopped: Callable[[], bool] = never,
) -> Iterator[Example]:
    """Return an iterator over examples of a source (None: all), which reads a few ahead. Each must arrive within
    `timeout` seconds; when `stopped` returns True, the examples end early.
    """
    indices = range(len(source)) if indices is None else indices
    dataset = grain.MapDataset.source(source).slice(slice(indices.start, indices.stop, indices.step))
    iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    return within(
        lambda: iter(iterable), timeout, what=lambda number: describe(source, indices[number]), stopped=stopped
    )


def describe(source: Source, index: int) -> str:
    """Return the name of an example: its image's path, or its own name."""
    found = source.describe(index)
    return found if isinstance(found, str) else found[0]


def skipped_examples(source: Source, *, on_error: str, max_skipped: float) -> Skipped | None:
    """Return what collects the examples that cannot be read, or None if the first one stops the run.

    Raises:
      UserError: `on_error` is neither "stop" nor "skip".
    """
    if on_error not in ON_ERROR:
        raise UserError(f"config.data.on_error={on_error!r}: {did_you_mean(on_error, ON_ERROR)}")
    return Skipped(source, max_skipped) if on_error == "skip" else None
