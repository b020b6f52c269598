"""What a Python program gives `train` beside a configuration: parts of its own, and functions to call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax
from ml_collections import ConfigDict

from deeplab_jax.data.source import OF_SOURCES, Source
from deeplab_jax.distributed import is_first, largest, together
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import rebuildable
from deeplab_jax.models.preprocessing import Preprocessing
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.losses import Loss
from deeplab_jax.train.schedules import Schedule
from deeplab_jax.train.signals import Stop

Call = Callable[[int, Mapping[str, Any]], Any]
ON_STEP, ON_EVALUATION = "on_step", "on_evaluation"
PARTS = ("sources", "model", "loss", "optimizer", "schedule")


@dataclass(frozen=True)
class Given:
    """Parts that take the place of those that a configuration names, and functions.

    Attributes:
      sources: the examples for training, and those for evaluation; see `data.source.Source`.
      model: a network in its form for training. It decides how files are read. `config.data` decides what it does not
        state.
      loss: a loss such as those of `ops.losses`.
      optimizer: an optax transformation with its learning rate in it. `config.optimizer.freeze` still holds.
      schedule: a function from a step, counted from 0, to the learning rate, of JAX operations. It takes the place of
        the configuration's schedule; beside an `optimizer` it is only recorded.
      on_step: called with a step and its numbers when they are logged.
      on_evaluation: called with a step and the results of its evaluation, as in `metrics.json`.
    """

    sources: tuple[Source, Source] | None = None
    model: Segmenter | None = None
    loss: Loss | None = None
    optimizer: optax.GradientTransformation | None = None
    schedule: Schedule | None = None
    on_step: Call | None = None
    on_evaluation: Call | None = None


NOTHING = Given()


def recorded(config: ConfigDict, given: Given) -> ConfigDict:
    """Return a configuration that says which parts were given.

    A model from `create_model` is named as any other, so the run directory holds it. `config.own` has the names of
    other parts. How the data's files are read is in `config.data`, whoever says it.

    Raises:
      UserError: a part of another kind, or the configuration of a run with such a part, which is not given now; or a
        model that reads files in another way than the configuration.
    """
    _check(given)
    parts = {part: getattr(given, part) for part in PARTS if getattr(given, part) is not None}
    missing = [part for part in PARTS if part not in parts]
    again = ", ".join(f"{part}=..." for part in missing if is_own(config, part))
    require_named(config, *missing, fix=f"give it again, as in deeplab_jax.train(config, workdir, {again})")
    config = config.copy_and_resolve_references()
    if given.model is not None:
        description = rebuildable(given.model)
        config.data.update(_reading(config.data, given.model.preprocessing, named=description is not None))
        if description is None:
            config.model.name, config.model.options = "a network composed in Python", ConfigDict({})
        else:
            del parts["model"]
            _write_description(config, description, one_logit=given.model.num_classes == 1)
    config.own = tuple(f"{part}={_name(value)}" for part, value in parts.items())
    return config


def _write_description(config: ConfigDict, description: Mapping[str, Any], *, one_logit: bool) -> None:
    """Write the name and the options of a model into a configuration."""
    options = {key: value for key, value in description["options"].items() if key not in ("channels", "stored_range")}
    if one_logit:  # `build_model` has one logit with this option only.
        options["activation"] = "sigmoid"
    config.model.name, config.model.output_stride = description["name"], description["output_stride"]
    config.model.options = ConfigDict(options)
    config.module = description.get("module", config.module)


def _reading(data: ConfigDict, model: Preprocessing, *, named: bool) -> dict[str, tuple[Any, ...]]:
    """Return how files are read: as the model says, or else as the configuration does.

    A model that is `named` is built with what the configuration says. One that was composed keeps its own.

    Raises:
      UserError: both say something, and not the same.
    """
    found = {}
    for key, option, own, reads in (
        ("channels", "channels", model.channels, model.bands),
        ("value_range", "stored_range", model.stored_range, model.stored_range),
    ):
        wanted = tuple(data[key])
        if wanted and wanted != reads and (own or not named):
            raise UserError(
                f"config.data.{key}={wanted}: the model was made with {option}={own}; make it with {option}={wanted}, "
                f"or leave out config.data.{key}"
            )
        found[key] = tuple(own or wanted)
    return found


def _check(given: Given) -> None:
    if given.sources is not None and not (isinstance(given.sources, tuple | list) and len(given.sources) == 2):
        raise UserError("sources: give two, (those for training, those for evaluation)")
    for source in given.sources or ():
        if lacks := [name for name in OF_SOURCES if not hasattr(source, name)]:
            raise UserError(
                f"sources: {source!r:.50} is no source, it has no {lacks[0]}; see deeplab_jax.data.source.Source"
            )
    if given.model is not None and not isinstance(given.model, Segmenter):
        raise UserError(f"model: {type(given.model).__name__} is no Segmenter; see deeplab_jax.create_model")
    if given.optimizer is not None and not isinstance(given.optimizer, optax.GradientTransformation):
        raise UserError(f"optimizer: {type(given.optimizer).__name__} is none of optax, such as optax.adamw(1e-3)")
    for name in ("loss", "schedule", ON_STEP, ON_EVALUATION):
        if (function := getattr(given, name)) is not None and not callable(function):
            raise UserError(f"{name}: {function!r:.50} is no function")


def is_own(config: ConfigDict, part: str) -> bool:
    """Whether a part is not what a configuration names, but an object of a Python program."""
    return any(entry.partition("=")[0] == part for entry in config.own)


def require_named(config: ConfigDict, *parts: str, fix: str = "give a configuration that names one instead") -> None:
    """Raise a UserError with a fix if one of the parts is not what a configuration names; see `is_own`."""
    for entry in config.own:
        if entry.partition("=")[0] in parts:
            raise UserError(f"config.own: {entry} was an object of a Python program, which no file holds; {fix}")


def spell_own(own: Sequence[str]) -> str:
    """Return in words which parts a run directory does not hold."""
    return f"{', '.join(own)}: the run directory holds the names of these objects, not the objects"


def _name(value: Any) -> str:
    """Return the name of an object for the record of a run."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return " and ".join(map(_name, value))
    value = getattr(value, "func", value)  # A `partial` has it.
    return str(getattr(value, "__qualname__", type(value).__qualname__))


class Calls:
    """Calls the functions that were given to the first process, and knows whether one asked to end the run.

    All processes make the same calls: others need not have been given the same functions.

    Attributes:
      ended_by: the name of the function that returned true, or "".
    """

    def __init__(self, given: Given, stop: Stop) -> None:
        self.ended_by = ""
        self._functions = {ON_STEP: given.on_step, ON_EVALUATION: given.on_evaluation}
        self._stop = stop

    def __call__(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Call a function with a step and its numbers. A KeyboardInterrupt in it is a Ctrl-C."""
        function, ends = self._functions[name], False
        with together():
            try:
                ends = is_first() and function is not None and bool(function(step, values))
            except KeyboardInterrupt:
                if self._stop.heard():  # A second Ctrl-C does not wait for the step.
                    raise
                self._stop.hear()
        if largest(int(ends)):
            self.ended_by = name
