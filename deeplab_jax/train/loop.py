"""The training loop: everything between a configuration and a run directory."""

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax.checkpoint import METRIC, Checkpoints
from deeplab_jax.data.check import check_labels
from deeplab_jax.data.images import write_image
from deeplab_jax.data.loader import Batch, training_batches
from deeplab_jax.data.pairs import Source
from deeplab_jax.data.sources import open_source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.pictures import StripCollector, stack_strips
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter, abstract_variables
from deeplab_jax.train.initialise import initial_variables
from deeplab_jax.train.optimizer import Schedule, make_optimizer
from deeplab_jax.train.sharding import check_batch_size, make_mesh, place_batch, replicated
from deeplab_jax.train.state import TrainState, create_state
from deeplab_jax.train.step import train_step
from deeplab_jax.train.workdir import open_workdir, record_start
from deeplab_jax.train.writers import Writers
from deeplab_jax.weights.folder import CHECKPOINTS, write_description

CHECKED_BATCHES = 2
SAMPLED_BATCHES = 3
BATCH_NORM_IMAGES = 12  # The authors' advice: more than 12 images per batch to train batch norm, better 16.


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


def train(
    config: ConfigDict, workdir: str | Path, *, allow_config_change: bool = False, console: Console | None = None
) -> Results | None:
    """Train a model, or go on where this run directory left off.

    Args:
      config: as from `config.load_config`.
      workdir: gets `config.json`, `run.json`, `model.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and
        `pictures/`.
      allow_config_change: go on in a directory whose configuration differs.
      console: where to print; standard output by default.

    Returns:
      The last evaluation, or None where the run was complete already.

    Raises:
      UserError: anything in the configuration, data or directory that the user can mend.
      Interrupted: after Ctrl-C, once the state is saved.
    """
    workdir, console = Path(workdir), console or Console()
    t, data = config.train, config.data
    train_source, val_source = (
        open_source(data.name, split=split, **source_options(data)) for split in (data.train_split, data.val_split)
    )
    model = build_model(config.model, num_classes=train_source.labels.num_classes)
    check_settings(t, data.crop_size)
    mesh = make_mesh(t.devices)
    check_batch_size(t.batch_size, t.accumulate, mesh)
    check_class_weights(t.class_weights, model)
    optimizer, schedule = make_optimizer(abstract_variables(model)["params"], steps=t.steps, **config.optimizer)
    open_workdir(workdir, config, allow_config_change=allow_config_change)

    batches = partial(
        training_batches,
        train_source,
        batch_size=t.batch_size,
        steps=t.steps,
        seed=t.seed,
        fill=model.preprocessing.mean_pixel,
        **loader_options(data),
    )
    initial = partial(create_state, model=model, optimizer=optimizer, size=tuple(data.crop_size), ema=t.ema_decay > 0)
    with Checkpoints(workdir / CHECKPOINTS, keep=t.keep) as checkpoints:
        state, start = start_state(
            checkpoints, initial, config, mesh, console, model=model, images=partial(sample, batches, model)
        )
        record_start(workdir, config)
        write_description(workdir, model, model_info(train_source))
        if start >= t.steps:
            console.print(f"{workdir}: already trained for {start} of {t.steps} steps; nothing to do", soft_wrap=True)
            return None
        step = jax.jit(
            partial(
                train_step,
                model=model,
                optimizer=optimizer,
                key=jax.random.key(t.seed),
                accumulate=t.accumulate,
                upsample_logits=t.upsample_logits,
                class_weights=tuple(t.class_weights),
                top_k=t.top_k,
                aux_weight=t.aux_weight,
                ema_decay=t.ema_decay,
            ),
            donate_argnums=0,
            out_shardings=replicated(mesh),
        )
        with Writers(workdir, start=start, steps=t.steps, console=console) as writers, stop_on_sigint() as stopping:
            announce(config, model, train_source, val_source, writers)
            evaluation = partial(
                evaluate_and_draw, model=model, source=val_source, config=config, workdir=workdir, writers=writers
            )
            return run(
                state,
                start,
                step=step,
                place=partial(place_batch, mesh=mesh),
                batches=checked(batches(start=start), model.num_classes, train_source.name),
                schedule=schedule,
                settings=t,
                evaluation=evaluation,
                checkpoints=checkpoints,
                writers=writers,
                stopping=stopping,
            )


