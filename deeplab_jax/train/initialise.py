"""Starting from weights that exist: a model folder, or an earlier run (the second stage of the papers' protocol)."""

from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.train.state import TrainState
from deeplab_jax.weights.folder import compare, flatten_variables, load

SCOPES: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    # Parts whose output are the scores name their own classifiers "classifier_...".
    "all_but_classifier": lambda name: "/classifier" not in name and "/aux_head/" not in name,
    "backbone": lambda name: name.split("/")[1] == "backbone",
}


def initial_variables(state: TrainState, path: str, *, scope: str, say: Callable[[str], Any]) -> TrainState:
    """Replace the fresh variables within a scope by those found at `path`.

    Args:
      state: fresh.
      path: model folder or run directory.
      scope: "all", "all_but_classifier" (for other classes) or "backbone". Within it, every tensor must be there and
        fit.
      say: gets a line about what was done.

    Raises:
      UserError: an unknown scope, nothing at the path, or tensors that do not fit.
    """
    if scope not in SCOPES:
        raise UserError(f"config.train.init_scope={scope!r}: {did_you_mean(scope, SCOPES)}")
    fresh = {"params": state.params, **({"batch_stats": state.batch_stats} if state.batch_stats else {})}
    flat = flatten_variables(fresh)
    wanted = {name: value for name, value in flat.items() if SCOPES[scope](name)}
    found = {name: value for name, value in flatten_variables(load(path)[1]).items() if SCOPES[scope](name)}
    compare(wanted, found, source=path)
    placed = {name: jax.device_put(found[name], value.sharding) for name, value in wanted.items()}
    merged = unflatten_dict({**flat, **placed}, sep="/")
    say(f"initialised {len(placed)} of {len(flat)} tensors from {path} (scope {scope})")
    copies = None if state.ema_params is None else jax.tree.map(lambda x: x.copy(), merged["params"])
    return state.replace(params=merged["params"], batch_stats=merged.get("batch_stats", {}), ema_params=copies)
