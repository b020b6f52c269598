"""`evaluate` for a program."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from deeplab_jax.config import base
from deeplab_jax.errors import UserError
from deeplab_jax.extensions import allow
from deeplab_jax.files import at_home, make_folder, save_json
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.tasks.arguments import check_names, config_of, or_of_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from deeplab_jax.data.source import Source
    from deeplab_jax.evaluate import protocol as protocols
    from deeplab_jax.evaluate.predictor import PredictionWriter


def evaluate(
    model: Segmenter | str | Path,
    variables: Variables | None = None,
    source: "Source | None" = None,
    protocol: "protocols.Protocol | None" = None,
    *,
    config: Any = None,
    split: str = "",
    checkpoint: str = "best",
    module: str = "",
    out: str | Path = "",
    save_predictions: bool = False,
    on_results: "Callable[[dict[str, Any]], object]" = lambda results: None,
    **how: Any,
) -> dict[str, Any]:
    """Return the contents of `metrics.json` for a model on labelled images.

    Either with objects, `evaluate(model, variables, source, protocol)`, or with what `load` takes:
    `evaluate("runs/first", output_stride=8)`.

    Args:
      model, variables: from `load`. Or `model` is what `load` takes.
      source: labelled images; by default the configuration's split.
      protocol: how the model runs; by default the configuration's `evaluate` section with the changes in `how`. The
        batch size and the number of devices still come from the configuration.
      config: see `config_of`; by default that of the run directory. A list of words may change that one:
        ["--config.data.dir=elsewhere"].
      split: to evaluate on; by default the configuration's validation split. With a `source`, only its name in the
        record.
      checkpoint, module: see `load`.
      out: folder for `metrics.json` and the calibration's picture; "" writes none.
      save_predictions: whether to write `NAME.png` and `NAME_overlay.png` of each image there, and `index.html`. An
        `on_prediction` in `how` is called, too.
      on_results: receives the results before they are written. So they are not lost where the disk is full.
      how: other arguments of `evaluate.evaluator.evaluate`, such as `limit` and `progress`. Without a `protocol`, also
        keys of `config.evaluate`, such as `scales`, `flip` and `batch_size`.

    Raises:
      UserError: anything in the model, the data or the arguments that the user can fix.
    """
    from deeplab_jax.data.source import read_in_parts
    from deeplab_jax.distributed import is_first, together, watch
    from deeplab_jax.evaluate import evaluator
    from deeplab_jax.evaluate.results import unlabelled

    folder = at_home(out) if out else None
    with together():
        network, variables, info, settings = _model_and_settings(model, variables, config, checkpoint, module)
        split = split or (settings.data.val_split if settings is not None else "val")
        share = ""
        if source is None:
            source = _configured_source(model, network, settings, split)
            share = _share_of_another_folder(model, settings, source, split)
        protocol, how = _protocol_and_arguments(protocol, settings, how)
        source = read_in_parts(source) if protocol.window else source
        renamed = _compare_names(info, source)
        _compare_stored_values(info, source)
        evaluator.check_classes(network, source)
        if folder and is_first():  # Now, and not after hours.
            make_folder(folder)
    _note(share)
    writer = _writer(folder, source, split, protocol) if save_predictions else None
    if writer is not None:
        how["on_prediction"] = _both(writer, how.get("on_prediction"))
    if settings is not None:
        watch(settings.train.timeout)
    results = evaluator.evaluate(network, variables, source, protocol, split=split, **how)
    _note(renamed, "" if how.get("limit") else unlabelled(results))
    if not isinstance(model, Segmenter):
        results["checkpoint"] = info.get("step")
    try:
        on_results(results)
    finally:
        _write(results, folder)
    if writer is not None:
        writer.finish()
    return results


def _note(*lines: str) -> None:
    """Print the lines that say something, on the first process."""
    from deeplab_jax.distributed import is_first
    from deeplab_jax.terminal import note

    for line in filter(None, lines):
        if is_first():
            note(line)


def _both(write: Any, call: Any) -> Any:
    """Return a function that calls two with its arguments; the second may be None."""
    return lambda *seen: [each(*seen) for each in (write, call) if each is not None]


def _model_and_settings(
    model: Segmenter | str | Path, variables: Variables | None, config: Any, checkpoint: str, module: str
) -> tuple[Segmenter, Variables, dict[str, Any], ConfigDict | None]:
    """Return the network, its variables and its `info`, and the configuration: that given, or that of the run."""
    from deeplab_jax.weights.by_name import load

    allow(module)
    if not isinstance(model, Segmenter):
        config = or_of_run(config, model)
    # First: a Python file may name the module of the model.
    settings = None if config is None else config_of(config, module=module)
    if not isinstance(model, Segmenter):
        return *load(model, checkpoint=checkpoint, module=module), settings
    if variables is None:
        raise UserError(
            "evaluate(model): a network alone has no weights; give its variables, too, or the path of a run"
        )
    return model, variables, {}, settings


def _configured_source(
    model: Segmenter | str | Path, network: Segmenter, settings: ConfigDict | None, split: str
) -> "Source":
    """Return the split of the data that the configuration names, read as the network takes images."""
    from deeplab_jax.train.from_config import open_split
    from deeplab_jax.train.given import require_named

    if settings is None:
        raise UserError(_no_data(model))
    name = "model, variables" if isinstance(model, Segmenter) else repr(str(model))
    require_named(settings, "sources", fix=f"give it again, as in deeplab_jax.evaluate({name}, source=...)")
    return open_split(settings, split, reading=network.preprocessing)


def _share_of_another_folder(
    model: Segmenter | str | Path, settings: ConfigDict | None, source: "Source", split: str
) -> str:
    """Return a note if `val_fraction` keeps some images of a folder from being evaluated, and the model was not trained
    on that folder as far as its run says, else "".
    """
    from deeplab_jax.train.from_config import open_split

    if isinstance(model, Segmenter) or settings is None or not getattr(source, "is_share", False):
        return ""
    try:
        run = or_of_run(None, model)
        if run is not None and at_home(config_of(run).data.dir).resolve() == at_home(settings.data.dir).resolve():
            return ""
        all_images = len(open_split(settings, "all"))
    except UserError:  # Such as the configuration of an older run, with keys that have other names now.
        return ""
    if all_images <= len(source):
        return ""
    return (
        f"{split}: {len(source)} of {all_images} images, by val_fraction; if the model was trained on none of them, "
        "--split all evaluates all"
    )


def _compare_names(info: dict[str, Any], source: "Source") -> str:
    """Return a note if the data have other names for the model's classes, else "". Raise a UserError if the data lack
    some of them or have them in another order.
    """
    known, names = tuple(info.get("class_names") or ()), source.labels.names
    if not known or names == known:
        return ""
    if set(names) <= set(known):
        raise UserError(
            f"{source.name} has the classes {names!r:.200}, and the model {known!r:.200}; give the data those of the "
            f'model: "--config.data.options.class_names={known!r}"'
        )
    return f"the model calls its classes {known!r:.200}, and {source.name} calls them {names!r:.200}"


def _compare_stored_values(info: dict[str, Any], source: "Source") -> None:
    """Raise a UserError if nothing maps the stored values of the masks, and they mean other classes to the model. A map
    that the data have says itself what they mean; masks of colours, outlines and class files have none.
    """
    from deeplab_jax.data.mask_formats import ChannelMasks, IdMasks
    from deeplab_jax.data.source import stored_meanings, value_map_flag

    known, as_ids = dict(info.get("value_map") or ()), stored_meanings(source.labels)
    stores_ids = isinstance(getattr(source, "read_mask", None), IdMasks | ChannelMasks)
    if source.labels.value_map is not None or not stores_ids:
        return
    if any(as_ids.get(stored, class_id) != class_id for stored, class_id in known.items()):
        raise UserError(
            f"{source.name}: its masks are read as class ids, and those of the model's training had other values; give "
            f"their map: {value_map_flag(known)}; or, if these masks hold class ids, say so: {value_map_flag(as_ids)}"
        )


def _writer(out: Path | None, source: "Source", split: str, protocol: "protocols.Protocol") -> "PredictionWriter":
    """Return what writes the predictions and their page."""
    from deeplab_jax.evaluate.outputs import Outputs
    from deeplab_jax.evaluate.page import PAGE, Page
    from deeplab_jax.evaluate.predictor import PredictionWriter

    if not out:
        raise UserError("save_predictions=True: give the folder to write to, out=...")
    page = Page(out / PAGE, source.labels, title=f"{split} of {source.name}")
    return PredictionWriter(Outputs(out, source.labels, page=page), source, protocol)


def _write(results: dict[str, Any], out: Path | None) -> None:
    """Write the results, on the first process; to None, nothing."""
    from deeplab_jax.distributed import is_first, together
    from deeplab_jax.evaluate.calibration import PICTURE, draw
    from deeplab_jax.weights.folder import METRICS_FILE

    with together():
        if out and is_first():
            file = save_json(out / METRICS_FILE, results)
            if "calibration" in results:
                draw(results["calibration"], file.with_name(PICTURE))


def _protocol_and_arguments(
    protocol: "protocols.Protocol | None", settings: ConfigDict | None, given: dict[str, Any]
) -> tuple["protocols.Protocol", dict[str, Any]]:
    """Return the protocol, and the other arguments of `evaluator.evaluate`.

    Args:
      protocol: takes the place of the configuration's.
      settings: the configuration; None: only what is given is named.
      given: arguments, and fields of a protocol that is not given whole.
    """
    from deeplab_jax.evaluate import evaluator
    from deeplab_jax.evaluate.protocol import Protocol
    from deeplab_jax.train.from_config import evaluate_options

    names = {field.name for field in fields(Protocol)}
    own = {"model", "variables", "source", "protocol", "split"}
    known = {*inspect.signature(evaluator.evaluate).parameters} - own
    check_names(given, sorted(known if protocol is not None else known | names))
    changes = {key: given[key] for key in given if key in names}
    configured, how = evaluate_options(base() if settings is None else settings, **changes)
    how = {**(how if settings is not None else {}), **{key: given[key] for key in given if key not in names}}
    return configured if protocol is None else protocol, how


def _no_data(model: Segmenter | str | Path) -> str:
    if isinstance(model, Segmenter):
        return "evaluate(model, variables): nothing says which data to evaluate on; give source= or config="
    return (
        f"{model}: a model folder does not say which data to evaluate on; give --config configs/NAME.py (in Python: "
        "config= or source=)"
    )