def run(
    state: TrainState,
    start: int,
    *,
    step: Callable[..., Any],
    place: Callable[[Batch], Any],
    batches: Iterator[Batch],
    schedule: Schedule,
    settings: ConfigDict,
    evaluation: Callable[[TrainState, int], Results],
    checkpoints: Checkpoints,
    writers: Writers,
    stopping: Callable[[], bool],
) -> Results | None:
    """Run the steps from `start` on; evaluate, save and report when it is time to."""
    results, clock = None, Clock(settings.batch_size)
    batch = place(next(batches))
    clock.restart()
    for number in range(start + 1, settings.steps + 1):
        state, metrics = step(state, batch)
        if number < settings.steps:
            began = time.perf_counter()
            batch = place(next(batches))  # While the devices work.
            clock.fetched(time.perf_counter() - began, metrics)
        last, stop = number == settings.steps, stopping()
        writers.step(number)
        if number % settings.log_every == 0 or last or number == start + 1:
            report(number, metrics, schedule, clock, writers)
            clock.restart()
        if number % settings.evaluate_every == 0 or last:
            results = evaluation(state, number)
        if number % settings.checkpoint_every == 0 or number % settings.evaluate_every == 0 or last or stop:
            scores = {METRIC: results["miou"] or 0.0} if results is not None and results["step"] == number else None
            checkpoints.save(number, state.variables(), state.extra(), metrics=scores)
            clock.restart()  # What was neither a step nor waiting for data does not count.
        if stop:
            raise Interrupted(
                f"stopped at step {number} of {settings.steps}, which is saved; the same command goes on from there"
            )
    return results


class Clock:
    """Throughput, and the share of time in which the devices waited for data, since the last restart."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start counting anew."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def fetched(self, seconds: float, metrics: Any) -> None:
        """Wait for a step, `metrics` being of it, and count it; its next batch took `seconds` to fetch while it ran.

        Where the devices were done by then, all of that time counts as waiting: an upper bound.
        """
        began = time.perf_counter()
        jax.block_until_ready(metrics)
        if time.perf_counter() - began < 1e-3:
            self._waited += seconds
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return images per second and the share of waiting, 0 to 1."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        return {"images_per_second": self._steps * self._batch_size / elapsed, "data_wait": self._waited / elapsed}


def report(number: int, metrics: dict[str, jax.Array], schedule: Schedule, clock: Clock, writers: Writers) -> None:
    """Write a step's numbers; stop where the loss is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    values["learning_rate"] = float(schedule(number - 1))
    if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
        raise UserError(
            f"step {number}: loss {values['loss']}, gradient norm {values['gradient_norm']}; lower "
            "config.optimizer.learning_rate or set "
            "config.optimizer.clip_norm, and start again from the last checkpoint"
        )
    speed = clock.read()
    writers.scalars(number, {**values, **speed}, prefix="train")
    writers.line(
        number,
        f"loss {values['loss']:.4f}, pixel accuracy {values['pixel_accuracy']:.3f}, learning rate "
        f"{values['learning_rate']:.2e}, "
        f"{speed['images_per_second']:.1f} images/s, waiting for data {speed['data_wait']:.1%}",
    )


def evaluate_and_draw(
    state: TrainState,
    number: int,
    *,
    model: Segmenter,
    source: Source,
    config: ConfigDict,
    workdir: Path,
    writers: Writers,
) -> Results:
    """Evaluate on the validation split, and draw a few of its images."""
    collector = StripCollector(source.labels, total=len(source), count=config.train.pictures)
    results = evaluate(
        model, state.variables(), source, split=config.data.val_split, on_prediction=collector, **config.evaluate
    )
    if collector.strips:
        (workdir / "pictures").mkdir(exist_ok=True)
        write_image(workdir / "pictures" / f"step_{number:07d}.png", stack_strips(collector.strips))
    scalars = {
        name: results[name]
        for name in ("miou", "pixel_accuracy", "mean_accuracy", "seconds")
        if results[name] is not None
    }
    writers.scalars(number, scalars, prefix="val")
    writers.say(
        f"step {number}: validation mIoU {results['miou'] or 0:.4f} on {results['protocol']['images']} images in "
        f"{results['seconds']:.1f} s"
    )
    return {**results, "step": number}


def start_state(
    checkpoints: Checkpoints,
    initial: Callable[[jax.Array], TrainState],
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    console: Console,
    *,
    model: Segmenter,
    images: Callable[[], jax.Array],
) -> tuple[TrainState, int]:
    """Return the newest checkpoint's state, or a fresh one, on the devices.

    `model` and `images` are those of `initial_variables`.
    """
    key = jax.random.key(config.train.seed)
    latest = checkpoints.latest()
    if latest is None:
        # Run once, so compiled in a hurry: a third of the time, the same numbers.
        hurry = {"xla_backend_optimization_level": 0}
        state = jax.jit(initial, out_shardings=replicated(mesh), compiler_options=hurry)(key)
        if config.init:
            state = initial_variables(
                state,
                config.init,
                scope=config.init_scope,
                model=model,
                images=images,
                say=partial(console.print, soft_wrap=True),
            )
        return state, 0
    abstract = jax.eval_shape(initial, key)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), abstract
    )
    state = abstract.with_restored(
        checkpoints.restore_variables(latest, abstract.variables()), checkpoints.restore_extra(latest, abstract.extra())
    )
    console.print(f"resuming from step {latest} in {checkpoints.directory}", soft_wrap=True, highlight=False)
    return state, latest


