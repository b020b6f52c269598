"""A model folder: `model.json` describes the network, `weights.safetensors` holds its variables by path."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from deeplab_jax.checkpoint import Checkpoints, misfits
from deeplab_jax.errors import UserError, spell
from deeplab_jax.files import at_home, read_json, replacing, write_whole
from deeplab_jax.labels import BINARY, IGNORE_LABEL
from deeplab_jax.models.catalog import describe, from_description, rebuildable
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.weights.formats.read import FOLDER_FILES
from deeplab_jax.weights.formats.safetensors_file import read_safetensors

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
METRICS_FILE = "metrics.json"  # of an evaluation
CHECKPOINTS = "checkpoints"
INITIALISED = "initialised_from"  # The key of a trained model's `info` for the weights that it started from.
FIX = "give weights of the same architecture and class count"
FORMAT = 1
MAPPINGS = ("provenance", "source", "metrics", INITIALISED)
LARGEST_STORED = 2**16 - 1  # The largest value of a mask with 16 bits.


def save(path: str | Path, model: Segmenter, variables: Mapping[str, Any], info: Mapping[str, Any]) -> Path:
    """Write a model folder.

    Args:
      path: the folder; it is created if it does not exist. Each of its two files is replaced at once when both are
        written. The metrics of an evaluation there are removed: they were of other weights.
      model: from `create_model`, or a clone of it at another output stride.
      variables: `params` and, with batch norm, `batch_stats`.
      info: values for JSON: class names, palette, provenance, metrics.

    Returns:
      The folder's path.

    Raises:
      UserError: a run directory; a model that `load` would not build again; an `info` or variables that it would
        refuse; or the folder cannot be written.
    """
    folder = at_home(path)
    if model.recipe and rebuildable(model) is None:
        raise UserError(
            f"{folder}: the model was changed after create_model, and {MODEL_FILE} cannot say how; give create_model "
            "the changes as its options"
        )
    if (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder}: is a run directory, and has checkpoints of its own; choose another folder (--out)")
    text = _description(folder, model, info)
    # In row-major order: `save_file` writes the memory of an array in its order there, whatever its strides say.
    tensors = {key: np.asarray(value, order="C") for key, value in flatten_variables(variables).items()}
    expected = flatten_variables(abstract_variables(model))
    compare(expected, tensors, source=str(folder), fix="give the variables of this model")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / MODEL_FILE) as description, replacing(folder / WEIGHTS_FILE) as weights:
            save_file(tensors, str(weights), metadata={"format": "flax"})
            description.write_text(text, encoding="utf-8")
            (folder / METRICS_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the model folder ({error.strerror or error}); free space or choose another path"
        ) from None
    return folder


def load(
    path: str | Path, *, checkpoint: str = "best", module: str = "", model: Segmenter | None = None
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Return the model of a model folder or of a training run.

    Args:
      path: a model folder, or a run directory.
      checkpoint: for a run directory: "best" by validation mIoU if any was evaluated, otherwise the newest; "newest";
        or a step.
      module: path of your own Python file with parts of the model; see `create_model`. A folder that needs such a file
        is loaded only with this argument, because loading runs the file.
      model: the network, if it was composed in Python, so that no file can describe it.

    Returns:
      `(model, variables, info)`.

    Raises:
      UserError: nothing to load there, a module that does not exist or fails, or weights that do not fit the described
        model (the message lists them).
    """
    folder = at_home(path)
    if folder.is_file():
        if (folder.parent / MODEL_FILE).is_file():
            raise UserError(f"{folder}: a file of a model folder; give the folder: {shlex.quote(str(folder.parent))}")
        raise UserError(f"{folder}: a file and no model folder; convert it first: {_convert(folder, folder.stem)}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a model folder or a run directory")
    if not (folder / MODEL_FILE).is_file():
        if any((folder / name).is_file() for name in FOLDER_FILES):
            command = _convert(folder, folder.resolve().name)
            raise UserError(f"{folder}: a saved folder of another code base; convert it first: {command}")
        raise UserError(
            f"{folder}: neither a model folder nor a run directory, there is no {MODEL_FILE} in it; give one of these"
        )
    model, info = read_description(folder, module=module, model=model)
    if (folder / WEIGHTS_FILE).is_file():
        if checkpoint != "best":
            raise UserError(f"{folder}: a model folder, which has no checkpoint {checkpoint!r}; leave that out")
        return model, _read_weights(folder / WEIGHTS_FILE, model), info
    if (folder / CHECKPOINTS).is_dir():
        checkpoints = Checkpoints(folder / CHECKPOINTS, read_only=True)
        step = checkpoints.find(checkpoint)
        variables = checkpoints.restore_variables(step, abstract_variables(model))
        return model, variables, {**info, "step": step, "metrics": checkpoints.metrics(step)}
    raise UserError(
        f"{folder}: has {MODEL_FILE} but neither {WEIGHTS_FILE} nor {CHECKPOINTS}/; the run has saved nothing yet"
    )


def _convert(source: Path, name: str) -> str:
    """Return the command that makes a model folder of another code base's weights."""
    return shlex.join(["python", "-m", "deeplab_jax", "convert", str(source), "--out", f"models/{name}"])


def write_description(folder: Path, model: Segmenter, info: Mapping[str, Any], *, named: bool = True) -> None:
    """Write `model.json`, completely or not at all: a new start of a run replaces the file that others read.

    A network that is not `named`, because it was composed in Python, is left out.

    Raises:
      UserError: an `info` that `load` would refuse, or it cannot be written.
    """
    text = _description(folder, model, info, named=named)
    write_whole(folder / MODEL_FILE, lambda file: file.write_text(text, encoding="utf-8"))


