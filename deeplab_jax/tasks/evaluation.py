"""`evaluate` for a program."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax.errors import UserError
from deeplab_jax.extensions import allow
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.tasks.arguments import check_names, config_of, run_config

if TYPE_CHECKING:
    from deeplab_jax.data.source import Source
    from deeplab_jax.evaluate import protocol as protocols


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
    **how: Any,
) -> dict[str, Any]:
    """Return the contents of `metrics.json` for a model on labelled images.

    Either with objects, `evaluate(model, variables, source, protocol)`, or with what `load` takes:
    `evaluate("runs/first", output_stride=8)`.

    Args:
      model, variables: from `load`. Or `model` is what `load` takes.
      source: labelled images; by default the configuration's split.
      protocol: how the model runs; by default the configuration's `evaluate` section with the changes in `how`.
      config: see `config_of`; by default that of the run directory.
      split: to evaluate on; by default the configuration's validation split. Of a given source, its
        name for the record.
      checkpoint, module: see `load`.
      out: folder for `metrics.json` and the calibration's picture; "" writes none.
      save_predictions: whether to write `NAME.png` and `NAME_overlay.png` of each image there, and `index.html`.
      how: other arguments of `evaluate.evaluator.evaluate`, such as `limit` and `progress`. Without a `protocol`, also
        keys of `config.evaluate`, such as `scales`, `flip` and `batch_size`.

    Raises:
      UserError: anything in the model, the data or the arguments that the user can fix.
    """
    from deeplab_jax.config import base
    from deeplab_jax.data.source import read_in_parts
    from deeplab_jax.distributed import is_first, together, watch
    from deeplab_jax.evaluate import evaluator
    from deeplab_jax.evaluate.calibration import PICTURE, draw
    from deeplab_jax.evaluate.outputs import Outputs, page_of
    from deeplab_jax.evaluate.predictor import prediction_writer
    from deeplab_jax.evaluate.protocol import Protocol
    from deeplab_jax.train.from_config import evaluate_options, open_split
    from deeplab_jax.weights.by_name import load

    with together():
        loaded = not isinstance(model, Segmenter)
        named = "the model" if isinstance(model, Segmenter) else str(model)
        settings = run_config(named) if config is None and loaded else None
        if config is not None:  # First: a Python file may name the module of the model.
            settings = config_of(config, module=module)
        info: dict[str, Any] = {}
        allow(module)
        if not isinstance(model, Segmenter):
            model, variables, info = load(model, checkpoint=checkpoint, module=module)
        if variables is None:
            raise UserError(
                "evaluate(model): a network alone has no weights; give its variables, too, or the path of a run"
            )
        if settings is None and source is None:
            raise UserError(
                f"{named}: a model folder does not say which data to evaluate on; give --config configs/NAME.py (in "
                "Python: config= or source=)"
            )
        if settings is not None:
            settings.module = module or settings.module
            split = split or settings.data.val_split
        split = split or "val"
        if source is None:
            source = open_split(settings, split, reading=model.preprocessing)
        known = [*inspect.signature(evaluator.evaluate).parameters][
            4:
        ]  # Behind the model, its weights, data, protocol.
        if protocol is None:
            section = settings if settings is not None else base()
            named_keys = {*section.evaluate, *(one.name for one in fields(Protocol))}  # A CRF has no key.
            keys = {key: how.pop(key) for key in list(how) if key in named_keys}
            protocol, more = evaluate_options(section, **keys)
            how = {**(more if settings is not None else {key: more[key] for key in more if key in keys}), **how}
            known += sorted(named_keys)
        check_names(how, known)
        source = read_in_parts(source) if protocol.window else source
    outputs = None
    if save_predictions:
        if not out:
            raise UserError("save_predictions=True: give the folder to write to, out=...")
        page = page_of(Path(out), source.labels, title=f"{split} of {source.name}")
        outputs = Outputs(Path(out), source.labels, page=page)
        how["on_prediction"] = prediction_writer(outputs)
    if settings is not None:
        watch(settings.train.timeout)
    results = evaluator.evaluate(model, variables, source, protocol, split=split, **how)
    if loaded:
        results["checkpoint"] = info.get("step")
    if out:
        with together():
            if is_first():
                file = evaluator.write_results(results, Path(out))
                if "calibration" in results:
                    draw(results["calibration"], file.with_name(PICTURE))
    if outputs is not None and outputs.page is not None:
        outputs.page.write()
    return results
