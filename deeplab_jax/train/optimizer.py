"""Optimizers: the rule of an update, weight decay, multipliers, layer-wise decay and freezing by pattern.

A pattern is a regular expression that is searched for in a parameter's path, such as
`backbone/conv2_unit1/conv1/conv/kernel`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.config_keys import Updates
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.train.schedules import Schedule

BETAS = {"adam": (0.9, 0.999), "adamw": (0.9, 0.999), "lamb": (0.9, 0.999), "lion": (0.9, 0.99)}
NAMES = ("sgd", *BETAS)
MOMENTUM = Updates.momentum
STAGE = re.compile(r"backbone/conv(\d+)_")
LAST = re.compile(r"backbone/last/")  # MobileNetV2's last convolution belongs to the stage before it.
# ResNets call their stem conv1, without a unit.
STEM = re.compile(r"backbone/(stem|conv1/)")


def make_optimizer(
    params: Any,
    schedule: Schedule,
    *,
    name: str = "sgd",
    momentum: float = MOMENTUM,
    nesterov: bool = False,
    betas: Sequence[float] = (),
    weight_decay: float = 4e-5,
    no_decay: Sequence[str] = (r"(scale|bias)$",),
    clip_norm: float = 0.0,
    multipliers: Sequence[tuple[str, float]] = (),
    layer_decay: float = 1.0,
    freeze: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Return the gradient transformation: clipping, the rule of the update, factors and the learning rate.

    Clipping, factors and decay have no state, and none of them moves the state of the rest. So a run can go on from
    its checkpoint with another value of `clip_norm`, `weight_decay`, `multipliers` or `layer_decay`.

    Args:
      params: the parameters or their shapes; only their paths matter.
      schedule: the learning rate of each step.
      name, momentum, nesterov, betas, weight_decay: see `update_rule`.
      no_decay: patterns of the parameters without decay; they may match nothing in this network.
      clip_norm: largest global norm of the gradient of the trained parameters; 0 does not clip.
      multipliers, layer_decay: see `rate_factors`.
      freeze: patterns of the parameters without any update. `summed_loss` takes them too: a batch norm layer whose
        scale and offset are frozen keeps its running statistics, and normalises by them.

    Raises:
      UserError: as `update_rule` and `rate_factors`; a pattern that is not a regular expression, or a pattern of
        `freeze` that matches nothing.
    """
    paths = _paths(params)
    decayed = unflatten_dict({path: not matches(no_decay, path) for path in paths}, sep="/")
    factors = rate_factors(paths, multipliers, layer_decay)
    rule = update_rule(name, decayed, momentum=momentum, nesterov=nesterov, betas=betas, weight_decay=weight_decay)
    rate = optax.scale_by_learning_rate(schedule)
    if multipliers or layer_decay != 1:
        rate = _after(partial(_scaled, factors=factors), rate)
    trained = optax.chain(*rule, rate)
    if clip_norm:
        trained = _after(partial(_clipped, norm=clip_norm), trained)
    return without_frozen(trained, params, freeze)


def update_rule(
    name: str, decayed: Any, *, momentum: float, nesterov: bool, betas: Sequence[float], weight_decay: float
) -> list[optax.GradientTransformation]:
    """Return what turns a gradient into an update, one after another, before the learning rate.

    Args:
      name: one of `NAMES`:
        "sgd": decay is added to the gradient, as an L2 loss would do;
        "adam", "adamw": Adam with decoupled decay (Loshchilov and Hutter, 2019), under both names;
        "lamb": AdamW's update, scaled in each tensor to the norm of its parameters (You et al., 2020). As in the
        authors' code, the tensors without decay are not scaled;
        "lion": the sign of a momentum, with decoupled decay (Chen et al., 2023).
      decayed: which parameters decay, booleans in their tree.
      momentum, nesterov: SGD only.
      betas: decay of the two moving averages; not of SGD. Empty: 0.9 and 0.999, for Lion 0.9 and 0.99.
      weight_decay: decay per step; 0 is none.

    Raises:
      UserError: an unknown optimizer, an option of another one, or betas that are not two.
    """
    if name not in NAMES:
        raise UserError(f"config.optimizer.name={name!r}: {did_you_mean(name, NAMES)}")
    if nesterov and name != "sgd":
        raise UserError(f"config.optimizer.nesterov=True: {name} has none; set it to False, or choose sgd")
    if momentum != MOMENTUM and name != "sgd":
        raise UserError(
            f"config.optimizer.momentum={momentum}: {name} has none; leave it at {MOMENTUM}, and set "
            "config.optimizer.betas"
        )
    if betas and (name == "sgd" or len(betas) != 2):
        raise UserError(
            f"config.optimizer.betas={tuple(betas)}: "
            + ("sgd has none; set config.optimizer.momentum" if name == "sgd" else "give two, such as (0.9,0.95)")
        )
    decay = optax.masked(optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(), decayed)
    if name == "sgd":
        return [decay, optax.trace(decay=momentum, nesterov=nesterov)]
    betas = betas or BETAS[name]
    if name == "lion":
        return [optax.scale_by_lion(*betas), decay]
    if name == "lamb":
        return [optax.scale_by_adam(*betas, eps=1e-6), decay, optax.masked(optax.scale_by_trust_ratio(), decayed)]
    return [optax.scale_by_adam(*betas), decay]


