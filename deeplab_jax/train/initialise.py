"""Step 0: a random state, or one from existing weights.

The weights are a model folder, or an earlier run (the second stage of the papers' protocol). If their batch norms were
folded into the convolutions, new batch norms start as the identity.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from deeplab_jax.distributed import together
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models.catalog import describe, from_description, known_options
from deeplab_jax.models.layers import Conv
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.train.state import TrainState
from deeplab_jax.weights.by_name import load, present_folder
from deeplab_jax.weights.fit_channels import fit_channels, said_of_channels
from deeplab_jax.weights.folder import FIX, compare, flatten_variables, unfit

SCOPES: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    # Parts that return logits name their own classifiers "classifier_...".
    "all_but_classifier": lambda name: "/classifier" not in name and "/aux_head/" not in name,
    "backbone": lambda name: name.split("/")[1] == "backbone",
}
# What a backbone may have otherwise than the network whose weights it takes: where its context comes from.
ATROUS = ("multi_grid", "first_unit_rate", "last_block")
# The copies of block 4 in DeepLabv3's cascade; a classification network has none.
COPY = re.compile(r"[^/]+/backbone/conv[678]_")


def fresh_state(
    initial: Callable[..., TrainState],
    shardings: TrainState,
    config: ConfigDict,
    *,
    model: Segmenter,
    images: Callable[[], jax.Array],
    say: Callable[[str], Any],
) -> TrainState:
    """Return the state of step 0, on the devices in `shardings` (a tree with the same structure).

    Args:
      initial: `create_state` of a model and an optimizer.
      shardings: the place of each array.
      config: its seed, `init` and `init_scope` are used.
      model, images, say: see `initial_variables`.

    Raises:
      UserError: as `check_scope` and `initial_variables`.
    """
    check_scope(config.init_scope, config.init)
    if config.init:
        with together():
            present_folder(config.init)  # A name that is none is told before anything is compiled.
    # It runs once, so it is compiled quickly: a third of the time, the same numbers.
    hurry = {"xla_backend_optimization_level": 0}
    make, key = jax.jit(initial, out_shardings=shardings, compiler_options=hurry), jax.random.key(config.train.seed)
    state = make(key)
    if not config.init:
        return state
    fresh = state.variables()
    return make(key, variables=initial_variables(fresh, config.init, config.init_scope, model, images=images, say=say))


def check_scope(scope: str, path: str) -> None:
    """Raise a UserError for an unknown scope, or a part that no weights are given for: training would start from random
    weights alone.
    """
    if scope not in SCOPES:
        raise UserError(f"config.init_scope={scope!r}: {did_you_mean(scope, SCOPES)}")
    if scope != "all" and not path:
        raise UserError(
            f"config.init_scope={scope!r}: no weights are given to take it from; add --config.init=MODEL, or start "
            "from random weights with --config.init_scope=all"
        )


def initial_variables(
    fresh: Variables,
    path: str,
    scope: str,
    model: Segmenter,
    *,
    images: Callable[[], jax.Array],
    say: Callable[[str], Any],
) -> Variables:
    """Return fresh variables, of which those within a scope are replaced by those at `path`.

    If the batch norms of those weights are folded into the convolutions and the new model has batch norms, these start
    as the identity, with the statistics of a few training images.

    Args:
      fresh: the random variables of `model`.
      path: model folder, run directory, or a name of published weights.
      scope: "all", "all_but_classifier" (for other classes) or "backbone". Within it, every tensor must exist and fit.
        The only exception are the cascade's copies of block 4, which start fresh if the weights have none.
      model: the model to train.
      images: returns preprocessed training images `[N, H, W, C]`; called only if statistics are needed.
      say: receives a line about what was done.

    Raises:
      UserError: an unknown scope, nothing at the path, or tensors that do not fit.
    """
    check_scope(scope, path)
    flat = flatten_variables(fresh)
    wanted = {name: value for name, value in flat.items() if SCOPES[scope](name)}
    with together():
        source, variables, _ = load(path)
    if source.in_channels != model.in_channels:
        say(f"{path}: {said_of_channels(source.in_channels, model.in_channels)}")
        source, variables = fit_channels(source, variables, model.in_channels)
    found = {name: value for name, value in flatten_variables(variables).items() if SCOPES[scope](name)}
    copies = [name for name in wanted if COPY.match(name) and name not in found] if scope == "backbone" else []
    wanted = {name: value for name, value in wanted.items() if name not in copies}
    without_norm = [name for name in wanted if name not in found and "/norm/batch/" in name]
    norms: dict[str, jax.Array] = {}
    if without_norm and source.backbone_settings.norm == "none":
        norms = put_identity_norms(without_norm, source, variables, images(), target=model)
        biases = {name.replace("/norm/batch/", "/conv/") for name in norms if name.startswith("params/")}
        found = {name: value for name, value in found.items() if name not in biases} | norms
    if unfit(wanted, found):
        fitting, fix = _fitting_scope(flat, flatten_variables(variables)), FIX
        if fitting:
            fix = f"add --config.init_scope={fitting}"
        elif flags := fitting_options(source, model, found, scope):
            fix = f"give the network the options of these weights: {' '.join(flags)}"
        compare(wanted, found, source=path, fix=fix)
    if unlike := unlike_options(source, model):
        say(f"note: the network of {path} has other settings, which no tensor shows: {' '.join(unlike)}")
    placed = {name: jax.device_put(found[name], value.sharding) for name, value in wanted.items()}
    say(f"initialised {len(placed)} of {len(flat)} tensors from {path} (scope {scope})")
    if copies:
        say(f"it has no copies of block 4: {len(copies)} tensors of those start fresh")
    if norms:
        count = len({name.split("/", 1)[1].rsplit("/", 1)[0] for name in norms})
        say(f"its batch norms were folded away: {count} new ones start as the identity")
    return unflatten_dict({**flat, **placed}, sep="/")


def _fitting_scope(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the largest scope within which weights fit a model, "" for none."""
    for scope, holds in SCOPES.items():
        within = ({name: value for name, value in flat.items() if holds(name)} for flat in (expected, found))
        if not unfit(*within):
            return scope
    return ""