def sample(batches: Callable[..., Iterator[Batch]], model: Segmenter) -> jax.Array:
    """Return the first training images, preprocessed: enough of them for the statistics of a norm."""
    few = itertools.islice(batches(start=0), SAMPLED_BATCHES)
    return model.preprocessing(jnp.asarray(np.concatenate([batch["image"] for batch in few])))


def checked(batches: Iterator[Batch], num_classes: int, name: str) -> Iterator[Batch]:
    """Pass batches on, the first few after a look at their labels: on an accelerator a wrong one would go unnoticed."""
    for index, batch in enumerate(itertools.islice(batches, CHECKED_BATCHES)):
        check_labels(batch["label"], num_classes, name=f"training batch {index + 1} of {name}")
        yield batch
    yield from batches


def announce(config: ConfigDict, model: Segmenter, train_source: Source, val_source: Source, writers: Writers) -> None:
    """Say what is about to be trained, and warn of what is known to go wrong."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    t = config.train
    writers.say(
        f"{config.model.name} at output stride {model.output_stride}, {parameters:,} parameters, on "
        f"{train_source.name}: {len(train_source)} training and {len(val_source)} validation images; "
        f"{t.steps} steps of {t.batch_size} on {t.devices or jax.device_count()} {jax.default_backend()} device(s)"
    )
    images = t.batch_size // t.accumulate
    if model.backbone.settings.norm == "batch" and images < BATCH_NORM_IMAGES:
        writers.say(
            f"note: batch norm sees {images} images at a time; the authors advise more than {BATCH_NORM_IMAGES}. "
            "Accumulation does not help; norm='group' does not depend on it"
        )


def build_model(section: ConfigDict, *, num_classes: int) -> Segmenter:
    """Build the model that a config's `model` section describes."""
    stride = section.output_stride or None
    return create_model(section.name, num_classes=num_classes, output_stride=stride, **section.options)


def source_options(data: ConfigDict) -> dict[str, Any]:
    """Return what `open_source` takes from a config's `data` section."""
    return {"dir": data.dir or None, **data.options.to_dict()}


def loader_options(data: ConfigDict) -> dict[str, Any]:
    """Return what `training_batches` takes from a config's `data` section."""
    names = ("crop_size", "scale_range", "scale_step", "flip", "color_jitter", "threads", "workers")
    return {name: data[name] for name in names}


def model_info(source: Source) -> dict[str, Any]:
    """Return the `info` of a model trained on a source."""
    return {
        "class_names": list(source.labels.names),
        "palette": [list(colour) for colour in source.labels.palette],
        "data": source.name,
    }


def check_settings(settings: ConfigDict, crop_size: Sequence[int]) -> None:
    """Raise a UserError for numbers of the `train` section, or a crop size, with which no run is possible."""
    for name in ("steps", "accumulate", "log_every", "evaluate_every", "checkpoint_every", "keep"):
        if settings[name] < 1:
            never = "; more than config.train.steps means only at the end" if name.endswith("_every") else ""
            raise UserError(f"config.train.{name}={settings[name]}: give at least 1{never}")
    if settings.seed < 0:
        raise UserError(f"config.train.seed={settings.seed}: give 0 or more")
    if not 0 < settings.top_k <= 1:
        raise UserError(f"config.train.top_k={settings.top_k}: give a share of the pixels, above 0 and up to 1")
    if not 0 <= settings.ema_decay < 1:
        raise UserError(f"config.train.ema_decay={settings.ema_decay}: give 0 (no average) to below 1, such as 0.999")
    if len(crop_size) != 2 or min(crop_size) < SMALLEST_SIDE:
        raise UserError(
            f"config.data.crop_size={tuple(crop_size)}: give a height and a width of at least {SMALLEST_SIDE} pixels"
        )


def check_class_weights(weights: Any, model: Segmenter) -> None:
    """Raise a UserError where the class weights are not one for each class."""
    if len(weights) not in (0, model.num_classes):
        raise UserError(
            f"config.train.class_weights has {len(weights)} values, the data has {model.num_classes} classes; give "
            "one for each"
        )


@contextmanager
def stop_on_sigint() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop after the current step; a second one interrupts at once."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = signal.signal(signal.SIGINT, handle)
    except ValueError:  # Not in the main thread, as in a notebook's worker: Ctrl-C stays what it is there.
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
