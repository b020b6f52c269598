"""Our variables as a state dict of another code base, by its importer's tables in reverse.

The names and shapes that would be written go through the importer first. Only what it recognises as this very network
is written. So whatever goes out comes back as it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_whole
from deeplab_jax.models.catalog import create_model, describe
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.weights.fit_channels import at_own_channels
from deeplab_jax.weights.folder import compare, flatten_variables
from deeplab_jax.weights.formats.write_torch import write_torch
from deeplab_jax.weights.importers import mmsegmentation, smp, torchvision
from deeplab_jax.weights.tensor_map import TORCH, Leaf, Rule, Shapes, TensorMap, layer_of, reorder_inputs, their_name

# Options that change neither the variables nor the logits of inference.
FREE = ("activation", "dropout", "dtype", "lowering", "norm_momentum", "channels", "stored_range")
# For each code base; see `Peer.stated`.
STATED = ("mean", "std", "value_range", "aspp_rates")
DEFAULT_RATES = (6, 12, 18)  # Ours, stated at output stride 16.
NORMS = ("norm", "backbone_norm")  # Frozen norms have the same variables as batch norms.
MEAN = ".running_mean"
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Peer:
    """A code base whose state dicts are written.

    Attributes:
      recognise: its importer's.
      rules: its names for our layers, by our model's name; none if it has no such network.
      networks: its networks, for messages.
      network: says how to build the network that takes the state dict, and what to feed it.
      whole: the shapes of the whole backbone's variables, where the state dict holds parts that do not run.
      stated: what the caller of its network does, or says when building it; `network` says it in a line.
      fixed: whether its networks have one output stride, and `stated` at one value.
    """

    recognise: Callable[..., TensorMap | None]
    rules: Callable[[str], tuple[Rule, ...]]
    networks: Sequence[str]
    network: Callable[[Segmenter], str]
    whole: Callable[[Segmenter], Shapes] = lambda model: {}
    stated: Sequence[str] = STATED
    fixed: bool = False


def export_state_dict(model: Segmenter, variables: Mapping[str, Any], *, kind: str) -> dict[str, np.ndarray]:
    """Return the state dict with which a network of another code base computes the same logits.

    Args:
      model: one of its networks, from `convert` or from `create_model` with the right options, at the output stride at
        which it will run there.
      variables: those of the model.
      kind: one of `PEERS`, whose `network` says how to build theirs.

    Returns:
      Name to contiguous float32 array, in PyTorch's layout, and the counters of its batch norms (int64, 0). Where smp
      keeps a part of the encoder that it does not run, that part is zeros, and ones for scales and variances.

    Raises:
      UserError: the network is not one of that code base; the message names the first option that differs.
    """
    peer, described = PEERS[kind], describe(model)
    rules = peer.rules(described["name"])
    if not rules:
        raise UserError(f"model {described['name']!r} is none of {kind}'s: {', '.join(peer.networks)}")
    ours = _shapes(model)
    places = _places({**peer.whole(model), **ours}, rules)
    tensor_map = _recognise(kind, model, {theirs: leaf.their_shape(shape) for theirs, leaf, shape in places.values()})
    _check_theirs(kind, described, tensor_map)
    if missing := ours.keys() - places.keys():
        raise KeyError(f"no rule for {missing.pop()}; the rules of {kind} are wrong")
    flat = {name: np.asarray(value) for name, value in flatten_variables(variables).items()}
    compare(flatten_variables(abstract_variables(model)), flat, source="variables")
    tensors = {}
    for name, (theirs, leaf, shape) in places.items():
        value = flat[name] if name in flat else np.full(shape, float(name.endswith(("/scale", "/var"))))
        if name.endswith("/kernel") and (order := tensor_map.inputs.get(layer_of(name))):
            value = reorder_inputs(value, np.argsort(order).tolist())
        tensors[theirs] = np.ascontiguousarray(leaf.to_theirs(value), np.float32)
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


def _shapes(model: Segmenter) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in flatten_variables(abstract_variables(model)).items()}


def _smp_encoder(model: Segmenter) -> Shapes:
    """Return the variables of smp's encoder, of which a network of less depth runs the first part."""
    encoder = describe(model)["name"].split("_", 1)[1]
    options: dict[str, Any] = {"last_channels": smp.CHANNELS[encoder][-1]} if encoder == "mobilenet_v2" else {}
    whole = create_model(f"deeplabv3_{encoder}", in_channels=model.in_channels, **options)
    return {name: shape for name, shape in _shapes(whole).items() if name.split("/")[1] == "backbone"}


