"""The objects that a configuration names: data, network, devices, optimizer and step."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax import config_keys as keys
from deeplab_jax.config_keys import arguments
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.levels import check_range
from deeplab_jax.data.source import PairSource, Source, read_as
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.protocol import Protocol, check_used, split_section
from deeplab_jax.labels import LabelSet
from deeplab_jax.models.catalog import from_description
from deeplab_jax.models.preprocessing import Preprocessing
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.ops.losses import Loss
from deeplab_jax.train.given import NOTHING, Given, is_own, recorded, require_named
from deeplab_jax.train.losses import check_loss, find_loss
from deeplab_jax.train.optimizer import make_optimizer, without_frozen
from deeplab_jax.train.patience import with_steps
from deeplab_jax.train.schedules import Schedule, checked_schedule, make_schedule
from deeplab_jax.train.sharding import check_batch_size, check_crop_size, make_mesh
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import Metrics, summed_loss, train_step


def open_split(config: ConfigDict, split: str, *, strict: bool = True, reading: Preprocessing | None = None) -> Source:
    """Open a split of the data set; see `open_source`. A model's `reading` of image files comes before the
    configuration's.
    """
    require_named(config, "sources")
    data = config.data
    source = open_source(
        data.name,
        split=split,
        dir=data.dir or None,
        strict=strict,
        module=config.module,
        channels=data.channels,
        value_range=data.value_range,
        **data.options.to_dict(),
    )
    return source if reading is None else read_as(source, channels=reading.bands, value_range=reading.stored_range)


def open_splits(config: ConfigDict, given: Given = NOTHING) -> tuple[ConfigDict, Source, Source]:
    """Open the split for training, and the split for evaluation, or take those given; return them after the
    configuration, with the steps that `train.epochs` make of the images for training, and with what else was given.

    Raises:
      UserError: they have different classes, as files may say that name them.
    """
    config = recorded(config, given)
    if given.sources is not None:
        train, val = given.sources
    else:
        train, val = open_split(config, config.data.train_split), open_split(config, config.data.val_split)
    if train.labels.names != val.labels.names:
        data, fix = config.data.dir or config.data.name, "give all as config.data.options.class_names"
        if given.sources is not None:
            data, fix = "sources", "give both the same labels"
        raise UserError(
            f"{data}: split '{config.data.train_split}' has the classes {train.labels.names!r:.200}, "
            f"and '{config.data.val_split}' has {val.labels.names!r:.200}; {fix}"
        )
    if isinstance(train, PairSource) and isinstance(val, PairSource) and train.read_mask == val.read_mask:
        val = dataclasses.replace(val, read_mask=train.read_mask)  # It compares the palettes of both splits.
    return with_steps(config, len(train)), train, val


def model_for(config: ConfigDict, labels: LabelSet, own: Segmenter | None = None) -> Segmenter:
    """Build the network in its form for training on data with these labels; see `build_model`. Or return `own`, unless
    the configuration names it.

    Raises:
      UserError: also if `own` has other classes.
    """
    if own is not None:
        if (own.label_classes, own.multilabel) != (labels.num_classes, labels.multilabel):
            several = ", activation='sigmoid'" if labels.multilabel else ""
            raise UserError(
                f"model: it has {own.label_classes} classes{_several(own.multilabel)}, the data has "
                f"{labels.num_classes}{_several(labels.multilabel)}; give create_model(..., "
                f"num_classes={labels.num_classes}{several})"
            )
        if is_own(config, "model"):
            return own
    return build_model(config, num_classes=labels.num_classes, multilabel=labels.multilabel)


def build_model(config: ConfigDict, *, num_classes: int, multilabel: bool = False) -> Segmenter:
    """Build the network in its form for training on data of so many classes.

    Where a pixel can have several of them (`multilabel`), it has a sigmoid for each. Otherwise they exclude each other:
    a softmax, or, with the option `activation="sigmoid"`, one logit for two classes. The network keeps how the data's
    files are read.

    Raises:
      UserError: one class alone, a sigmoid for more than two classes that exclude each other, or a softmax for several
        labels a pixel.
    """
    require_named(config, "model")
    options = config.model.options.to_dict()
    if multilabel and options.setdefault("activation", "sigmoid") != "sigmoid":
        raise UserError(
            f"config.model.options.activation={options['activation']!r}: a pixel of the data can have several labels; "
            "give sigmoid, or leave it out"
        )
    if num_classes < 2:
        raise UserError(
            f"{config.data.name}: it has one class, and nothing to tell it from; name the background too, such as "
            "--config.data.options.class_names=\"('background','object')\""
        )
    one_logit = options.get("activation") == "sigmoid" and not multilabel
    if one_logit and num_classes > 2:
        raise UserError(
            f"config.model.options.activation='sigmoid': the {num_classes} classes of the data exclude each other; "
            "leave it out"
        )
    if one_logit:  # The network has it anyway; with the option, more classes would become labels of one pixel.
        del options["activation"]
    if config.data.value_range:
        check_range(config.data.value_range)
    reading = {"channels": config.data.channels, "stored_range": config.data.value_range}
    return from_description(
        {
            "name": config.model.name,
            "num_classes": 1 if one_logit else num_classes,
            "output_stride": config.model.output_stride or None,
            "options": {**options, **{key: value for key, value in reading.items() if value}},
            "module": config.module,
        }
    )


def _several(multilabel: bool) -> str:
    return ", of which a pixel can have several" if multilabel else ""


def build_mesh(config: ConfigDict, model: Segmenter, *, among: Sequence[Any] = ()) -> Mesh:
    """Make the mesh of devices; the batch and its crops have to split over it. See `make_mesh`."""
    t = config.train
    mesh = make_mesh(t.devices, t.space, among=among)
    check_batch_size(t.batch_size, t.accumulate, mesh)
    check_crop_size(config.data.crop_size, model, mesh)
    return mesh


def build_optimizer(
    config: ConfigDict, model: Segmenter, given: Given = NOTHING
) -> tuple[optax.GradientTransformation, Schedule]:
    """Make the optimizer and its learning rate schedule, or take those given.

    Raises:
      UserError: as `make_optimizer` and `build_schedule`.
    """
    params, schedule = abstract_variables(model)["params"], build_schedule(config, given)
    if given.optimizer is not None:
        return without_frozen(given.optimizer, params, config.optimizer.freeze), schedule
    require_named(config, "optimizer")
    return make_optimizer(params, schedule, **arguments(config.optimizer, keys.Updates)), schedule


def build_schedule(config: ConfigDict, given: Given = NOTHING) -> Schedule:
    """Make the learning rate schedule, or take that given. That of a given optimizer is not known, NaN, unless it is
    given, too.

    Raises:
      UserError: as `make_schedule`, or a given schedule that is no function of JAX operations.
    """
    if given.schedule is not None:
        return checked_schedule(given.schedule)
    require_named(config, "schedule")
    if given.optimizer is not None:
        return lambda step: jnp.nan
    return make_schedule(steps=config.train.steps, **arguments(config.optimizer, keys.Schedule))


def build_step(
    config: ConfigDict, model: Segmenter, optimizer: optax.GradientTransformation, *, own_loss: Loss | None = None
) -> "partial[tuple[TrainState, Metrics]]":
    """Return `train_step` as a function of state and batch alone, with a loss of the user's own if it is given.

    Raises:
      UserError: as `find_loss` and `check_loss`, or an average that is debiased but not kept.
    """
    t = config.train
    if own_loss is None:
        require_named(config, "loss")
    check_loss(t, model, module=config.module, given=own_loss)
    loss = find_loss(t.loss, model, options=t.loss_options, module=config.module, given=own_loss)
    if t.ema_debias and not t.ema_decay:
        raise UserError("config.train.ema_debias=True: there is no average; set config.train.ema_decay=0.999 too")
    of_model = {**arguments(t, keys.Objective), "loss": loss, "freeze": tuple(config.optimizer.freeze)}
    objective, key = partial(summed_loss, model=model, **of_model), jax.random.key(t.seed)
    return partial(train_step, objective=objective, optimizer=optimizer, key=key, **arguments(t, keys.Step))


def evaluate_options(config: ConfigDict, **given: Any) -> tuple[Protocol, dict[str, Any]]:
    """Return the protocol of a configuration, and the arguments with which `evaluate` runs it. Unless the configuration
    says how many devices, they are as many as in training, if this process has so many. The given fields of a
    `Protocol` replace the configuration's values.
    """
    section = config.evaluate.to_dict()
    usual = min(config.train.devices, jax.local_device_count())
    try:
        protocol, how = split_section({**section, "devices": section["devices"] or usual})
    except UserError as error:
        raise UserError(f"config.evaluate.{error}") from None
    protocol = dataclasses.replace(protocol, **given)
    check_used(protocol, given)
    return protocol, {**how, "timeout": config.data.timeout}
