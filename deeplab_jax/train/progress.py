"""What a run says of itself: at the start, and at a step, with how fast it goes."""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax.data.source import Source
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.optimizer import Schedule
from deeplab_jax.train.writers import Writers

BATCH_NORM_IMAGES = 12  # The authors' advice: more than 12 images per batch to train batch norm, better 16.


class Clock:
    """Throughput, and the share of time in which the devices waited for data, since the last restart."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start counting anew."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def fetch(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, or None at the end; the time that it takes is looked at by `wait_for_step`."""
        began = time.perf_counter()
        batch = next(batches, None)
        self._fetching = time.perf_counter() - began
        return batch

    def wait_for_step(self, metrics: Any) -> None:
        """Wait for a step, `metrics` being of it, and count it; the last batch was fetched while it ran.

        Where the devices were done by then, all of that time counts as waiting: an upper bound.
        """
        began = time.perf_counter()
        jax.block_until_ready(metrics)
        if time.perf_counter() - began < 1e-3:
            self._waited += self._fetching
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return images per second and the share of waiting, 0 to 1."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        return {"images_per_second": self._steps * self._batch_size / elapsed, "data_wait": self._waited / elapsed}


def report(
    number: int, updates: int, metrics: dict[str, jax.Array], schedule: Schedule, clock: Clock, writers: Writers
) -> None:
    """Write a step's numbers; those of a skipped update that are not finite are left out of the record.

    The learning rate is that of the last of `updates`, which skipped ones do not count among.
    """
    values = {name: float(value) for name, value in metrics.items()}
    values["learning_rate"] = float(schedule(max(updates - 1, 0)))
    speed = clock.read()
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    writers.scalars(number, {**finite, **speed}, prefix="train")
    writers.line(
        number,
        f"loss {values['loss']:.4f}, pixel accuracy {values['pixel_accuracy']:.3f}, learning rate "
        f"{values['learning_rate']:.2e}, "
        f"{speed['images_per_second']:.1f} images/s, waiting for data {speed['data_wait']:.1%}",
    )


def announce(
    config: ConfigDict, model: Segmenter, train_source: Source, val_source: Source, mesh: Mesh, writers: Writers
) -> None:
    """Say what is about to be trained, and warn of what is known to go wrong."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    t = config.train
    writers.say(
        f"{config.model.name} at output stride {model.output_stride}, {parameters:,} parameters, on "
        f"{train_source.name}: {len(train_source)} training and {len(val_source)} validation images; "
        f"{t.steps} steps of {t.batch_size} on {mesh.size} {jax.default_backend()} device(s)"
    )
    images = t.batch_size // t.accumulate
    if model.backbone.settings.norm == "batch" and images < BATCH_NORM_IMAGES:
        writers.say(
            f"note: batch norm sees {images} images at a time; the authors advise more than {BATCH_NORM_IMAGES}. "
            "Accumulation does not help; norm='group' does not depend on it"
        )