def _places(shapes: Shapes, rules: Sequence[Rule]) -> dict[str, tuple[str, Leaf, tuple[int, ...]]]:
    """Return the name there, its kind, and our shape of each of our variables for which there is a rule."""
    places = {}
    for name, shape in shapes.items():
        try:
            places[name] = (*their_name(name, rules=rules, layout=TORCH), shape)
        except KeyError:  # An option that is not theirs has made the layer, and will be named.
            continue
    return places


def _recognise(kind: str, model: Segmenter, shapes: Shapes) -> TensorMap:
    """Return the network that the importer sees in our tensors under their names."""
    peer, name = PEERS[kind], describe(model)["name"]
    try:
        tensor_map = peer.recognise(shapes, output_stride=None if peer.fixed else model.output_stride)
    except UserError as error:
        raise UserError(
            f"{name}: only networks that come from {kind} can be exported to it; this one not ({error})"
        ) from None
    if tensor_map is None or tensor_map.name != name:
        raise UserError(f"{name}: {kind} has no network of these tensors; only its own networks can be exported to it")
    if tensor_map.output_stride != model.output_stride:
        stride = tensor_map.output_stride
        raise UserError(
            f"output_stride={model.output_stride}: {kind} runs {name} at {stride}; export it at that, "
            f"--output_stride {stride}"
        )
    return tensor_map if peer.fixed else at_own_channels(tensor_map, shapes)


def _check_theirs(kind: str, described: Mapping[str, Any], tensor_map: TensorMap) -> None:
    """Raise a UserError that names the first option by which our network differs from theirs."""
    name, ours = described["name"], _that_count(described["options"])
    theirs = _that_count(tensor_map.options)
    if not PEERS[kind].fixed:
        theirs = _as_stated(theirs, ours, PEERS[kind].stated)
    build = partial(_build, name, described["num_classes"], described["output_stride"])
    target = build(theirs)
    if build(ours) == target:
        return
    for option in (*theirs, *ours):
        mixed = {key: value for key, value in theirs.items() if key != option}
        if option in ours:
            mixed[option] = ours[option]
        if build(mixed) != target:
            has = f"{option}={ours[option]!r}" if option in ours else f"{option} is left out"
            wants = f"has {option}={theirs[option]!r}" if option in theirs else "leaves it out"
            raise UserError(f"{name}: {has}, {kind} {wants}; only its own network can be exported to it")
    raise UserError(f"{name}: its options {ours} together are not those of {kind}'s network, {theirs}")


def _as_stated(theirs: dict[str, Any], ours: Mapping[str, Any], stated: Sequence[str]) -> dict[str, Any]:
    """Return their options with our values of those that are stated; the number of rates is fixed by the tensors."""
    rates = [options.get("aspp_rates", DEFAULT_RATES) for options in (theirs, ours)]
    stated = [key for key in stated if key != "aspp_rates" or len(rates[0]) == len(rates[1])]
    return {
        **{key: value for key, value in theirs.items() if key not in stated},
        **{key: ours[key] for key in stated if key in ours},
    }


def _that_count(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        option: value
        for option, value in options.items()
        if option not in FREE and (option not in NORMS or value != "frozen")
    }


def _build(name: str, num_classes: int, output_stride: int, options: Mapping[str, Any]) -> Segmenter | None:
    """Return the network with these options alone, without the other arguments; None if they do not fit together."""
    try:
        return create_model(name, num_classes=num_classes, output_stride=output_stride, **options).clone(recipe="")
    except UserError:
        return None


PEERS = {
    "torchvision": Peer(
        torchvision.recognise,
        torchvision.rules_of,
        tuple(torchvision.NETWORKS),
        torchvision.how_to_build,
        fixed=True,
    ),
    "smp": Peer(
        smp.recognise,
        smp.rules_of,
        tuple(f"{architecture}_ENCODER" for architecture in smp.DECODERS),
        smp.how_to_build,
        whole=_smp_encoder,
    ),
    "mmsegmentation": Peer(
        mmsegmentation.recognise,
        mmsegmentation.rules_of,
        tuple(f"{architecture}_RESNET" for architecture in mmsegmentation.HEADS),
        mmsegmentation.how_to_build,
        stated=(*STATED, "align_corners"),
    ),
}
