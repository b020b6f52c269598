"""The batches of a run: reading them, checking them, and placing them on the devices."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.config_keys import Augment, Loader, Papers, Sampling, Skipping, arguments
from deeplab_jax.data.augment import augment, check_augment
from deeplab_jax.data.check.dataset import check_labels
from deeplab_jax.data.faults import never
from deeplab_jax.data.loader import Batch, skipped_examples, training_batches
from deeplab_jax.data.mixing import mixed, name_classes
from deeplab_jax.data.sampling import ClassSampling, sampling_of
from deeplab_jax.data.source import Source
from deeplab_jax.distributed import together
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.terminal import progress_bar
from deeplab_jax.train.sharding import batch_sharding, own_rows, place_batch

CHECKED_BATCHES = 2
SAMPLED_BATCHES = 3


def abstract_batch(config: ConfigDict, model: Segmenter, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes, dtypes and places of a training batch."""
    shape = (config.train.batch_size, *config.data.crop_size)
    place = batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((*shape, model.in_channels), model.preprocessing.stored_as, sharding=place),
        "label": jax.ShapeDtypeStruct((*shape, *model.label_axes), jnp.uint8, sharding=place),
    }


class Batches:
    """The training batches of a configuration.

    `skipped` receives the examples that cannot be read; None means that the first one stops the run. Without a mesh,
    batches cannot be placed.
    """

    def __init__(self, config: ConfigDict, model: Segmenter, source: Source, mesh: Mesh | None = None) -> None:
        self.source, self.skipped = source, skipped_examples(source, **arguments(config.data, Skipping))
        self._config, self._model, self._mesh = config, model, mesh
        more = Augment(**config.data.augment)
        check_augment(more, model.in_channels)  # Before anything is read or compiled.
        papers = arguments(config.data, Papers)
        self._augment = partial(augment, **papers, fill=model.preprocessing.mean_pixel, more=more)
        self._sampling: ClassSampling | None = None
        if config.data.class_temperature:
            how = arguments(config.data, Sampling)
            with progress_bar(Console(stderr=True)) as progress:
                self._sampling = sampling_of(source, **how, skipped=self.skipped, progress=progress)
        more = name_classes(more, source, self._sampling)
        mix = partial(mixed, seed=config.train.seed, crop_size=config.data.crop_size, more=more)
        self._mix = mix if more.mosaic or more.copy_paste else None

    def placed(self, start: int, *, stopped: Callable[[], bool]) -> Iterator[Any]:
        """Iterate over the batches of the steps after `start`, as global arrays, until `stopped` returns True.

        The labels of the first few are checked: an accelerator would not notice a wrong label.
        """
        if start < self._config.train.steps:
            assert self._mesh is not None
            rows = own_rows(self._mesh, self._config.train.batch_size)
            batches = self._read(start=start, rows=rows, stopped=stopped)
            batches = checked(batches, self._model, self.source.name)
            yield from map(partial(place_batch, mesh=self._mesh), batches)

    def examples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over the images and labels of the whole training, augmented."""
        for batch in self._read(start=0):
            yield from zip(batch["image"], batch["label"], strict=True)

    def sample(self) -> jax.Array:
        """Return the first training images, preprocessed, as many as the statistics of a norm need."""
        with together():
            first = itertools.islice(self._read(start=0), SAMPLED_BATCHES)
            images = np.concatenate([batch["image"] for batch in first])
        return self._model.preprocessing(jnp.asarray(images))

    def _read(
        self, *, start: int, rows: Sequence[int] | None = None, stopped: Callable[[], bool] = never
    ) -> Iterator[Batch]:
        t = self._config.train
        return training_batches(
            self.source,
            self._augment,
            batch_size=t.batch_size,
            rows=rows,
            steps=t.steps,
            start=start,
            seed=t.seed,
            stopped=stopped,
            skipped=self.skipped,
            sampling=self._sampling,
            mix=self._mix,
            **arguments(self._config.data, Loader),
        )


def checked(batches: Iterator[Batch], model: Segmenter, name: str) -> Iterator[Batch]:
    """Yield the batches, the first few after a check of their channels and labels."""
    for index, batch in enumerate(itertools.islice(batches, CHECKED_BATCHES)):
        where = f"training batch {index + 1} of {name}"
        check_pixels(model, batch["image"], batch["label"], name=where)
        yield batch
    yield from batches


def check_pixels(model: Segmenter, image: np.ndarray, label: np.ndarray, *, name: str) -> None:
    """Raise a UserError if images have other channels than the model takes, or labels that it does not know."""
    model.preprocessing.check(image, name=name)
    check_labels(label, 2 if model.multilabel else model.label_classes, name=name)