def _description(folder: Path, model: Segmenter, info: Mapping[str, Any], *, named: bool = True) -> str:
    """Return how to build the network, its preprocessing for readers that do not build it, and `info` as JSON.

    Raises:
      UserError: an `info` that `load` would refuse.
    """
    preprocessing = vars(model.preprocessing)
    content = {
        "format": FORMAT,
        "model": describe(model) if named else None,
        "preprocessing": preprocessing,
        "info": dict(info),
    }
    text = json.dumps(content, indent=1) + "\n"
    try:
        _checked_info(json.loads(text)["info"], model)
    except UserError as error:
        raise UserError(f"{folder / MODEL_FILE}: {error}") from None
    return text


def read_description(
    folder: Path, *, module: str = "", model: Segmenter | None = None
) -> tuple[Segmenter, dict[str, Any]]:
    """Return the model and the `info` of `model.json`; for `module` and `model` see `load`."""
    file = folder / MODEL_FILE
    try:
        content = read_json(file)
        if content["format"] != FORMAT:
            raise UserError(
                f"{file}: format {content['format']}, this version reads {FORMAT}; convert it with the version that "
                "wrote it"
            )
        if content["model"] is None and model is None:
            raise UserError(
                "the network was composed in Python, and the file holds only its classes; give it again, as in "
                f"deeplab_jax.load({str(folder)!r}, model=...)"
            )
        model = model or from_description(content["model"], module=module)
        return model, _checked_info(dict(content["info"]), model)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a readable model description ({type(error).__name__}: {error}); write it again"
        ) from None


def _checked_info(info: dict[str, Any], model: Segmenter) -> dict[str, Any]:
    """Return the `info` of a model, or raise a UserError about a part that others could not use."""
    info = _with_background(info) if model.num_classes == 1 else info
    _check_classes(info, model.label_classes)
    _check_origin(info)
    return info


def _with_background(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `info` of one logit with both of its classes: folders of before named the object alone."""
    added = {"class_names": BINARY.names[0], "palette": list(BINARY.palette[0])}
    return {key: [added[key], *value] if key in added and _is_list(value, 1) else value for key, value in info.items()}


def _check_classes(info: Mapping[str, Any], num_classes: int) -> None:
    """Raise a UserError unless there are one name and one colour for each class, and stored values of classes."""
    names, colours = info.get("class_names"), info.get("palette")
    if names is not None and not (_is_list(names, num_classes) and all(isinstance(name, str) for name in names)):
        raise UserError(f"class_names is {_short(names)}; give {num_classes} names, or leave it out")
    if odd := [name for name in names or () if not name.isprintable()]:
        raise UserError(f"class_names has {_short(odd[0])}, which cannot be printed; rename it, or leave it out")
    if colours is not None and not (
        _is_list(colours, num_classes)
        and all(_is_list(colour, 3) and all(type(v) is int and 0 <= v <= 255 for v in colour) for colour in colours)
    ):
        raise UserError(
            f"palette is {_short(colours)}; give {num_classes} triples (red, green, blue) of 0 to 255, or leave it out"
        )
    pairs = info.get("value_map")
    if pairs is not None and not (
        isinstance(pairs, list)
        and all(_is_list(pair, 2) and all(type(v) is int for v in pair) for pair in pairs)
        and all(0 <= stored <= LARGEST_STORED for stored, _ in pairs)
        and all(0 <= k < num_classes or k == IGNORE_LABEL for _, k in pairs)
    ):
        raise UserError(f"value_map is {_short(pairs)}; give pairs [stored value, class id], or leave it out")


def _check_origin(info: Mapping[str, Any]) -> None:
    """Raise a UserError unless what is known of the data and of the weights' origin has the form that a card needs."""
    for key in MAPPINGS:
        if not isinstance(info.get(key, {}), dict):
            raise UserError(f"{key} is {_short(info[key])}; give a mapping, or leave it out")
    provenance, source = info.get("provenance", {}), info.get("source", {})
    for key, text in (("provenance.licence", provenance.get("licence", "")), ("data", info.get("data", ""))):
        if not isinstance(text, str):
            raise UserError(f"{key} is {_short(text)}; give a text, or leave it out")
    notes = source.get("notes", [])
    if not (isinstance(notes, list) and all(isinstance(note, str) for note in notes)):
        raise UserError(f"source.notes is {_short(notes)}; give a list of texts, or leave it out")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _short(value: Any) -> str:
    return f"{value!r:.100}"


def flatten_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"params/backbone/.../kernel": array}`."""
    return flatten_dict(flax.core.unfreeze(dict(variables)), sep="/")


def unfit(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the missing, unexpected and mis-shaped tensors of flat mappings."""
    return misfits(*({name: tuple(array.shape) for name, array in flat.items()} for flat in (expected, found)))


def compare(expected: Mapping[str, Any], found: Mapping[str, Any], *, source: str, fix: str = FIX) -> None:
    """Raise a UserError that names the first missing, unexpected or mis-shaped tensors; both mappings are flat."""
    if problems := unfit(expected, found):
        raise UserError(f"{source}: does not fit the model: {spell(problems, separator='; ')}; {fix}")


def _read_weights(file: Path, model: Segmenter) -> Variables:
    tensors, expected = read_safetensors(file), flatten_variables(abstract_variables(model))
    compare(expected, tensors, source=str(file))
    return unflatten_dict({key: jnp.asarray(value, expected[key].dtype) for key, value in tensors.items()}, sep="/")