def fitting_options(source: Segmenter, model: Segmenter, found: Mapping[str, Any], scope: str) -> list[str]:
    """Return the fewest options of `source`, as a command line has them, with which the network of `model` takes the
    tensors found within a scope; none if they do not suffice.
    """
    if not (source.recipe and model.recipe):
        return []
    own, theirs = describe(model), describe(source)["options"]
    known = known_options(own["name"], module=own.get("module", "")) - {"in_channels"}  # Those of `found` are adapted.
    unlike = {key: theirs.get(key) for key in {**own["options"], **theirs} if key in known}
    unlike = {key: value for key, value in unlike.items() if value != own["options"].get(key)}

    def fits(changes: Mapping[str, Any]) -> bool:
        options = {key: value for key, value in {**own["options"], **changes}.items() if value is not None}
        with suppress(UserError):
            flat = flatten_variables(abstract_variables(from_description({**own, "options": options})))
            return not unfit({name: value for name, value in flat.items() if SCOPES[scope](name)}, found)
        return False  # The network does not take some option with the others.

    if not fits(unlike):
        return []
    for key in list(unlike):
        fewer = {other: value for other, value in unlike.items() if other != key}
        unlike = fewer if fits(fewer) else unlike
    return [_option(key, value) for key, value in unlike.items()]


def _option(key: str, value: Any) -> str:
    """Return an option of a model as a command line has it; None unsets it."""
    return shlex.quote(f"--config.model.options.{key}={value!r}")


