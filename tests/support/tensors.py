"""All tensors of a file, as `convert` reads them before it looks for the network among them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.weights.find_network import flatten
from deeplab_jax.weights.formats.read import arrays, no_tensors, read_tree, unpacked


def read_tensors(source: str | Path | Mapping[str, Any], *, within: str = "") -> dict[str, np.ndarray]:
    """Return the tensors of a file, or of nested mappings, by their dotted names; those `within` a mapping if named."""
    name = "state dict" if isinstance(source, Mapping) else str(source)
    if isinstance(source, Mapping):
        tree = source
    else:
        with unpacked(Path(source)) as path:
            tree = read_tree(path)[0]
    tensors, _ = flatten(tree, source=name)
    if not tensors:
        raise no_tensors(tree, name=name)
    inside = {key.removeprefix(within): value for key, value in tensors.items() if key.startswith(within)}
    return arrays(inside, name=name)
