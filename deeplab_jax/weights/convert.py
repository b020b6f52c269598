"""From foreign weights, in a file or a state dict in memory, to one of our models."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax.errors import DamagedFile, UserError, did_you_mean
from deeplab_jax.files import at_home
from deeplab_jax.labels import BINARY
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.weights import fetch_named, folder
from deeplab_jax.weights.download import fix_of
from deeplab_jax.weights.fill_variables import fill_variables
from deeplab_jax.weights.find_network import find_network, flatten
from deeplab_jax.weights.fit_channels import at_own_channels, fit_channels, said_of_channels
from deeplab_jax.weights.formats.read import arrays, mapping_of, no_tensors, read_config, read_tree, unpacked
from deeplab_jax.weights.importers import (
    imagenet,
    jfzhang95,
    keras_hub,
    mmsegmentation,
    slim,
    smp,
    torchvision,
    transformers,
    vainf,
)
from deeplab_jax.weights.importers.saved_config import META, Config, refused
from deeplab_jax.weights.published import known_classes
from deeplab_jax.weights.tensor_map import Shapes, TensorMap


class Importer(NamedTuple):
    """What knows the tensors of a code base, and what the file beside them states of the network."""

    recognise: Callable[..., TensorMap | None]
    apply_config: Callable[[TensorMap, Config], TensorMap] = lambda tensor_map, stated: tensor_map


# In the order in which they try; the names are those that `kind=` takes.
IMPORTERS = {
    "mmsegmentation": Importer(mmsegmentation.recognise, mmsegmentation.apply_config),
    "torchvision": Importer(torchvision.recognise),
    "imagenet": Importer(imagenet.recognise, imagenet.apply_config),
    "smp": Importer(smp.recognise, smp.apply_config),
    "vainf": Importer(vainf.recognise),
    "jfzhang95": Importer(jfzhang95.recognise),
    "transformers": Importer(transformers.recognise, transformers.apply_config),
    "tensorflow": Importer(slim.recognise),
    "keras_hub": Importer(keras_hub.recognise, keras_hub.apply_config),
}
RUN = "run"
# The parts of `info` that are wrong for other classes, and the one that is wrong for other logits.
OF_CLASSES = ("class_names", "palette", "value_map")
METRICS = "metrics"


def convert(
    source: str | Path | Mapping[str, Any],
    *,
    kind: str = "auto",
    output_stride: int | None = None,
    num_classes: int | None = None,
    reinit: str = "",
    in_channels: int | None = None,
    strict: bool = True,
    select: str = "",
    activation: str = "",
    module: str = "",
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Return a model of this package with another code base's weights, whose logits are the same.

    Args:
      source: a file, a folder, a name of published weights or hf://owner/repo[@revision], or a mapping of names to
        arrays.
      kind: who wrote it, one of `IMPORTERS` or "run" (a run directory or model folder of ours); "auto" finds it from
        the content.
      output_stride: a state dict does not state it. None is the peer's default; a number is what the peer does at that
        stride.
      num_classes: number of the model's logits; if not the source's, `reinit` is needed. A source of one logit has two
        classes: the object is where the logit's sigmoid is large.
      reinit: "head" starts the classifiers at random.
      in_channels: channels of the model's images; None is the source's. If it has others, its first convolution is
        fitted to them (`weights.fit_channels`).
      strict: whether to refuse missing, unexpected and mis-shaped tensors; otherwise `info` lists them.
      select: where the source holds several networks, what the names of the wanted one's tensors begin with, such as
        "model_ema".
      activation: "sigmoid" for several logits that were trained with a sigmoid each, which a state dict does not state;
        "" is "softmax", or "sigmoid" for one logit.
      module: path of the user's own file, which a run or a model folder of ours may need; see `load`.

    Returns:
      `(model, variables, info)`, as from `load`. `info["source"]` names the source, the differences from the paper's
      network, the tensors left out, and the variables that start at random.

    Raises:
      UserError: a source that cannot be read, is not recognised, holds several networks, or does not fit.
    """
    kinds = ("auto", *IMPORTERS, RUN)
    if kind not in kinds:
        raise UserError(f"kind={kind!r}: {did_you_mean(kind, kinds)}")
    name = "state dict" if isinstance(source, Mapping) else str(source)
    path, by_name = (None, {}) if isinstance(source, Mapping) else _find(source)
    if path is not None and kind in ("auto", RUN) and (path / folder.MODEL_FILE).is_file():
        if select:
            raise UserError(f"{name}: one of our models, with one network; leave out select (--select)")
        tensor_map, tensors, info = _ours(path, output_stride=output_stride, module=module)
    elif kind == RUN:
        raise UserError(f"{name}: neither a run directory nor a model folder of ours, there is no {folder.MODEL_FILE}")
    else:
        tensor_map, tensors, info = _foreign(
            source, path, kind=kind, output_stride=output_stride, select=select, name=name
        )
    tensor_map = _with_activation(tensor_map, activation, num_classes, name)
    model, variables, report = fill_variables(
        tensor_map, tensors, source=name, num_classes=num_classes, reinit=reinit, strict=strict
    )
    info = _of_classes({**info, **by_name}, before=tensor_map.num_classes, now=model.num_classes)
    notes = list(tensor_map.notes)
    if report["random"] or in_channels not in (None, model.in_channels):
        info.pop(METRICS, None)
    if in_channels not in (None, model.in_channels):
        notes.append(said_of_channels(model.in_channels, in_channels))
        model, variables = fit_channels(model, variables, in_channels)
    origin = {"kind": tensor_map.kind, "file": (path or Path(name)).name, "notes": notes, **report}
    if "source" in info:
        origin["before"] = info["source"]
    return model, variables, {**info, "source": origin}