def without_frozen(
    optimizer: optax.GradientTransformation, params: Any, freeze: Sequence[str]
) -> optax.GradientTransformation:
    """Return an optimizer that leaves the parameters as they are whose paths match a pattern of `freeze`.

    Raises:
      UserError: a pattern that is not a regular expression, or matches nothing.
    """
    paths = _paths(params)
    _check_patterns("freeze", freeze, paths)
    if not freeze:
        return optimizer
    labels = {path: "frozen" if matches(freeze, path) else "trained" for path in paths}
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, unflatten_dict(labels, sep="/"))


def _check_patterns(key: str, patterns: Sequence[str], paths: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_search(pattern, path) for path in paths):
            raise UserError(
                f"config.optimizer.{key}: {pattern!r} matches no parameter; one is called {paths[0]!r}, for instance"
            )


def rate_factors(
    paths: Sequence[str], multipliers: Sequence[tuple[str, float]], layer_decay: float
) -> Mapping[str, float]:
    """Return a factor of the learning rate for each parameter's path.

    Args:
      paths: of all parameters.
      multipliers: patterns with factors; the first pattern that matches applies.
      layer_decay: see `stage_factors`, whose factors apply beside the multipliers.

    Raises:
      UserError: as `stage_factors`; a pattern that is not a regular expression, or matches nothing.
    """
    _check_patterns("multipliers", [pattern for pattern, _ in multipliers], paths)
    of_stage = stage_factors(paths, layer_decay)
    return {
        path: of_stage[path] * next((factor for pattern, factor in multipliers if _search(pattern, path)), 1.0)
        for path in paths
    }


def stage_factors(paths: Sequence[str], decay: float) -> Mapping[str, float]:
    """Return a factor of the learning rate for each parameter's path: BEiT's layer-wise decay, by the stages of the
    backbone (ConvNeXt calls that stage-wise).

    What follows the backbone has 1. The backbone's last stage has `decay`, the one before `decay ** 2`, and so on down
    to the stem. The stages are `conv1`, `conv2`, ... of the parameters' names.

    Raises:
      UserError: the backbone's names have other forms.
    """
    if decay == 1:
        return dict.fromkeys(paths, 1.0)
    stages, last = dict[str, int](), list[str]()
    for path in (path for path in paths if path.startswith("backbone/")):
        if found := STAGE.match(path):
            stages[path] = int(found[1])
        elif STEM.match(path):
            stages[path] = 0
        elif LAST.match(path):
            last.append(path)
        else:
            raise UserError(
                f"config.optimizer.layer_decay={decay}: {path} shows no stage of the backbone, such as conv2_...; give "
                "config.optimizer.multipliers instead"
            )
    stages |= {path: max(stages.values()) for path in last}
    order = sorted(set(stages.values()), reverse=True)
    return {path: decay ** (1 + order.index(stages[path])) if path in stages else 1.0 for path in paths}


def _after(change: Callable[[Any], Any], rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a rule that sees changed gradients. Its state is the rule's own, which a chain of the two would move."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return rule.update(change(gradients), state, params)

    return optax.GradientTransformation(rule.init, update)


def _clipped(gradients: Any, *, norm: float) -> Any:
    clipped, _ = optax.clip_by_global_norm(norm).update(gradients, optax.EmptyState())
    return clipped


def _scaled(updates: Any, *, factors: Mapping[str, float]) -> Any:
    # Frozen parameters are masked nodes here, without leaves.
    flat = flatten_dict(updates, sep="/")
    scaled = {path: jax.tree.map(lambda u, f=factors[path]: u * f, update) for path, update in flat.items()}
    return unflatten_dict(scaled, sep="/")


def _paths(params: Any) -> list[str]:
    return list(flatten_dict(params, sep="/"))


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
