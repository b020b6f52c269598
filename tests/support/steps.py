"""Optimizers and training steps from options alone, without a configuration."""

import dataclasses
from functools import partial
from typing import Any

import jax
import optax

from deeplab_jax import config_keys as keys
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.schedules import make_schedule
from deeplab_jax.train.step import summed_loss, train_step


def taken(options: dict[str, Any], section: type) -> dict[str, Any]:
    """Remove the options of a section from the others, and return them."""
    return {one.name: options.pop(one.name) for one in dataclasses.fields(section) if one.name in options}


def optimizer_of(params: Any, *, steps: int = 10, **options: Any) -> optax.GradientTransformation:
    """`make_optimizer` with `make_schedule`; the options are those of both."""
    schedule = make_schedule(**{"learning_rate": 0.007, "steps": steps, **taken(options, keys.Schedule)})
    return make_optimizer(params, schedule, **options)


def step_of(model: Segmenter, optimizer: optax.GradientTransformation, *, seed: int = 0, **options: Any) -> Any:
    """`train_step` as a function of state and batch; the options are its own and those of `summed_loss`."""
    of_step = taken(options, keys.Step)
    objective = partial(summed_loss, model=model, **options)
    return partial(train_step, objective=objective, optimizer=optimizer, key=jax.random.key(seed), **of_step)
