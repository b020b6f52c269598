"""Our variables as a state dict of torchvision's segmentation models, by the importer's tables in reverse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from deeplab_jax.models.catalog import create_model, describe
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.weights.folder import compare, flatten_variables
from deeplab_jax.weights.formats.write_torch import write_torch
from deeplab_jax.weights.importers.torchvision import NETWORKS, network
from deeplab_jax.weights.tensor_map import TORCH, their_name

# Options that change neither the variables nor the logits of inference.
FREE = ("activation", "dropout", "dtype", "lowering", "norm_momentum", "channels", "stored_range")
NORMS = ("norm", "backbone_norm")  # Frozen norms have the same variables as batch norms.
MEAN = ".running_mean"
SUFFIXES = (".safetensors", ".pth", ".pt")


def export_torchvision(model: Segmenter, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the state dict with which torchvision's network of the same name computes the same logits.

    Args:
      model: one of torchvision's networks, from `convert` or from `create_model` with the right options, at the output
        stride at which torchvision runs it.
      variables: those of the model.

    Returns:
      Name to contiguous float32 array, in torchvision's layout, and the counters of its batch norms (int64, 0). Images
      are preprocessed by ImageNet's mean and standard deviation.

    Raises:
      UserError: the network is not torchvision's; the message names the first option that differs.
    """
    described = describe(model)
    _check_theirs(described)
    flat = {name: np.asarray(value) for name, value in flatten_variables(variables).items()}
    compare(flatten_variables(abstract_variables(model)), flat, source="variables")
    rules = network(described["name"], num_classes=model.num_classes).rules
    tensors = {}
    for name, value in flat.items():
        theirs, leaf = their_name(name, value.shape, rules=rules, layout=TORCH)
        back = value if leaf.axes is None else value.transpose(np.argsort(leaf.axes))
        tensors[theirs] = np.ascontiguousarray(back, np.float32)
        if theirs.endswith(MEAN):
            tensors[theirs.removesuffix(MEAN) + ".num_batches_tracked"] = np.asarray(0, np.int64)
    return tensors


def write_state_dict(path: str | Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write a state dict, and replace an older file at once when all is written.

    Args:
      path: `.safetensors`, or `.pth` or `.pt`, which `torch.load(weights_only=True)` reads.
      tensors: arrays of float32 or int64.

    Raises:
      UserError: another suffix, or a file that cannot be written.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: a state dict is written as {', '.join(SUFFIXES)}; choose one of these suffixes")
    if file.suffix == ".safetensors":
        # It writes the memory of an array in its order there, whatever its strides say.
        contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        return write_whole(file, lambda fresh: save_file(contiguous, str(fresh), metadata={"format": "pt"}))
    return write_whole(file, lambda fresh: write_torch(fresh, tensors))


def _check_theirs(described: Mapping[str, Any]) -> None:
    name, stride, num_classes = described["name"], described["output_stride"], described["num_classes"]
    if name not in NETWORKS:
        raise UserError(f"model {name!r} is none of torchvision's: {', '.join(NETWORKS)}")
    if stride != NETWORKS[name]:
        raise UserError(
            f"output_stride={stride}: torchvision runs {name} at {NETWORKS[name]}; export it at that, "
            f"model.clone(output_stride={NETWORKS[name]})"
        )
    ours = _that_count(described["options"])
    theirs = _that_count(network(name, num_classes=num_classes, aux_head=bool(ours.get("aux_head"))).options)
    target = _build(name, num_classes, theirs)
    if _build(name, num_classes, ours) == target:
        return
    for option in (*theirs, *ours):
        mixed = {key: value for key, value in theirs.items() if key != option}
        if option in ours:
            mixed[option] = ours[option]
        if _build(name, num_classes, mixed) != target:
            has = f"{option}={ours[option]!r}" if option in ours else f"{option} is left out"
            wants = f"has {option}={theirs[option]!r}" if option in theirs else "leaves it out"
            raise UserError(f"{name}: {has}, torchvision {wants}; only its own network can be exported to it")
    raise UserError(f"{name}: its options {ours} together are not those of torchvision's network, {theirs}")


def _that_count(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        option: value
        for option, value in options.items()
        if option not in FREE and (option not in NORMS or value != "frozen")
    }


def _build(name: str, num_classes: int, options: Mapping[str, Any]) -> Segmenter | None:
    """Return the network with these options alone, without the other arguments; None if they do not fit together."""
    try:
        return create_model(name, num_classes=num_classes, output_stride=NETWORKS[name], **options).clone(recipe="")
    except UserError:
        return None