def _foreign(
    source: str | Path | Mapping[str, Any],
    path: Path | None,
    *,
    kind: str,
    output_stride: int | None,
    select: str,
    name: str,
) -> tuple[TensorMap, dict[str, np.ndarray], dict[str, Any]]:
    """Return the network of another code base's file or state dict, its tensors, and what is known of its classes."""
    tree, own_stride, config = (source, None, {}) if isinstance(source, Mapping) else _read(path or Path(source))
    if meta := mapping_of(tree.get(META)):
        config = {**config, META: meta}
    try:
        stride = next((one for one in (output_stride, own_stride, stated_stride(config)) if one is not None), None)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    tensor_map, tensors = _recognise(tree, kind=kind, output_stride=stride, config=config, select=select, source=name)
    known = known_classes(path, tensor_map.num_classes) if path else {}
    return tensor_map, tensors, {**known, **tensor_map.info}


def stated_stride(stated: Config) -> int | None:
    """Return the output stride that a configuration states.

    Raises:
      UserError: it is no whole number.
    """
    in_meta = mmsegmentation.stated_stride(stated)
    stride = stated.get("encoder_output_stride", stated.get("output_stride", in_meta))
    if stride is not None and type(stride) is not int:
        raise refused("output_stride", stride, "give 8 or 16")
    return stride


def _with_activation(tensor_map: TensorMap, activation: str, num_classes: int | None, name: str) -> TensorMap:
    """Return a network with the activation that was asked for, if one was."""
    options = tensor_map.options
    if tensor_map.num_classes == 1 and num_classes not in (None, 1):  # Its sigmoid says nothing of several classes.
        options = {key: value for key, value in options.items() if key != "activation"}
    if activation == "softmax" and (num_classes or tensor_map.num_classes) == 1:
        raise UserError(f"{name}: one logit has a sigmoid; leave out --activation")
    return replace(tensor_map, options={**options, **({"activation": activation} if activation else {})})


def _of_classes(info: dict[str, Any], *, before: int, now: int) -> dict[str, Any]:
    """Return what is known of a model that has another number of logits now, or one logit."""
    if now != before:
        info = {key: value for key, value in info.items() if key not in OF_CLASSES}
    if now == 1:
        palette = [list(colour) for colour in BINARY.palette]
        info = {"class_names": list(BINARY.names), "palette": palette, **info}
    return info


def _read(path: Path) -> tuple[Mapping[str, Any], int | None, dict[str, Any]]:
    """Return what a file or folder of weights holds, the output stride if its format stores it, and `config.json`."""
    try:
        with unpacked(path) as unarchived:
            return *read_tree(unarchived), read_config(unarchived)
    except DamagedFile as error:
        raise DamagedFile(f"{error}{fix_of(path)}") from None


def _find(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return where a source lies, and what the name that it may be says for `info`. The weights of a model folder stand
    for the folder.
    """
    path = at_home(source)
    if path.name == folder.WEIGHTS_FILE and (path.parent / folder.MODEL_FILE).is_file():
        return path.parent, {}
    return fetch_named.find(str(source)) if not path.exists() and fetch_named.is_name(str(source)) else (path, {})


def _recognise(
    tree: Mapping[str, Any],
    *,
    kind: str,
    output_stride: int | None,
    config: Mapping[str, Any],
    select: str,
    source: str,
) -> tuple[TensorMap, dict[str, np.ndarray]]:
    """Return the network that a file holds, and its tensors by the names that its importer knows."""
    tensors, starts = flatten(tree, source=source)
    if not tensors:
        raise no_tensors(tree, name=source)
    asked = IMPORTERS if kind == "auto" else {kind: IMPORTERS[kind]}

    def recognise(shapes: Shapes) -> TensorMap | None:
        for name, importer in asked.items():
            try:
                tensor_map = importer.recognise(shapes, output_stride=output_stride)
                if tensor_map is not None:
                    tensor_map = replace(at_own_channels(tensor_map, shapes), kind=name)
                    return importer.apply_config(tensor_map, config) if config else tensor_map
            except UserError as error:
                raise UserError(f"{source}: {error}") from None
            except (LookupError, ZeroDivisionError):  # From a tensor that is missing, or has other axes.
                raise UserError(
                    f"{source}: its names are those of {name}, but tensors are missing or have other shapes than "
                    "there; fetch it again"
                ) from None
        return None

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = find_network(shapes, starts, recognise, select=select, source=source)
    if found is None:
        raise UserError(
            f"{source}: its {len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...) belong to no network that "
            f"{'this package converts' if kind == 'auto' else f'kind={kind!r} knows'}; it knows {', '.join(IMPORTERS)}"
        )
    return found.tensor_map, arrays({ours: tensors[theirs] for ours, theirs in found.names.items()}, name=source)


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
    if tensor_map.output_stride != model.output_stride:
        info.pop(METRICS, None)
    return tensor_map, tensors, info
