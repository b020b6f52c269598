"""Starting from weights that exist: a model folder, or an earlier run (the second stage of the papers' protocol)."""

import re
from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.train.identity_norms import put_identity_norms
from deeplab_jax.train.state import TrainState
from deeplab_jax.weights.folder import compare, flatten_variables, load

SCOPES: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    # Parts whose output are the logits name their own classifiers "classifier_...".
    "all_but_classifier": lambda name: "/classifier" not in name and "/aux_head/" not in name,
    "backbone": lambda name: name.split("/")[1] == "backbone",
}
# The copies of block 4 in DeepLabv3's cascade, which no classifier has.
COPY = re.compile(r"[^/]+/backbone/conv[678]_")


def initial_variables(
    state: TrainState,
    path: str,
    *,
    scope: str,
    model: Segmenter,
    images: Callable[[], jax.Array],
    say: Callable[[str], Any],
) -> TrainState:
    """Replace the fresh variables within a scope by those found at `path`.

    Where the weights have their batch norms folded into the convolutions and the new model has batch norms, these start
    as the identity, with the statistics of a few training images.

    Args:
      state: fresh.
      path: model folder or run directory.
      scope: "all", "all_but_classifier" (for other classes) or "backbone". Within it, every tensor must be there and
        fit, but for the cascade's copies of block 4, which start afresh where the weights have none.
      model: to be trained.
      images: gives preprocessed training images `[N, H, W, 3]`; called only where statistics are needed.
      say: gets a line about what was done.

    Raises:
      UserError: an unknown scope, nothing at the path, or tensors that do not fit.
    """
    if scope not in SCOPES:
        raise UserError(f"config.init_scope={scope!r}: {did_you_mean(scope, SCOPES)}")
    fresh = {"params": state.params, **({"batch_stats": state.batch_stats} if state.batch_stats else {})}
    flat = flatten_variables(fresh)
    wanted = {name: value for name, value in flat.items() if SCOPES[scope](name)}
    source, variables, _ = load(path)
    found = {name: value for name, value in flatten_variables(variables).items() if SCOPES[scope](name)}
    copies = [name for name in wanted if COPY.match(name) and name not in found] if scope == "backbone" else []
    wanted = {name: value for name, value in wanted.items() if name not in copies}
    without_norm = [name for name in wanted if name not in found and "/norm/batch/" in name]
    norms: dict[str, jax.Array] = {}
    if without_norm and source.backbone_settings.norm == "none":
        norms = put_identity_norms(without_norm, source, variables, images(), target=model)
        biases = {name.replace("/norm/batch/", "/conv/") for name in norms if name.startswith("params/")}
        found = {name: value for name, value in found.items() if name not in biases} | norms
    compare(wanted, found, source=path)
    placed = {name: jax.device_put(found[name], value.sharding) for name, value in wanted.items()}
    merged = unflatten_dict({**flat, **placed}, sep="/")
    say(f"initialised {len(placed)} of {len(flat)} tensors from {path} (scope {scope})")
    if copies:
        say(f"it has no copies of block 4: {len(copies)} tensors of those start afresh")
    if norms:
        count = len({name.split("/", 1)[1].rsplit("/", 1)[0] for name in norms})
        say(f"its batch norms were folded away: {count} new ones start as the identity")
    average = None if state.ema_params is None else jax.tree.map(lambda x: x.copy(), merged["params"])
    return state.replace(params=merged["params"], batch_stats=merged.get("batch_stats", {}), ema_params=average)
