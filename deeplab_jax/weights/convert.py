"""From foreign weights, in a file or a state dict in memory, to one of our models."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.labels import BINARY
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.weights import folder
from deeplab_jax.weights.fill_variables import fill_variables
from deeplab_jax.weights.formats.read import read_network
from deeplab_jax.weights.importers import imagenet, jfzhang95, slim, smp, torchvision, transformers, vainf
from deeplab_jax.weights.tensor_map import TensorMap

# In the order in which they try; the names are those that `kind=` takes.
IMPORTERS: dict[str, Callable[..., TensorMap | None]] = {
    "torchvision": torchvision.recognise,
    "imagenet": imagenet.recognise,
    "smp": smp.recognise,
    "vainf": vainf.recognise,
    "jfzhang95": jfzhang95.recognise,
    "transformers": transformers.recognise,
    "tensorflow": slim.recognise,
}
RUN = "run"
# The parts of `info` that are wrong for other classes.
OF_CLASSES = ("class_names", "palette", "metrics")


def convert(
    source: str | Path | Mapping[str, Any],
    *,
    kind: str = "auto",
    output_stride: int | None = None,
    num_classes: int | None = None,
    reinit: str = "",
    strict: bool = True,
    activation: str = "",
    module: str = "",
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Return a model of this package with somebody else's weights, whose logits are the same.

    Args:
      source: a file, a folder, or a mapping of names to arrays.
      kind: who wrote it, one of `IMPORTERS` or "run" (a run directory or model folder of ours); "auto" finds it from
        the content.
      output_stride: a state dict does not state it. None is the peer's default; a number is what the peer does at that
        stride.
        stride.
      num_classes: number of the model's logits; if not the source's, `reinit` is needed. A source of one logit has two
        classes: the object is where the logit's sigmoid is large.
      reinit: "head" starts the classifiers at random.
      strict: whether to refuse missing, unexpected and mis-shaped tensors; otherwise `info` lists them.
      activation: "sigmoid" for several logits that were trained with a sigmoid each, which a state dict does not state;
        "" is "softmax", or "sigmoid" for one logit.
      module: path of the user's own file, which a run or a model folder of ours may need; see `load`.

    Returns:
      `(model, variables, info)`, as from `load`. `info["source"]` names the source, the differences from the paper's
      network, the tensors left out, and the variables that start at random.

    Raises:
      UserError: a source that cannot be read, is not recognised, or does not fit.
    """
    kinds = ("auto", *IMPORTERS, RUN)
    if kind not in kinds:
        raise UserError(f"kind={kind!r}: {did_you_mean(kind, kinds)}")
    name = "state dict" if isinstance(source, Mapping) else str(source)
    path = None if isinstance(source, Mapping) else Path(source)
    if path is not None and (path / folder.MODEL_FILE).is_file():
        tensor_map, tensors, info = _ours(path, output_stride=output_stride, module=module)
    elif kind == RUN:
        raise UserError(f"{name}: neither a run directory nor a model folder of ours, there is no {folder.MODEL_FILE}")
    else:
        tensors, own_stride = read_network(source)
        tensor_map = _recognise(
            tensors, kind=kind, output_stride=own_stride if output_stride is None else output_stride, source=name
        )
        info = dict(tensor_map.info)
    if activation:
        tensor_map = replace(tensor_map, options={**tensor_map.options, "activation": activation})
    model, variables, report = fill_variables(
        tensor_map, tensors, source=name, num_classes=num_classes, reinit=reinit, strict=strict
    )
    if model.num_classes != tensor_map.num_classes:
        info = {key: value for key, value in info.items() if key not in OF_CLASSES}
    if model.num_classes == 1:
        palette = [list(colour) for colour in BINARY.palette]
        info = {"class_names": list(BINARY.names), "palette": palette, **info}
    origin = {"kind": tensor_map.kind, "file": Path(name).name, "notes": list(tensor_map.notes), **report}
    if "source" in info:
        origin["before"] = info["source"]
    return model, variables, {**info, "source": origin}


def _recognise(tensors: Mapping[str, np.ndarray], *, kind: str, output_stride: int | None, source: str) -> TensorMap:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    asked = IMPORTERS if kind == "auto" else {kind: IMPORTERS[kind]}
    for recognise in asked.values():
        try:
            tensor_map = recognise(shapes, output_stride=output_stride)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if tensor_map is not None:
            return tensor_map
    examples = ", ".join(list(shapes)[:3])
    raise UserError(
        f"{source}: its {len(shapes)} tensors ({examples}, ...) belong to no network that "
        f"{'this package converts' if kind == 'auto' else f'kind={kind!r} knows'}; it knows {', '.join(IMPORTERS)}"
    )


def _ours(
    path: Path, *, output_stride: int | None, module: str
) -> tuple[TensorMap, dict[str, np.ndarray], dict[str, Any]]:
    """Use one of our model folders or run directories as a source like any other."""
    model, variables, info = folder.load(path, module=module)
    described = describe(model)
    tensor_map = TensorMap(
        kind=RUN,
        name=described["name"],
        num_classes=model.num_classes,
        output_stride=model.output_stride if output_stride is None else output_stride,
        options=described["options"],
        module=described.get("module", ""),
    )
    tensors = {name: np.asarray(value) for name, value in folder.flatten_variables(variables).items()}
    return tensor_map, tensors, info
