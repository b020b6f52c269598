"""Optimizers: SGD with momentum or Adam, poly schedule, weight decay, multipliers and freezing by pattern."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.errors import UserError, did_you_mean

Schedule = Callable[[Any], Any]


def poly_schedule(learning_rate: float, *, steps: int, power: float, warmup_steps: int) -> Schedule:
    """Return `learning_rate * (1 - step / steps) ** power` (DeepLabv3, sec. 4.1), after a linear warm-up from 0.

    The polynomial counts from step 0, not from the end of the warm-up, so that a warm-up changes nothing after it.
    """
    poly = optax.polynomial_schedule(learning_rate, 0.0, power, steps)
    if not warmup_steps:
        return poly
    return lambda step: poly(step) * optax.linear_schedule(0.0, 1.0, warmup_steps)(step)


def make_optimizer(
    params: Any,
    *,
    steps: int,
    name: str = "sgd",
    learning_rate: float = 0.007,
    power: float = 0.9,
    warmup_steps: int = 0,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 4e-5,
    no_decay: Sequence[str] = (r"(scale|bias)$",),
    clip_norm: float = 0.0,
    multipliers: Sequence[tuple[str, float]] = (),
    freeze: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, Schedule]:
    """Build the gradient transformation and its schedule.

    A pattern is a regular expression that is searched for in a parameter's path, such as
    `backbone/conv2_unit1/conv1/conv/kernel`.

    Args:
      params: the parameters or their shapes; only their paths matter.
      steps: end of the schedule.
      name: "sgd" (decay is added to the gradient, as an L2 loss would do) or "adam" (decoupled decay: AdamW).
      learning_rate, power, warmup_steps: see `poly_schedule`.
      momentum, nesterov: SGD only.
      weight_decay: decay per step; 0 is none.
      no_decay: patterns of the parameters without decay; they may match nothing in this network.
      clip_norm: largest global norm of the gradient of the trained parameters; 0 does not clip.
      multipliers: patterns with factors of the learning rate; the first pattern that matches applies.
      freeze: patterns of the parameters without any update. `train_step` takes them too: a batch norm layer whose scale
        and offset are frozen keeps its running statistics, and normalises by them.

    Raises:
      UserError: an unknown optimizer, a pattern that is not a regular expression, or a pattern of `multipliers` or
        `freeze` that matches nothing.
    """
    paths = list(flatten_dict(flax.core.unfreeze(params), sep="/"))
    for pattern in (*freeze, *(pattern for pattern, _ in multipliers)):
        if not any(_search(pattern, path) for path in paths):
            raise UserError(
                f"pattern {pattern!r} of the optimizer matches no parameter; a parameter is called {paths[0]!r}, for "
                "instance"
            )

    def by_path(function: Callable[[str], Any]) -> Any:
        return unflatten_dict({path: function(path) for path in paths}, sep="/")

    decayed = by_path(lambda path: not matches(no_decay, path))
    factors = by_path(lambda path: next((factor for pattern, factor in multipliers if _search(pattern, path)), 1.0))

    schedule = poly_schedule(learning_rate, steps=steps, power=power, warmup_steps=warmup_steps)
    decay = [optax.add_decayed_weights(weight_decay, mask=decayed)] if weight_decay else []
    if name == "sgd":
        rule = [*decay, optax.trace(decay=momentum, nesterov=nesterov)]
    elif name == "adam":
        rule = [optax.scale_by_adam(), *decay]
    else:
        raise UserError(f"config.optimizer.name={name!r}: {did_you_mean(name, ('sgd', 'adam'))}")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    scale = [_scale_by(factors)] if multipliers else []
    trained = optax.chain(*clip, *rule, *scale, optax.scale_by_learning_rate(schedule))
    if not freeze:
        return trained, schedule
    labels = by_path(lambda path: "frozen" if matches(freeze, path) else "trained")
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels), schedule


def _scale_by(factors: Any) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Frozen parameters are masked nodes here, without leaves.
        flat = flatten_dict(flax.core.unfreeze(updates), sep="/")
        flat_factors = flatten_dict(factors, sep="/")
        scaled = {path: jax.tree.map(lambda u, f=flat_factors[path]: u * f, update) for path, update in flat.items()}
        return unflatten_dict(scaled, sep="/"), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether one of the patterns is found in a parameter's path.

    Raises:
      UserError: a pattern that is not a regular expression.
    """
    return any(_search(pattern, path) for pattern in patterns)


def _search(pattern: str, path: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise UserError(f"pattern {pattern!r} of the optimizer is not a regular expression: {error}") from None