def unlike_options(source: Segmenter, model: Segmenter) -> list[str]:
    """Return the options, as a command line has them, with which `model` would normalise and pad as `source` does, as
    far as it does not. No tensor shows these differences. An option that the model's network does not take stands in
    brackets.
    """
    defaults = {**_defaults(model.backbone), **_defaults(source.backbone)}  # A network without variants lacks fields.
    ours, theirs = ({**defaults, **_settings(one)} for one in (model, source))
    unlike = {key: value for key, value in theirs.items() if key in ours and ours[key] != value}
    black_and_white = jnp.array([[0.0], [255.0]])
    if not np.allclose(
        source.preprocessing(black_and_white), model.preprocessing(black_and_white), rtol=1e-4, atol=1e-4
    ):
        unlike |= source.preprocessing.normalisation
    own = describe(model) if model.recipe else {}
    taken = known_options(own["name"], module=own.get("module", "")) if own else unlike
    return [_option(key, value) if key in taken else f"({key}={value!r})" for key, value in unlike.items()]


def _defaults(backbone: nn.Module) -> dict[str, Any]:
    """Return the default of every field that changes features but not the shape of a tensor, except those of
    `ATROUS`.
    """
    left_out = ("parent", "name", "settings", *ATROUS)
    fields = (field for field in dataclasses.fields(backbone) if field.name not in left_out)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _settings(model: Segmenter) -> dict[str, Any]:
    backbone, settings = model.backbone, model.backbone_settings
    found = {name: getattr(backbone, name) for name in _defaults(backbone)}
    return found if settings.norm == "none" else {**found, "norm_epsilon": settings.norm_epsilon}


Statistics = dict[str, tuple[jax.Array, jax.Array]]


def conv_statistics(model: Segmenter, variables: Variables, images: jax.Array) -> Statistics:
    """Return the mean and variance of every convolution's output, float32 `[C]`, by the convolution's path.

    Args:
      model: any model.
      variables: its variables.
      images: preprocessed floats `[N, H, W, C]`.
    """
    found: Statistics = {}

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_function(*args, **kwargs)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            values = output.astype(jnp.float32)
            found["/".join(context.module.path)] = (values.mean((0, 1, 2)), values.var((0, 1, 2)))
        return output

    def run(variables: Variables, images: jax.Array) -> Statistics:
        found.clear()
        with nn.intercept_methods(watch):
            model.apply(variables, images, train=False, method="coarse_logits")
        return dict(found)

    return jax.jit(run)(variables, images)


def identity_norm(bias: jax.Array, mean: jax.Array, var: jax.Array, *, epsilon: float) -> dict[str, jax.Array]:
    """Return the parameters and statistics of a batch norm that only adds `bias` to a convolution's output.

    Args:
      bias: `[C]`, the bias of the folded convolution, which the norm takes over.
      mean, var: statistics of the folded convolution's output, with the bias. So in training, batches with these
        statistics also pass unchanged; others change as far as their own statistics differ.
      epsilon: epsilon of the norm.
    """
    return {
        "params/scale": jnp.sqrt(var + epsilon),
        "params/bias": mean,
        "batch_stats/mean": mean - bias,
        "batch_stats/var": var,
    }


def put_identity_norms(
    names: list[str], model: Segmenter, variables: Variables, images: jax.Array, *, target: Segmenter
) -> dict[str, jax.Array]:
    """Return the variables of batch norms after the convolutions of a folded network, so that its output does not
    change.

    Args:
      names: flat names of the wanted variables of `target`; those of batch norms are returned.
      model: has biases in its convolutions where `target` has batch norms.
      variables: those of `model`.
      images: preprocessed floats `[N, H, W, C]` for the statistics.
      target: the network with batch norms.

    Returns:
      The variables, by name, for which `model` has a convolution with a bias in the same place.
    """
    statistics = conv_statistics(model, variables, images)
    made = {}
    for name in names:
        collection, *path, leaf = name.split("/")
        if path[-2:] != ["norm", "batch"]:
            continue
        layer: Any = variables["params"]
        for part in [*path[:-2], "conv"]:
            layer = layer.get(part, {})
        conv = "/".join([*path[:-2], "conv"])
        if "bias" in layer and conv in statistics:
            settings = target.backbone_settings if path[0] == "backbone" else target.settings
            norm = identity_norm(layer["bias"], *statistics[conv], epsilon=settings.norm_epsilon)
            made[name] = norm[f"{collection}/{leaf}"]
    return made
