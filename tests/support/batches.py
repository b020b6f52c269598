"""Training batches from options alone, without a configuration."""

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from deeplab_jax.data.augment import augment
from deeplab_jax.data.loader import Batch, training_batches
from deeplab_jax.data.source import Source

LOADER = inspect.signature(training_batches).parameters


def batches_of(source: Source, **options: Any) -> Iterator[Batch]:
    """`training_batches` with `augment`; the options are those of both."""
    of_loader = {name: options.pop(name) for name in [*options] if name in LOADER}
    return training_batches(source, partial(augment, **options), **of_loader)
