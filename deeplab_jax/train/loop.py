"""The training loop: everything between a configuration and a run directory."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import distributed
from deeplab_jax.checkpoint import METRIC, Checkpoints
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.check.dataset import check_labels
from deeplab_jax.data.images import write_image
from deeplab_jax.data.loader import Batch, skipped_examples, training_batches
from deeplab_jax.data.source import Source
from deeplab_jax.distributed import together
from deeplab_jax.evaluate import evaluator
from deeplab_jax.evaluate.evaluator import Results, evaluate
from deeplab_jax.evaluate.pictures import StripCollector, stack_strips
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.faults import POSTMORTEM, is_finite, keep_finite, saving_first, stop_or_skip, write_postmortem
from deeplab_jax.train.optimizer import Schedule, make_optimizer
from deeplab_jax.train.progress import Clock, announce, report, saying_skipped
from deeplab_jax.train.settings import (
    build_model,
    check_class_weights,
    check_settings,
    evaluate_options,
    loader_options,
    model_info,
    source_options,
    step_options,
)
from deeplab_jax.train.sharding import (
    check_batch_size,
    check_height,
    make_mesh,
    own_rows,
    place_batch,
    replicated,
    state_shardings,
)
from deeplab_jax.train.signals import Stop, stop_on_signals
from deeplab_jax.train.start import sample, start_state
from deeplab_jax.train.state import TrainState, create_state
from deeplab_jax.train.step import train_step
from deeplab_jax.train.workdir import (
    lock_workdir,
    make_workdir,
    open_workdir,
    record_start,
    recording,
)
from deeplab_jax.train.writers import NoWriters, Writers
from deeplab_jax.weights.folder import CHECKPOINTS, write_description

CHECKED_BATCHES = 2


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
      Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    with stop_on_signals() as stop, ExitStack() as held:
        return _train(config, Path(workdir), allow_config_change, console or Console(), stop, held)


def _train(
    config: ConfigDict, workdir: Path, allow_config_change: bool, console: Console, stop: Stop, held: ExitStack
) -> Results | None:
    t, data = config.train, config.data
    first = distributed.is_first()
    console = console if first else Console(quiet=True)
    with together():
        train_source, val_source = (
            open_source(data.name, split=split, **source_options(data)) for split in (data.train_split, data.val_split)
        )
        model = build_model(config.model, num_classes=train_source.labels.num_classes, module=config.module)
        check_settings(t, data.crop_size)
        mesh = make_mesh(t.devices, t.space)
        check_batch_size(t.batch_size, t.accumulate, mesh)
        check_height(data.crop_size, model.output_stride, mesh)
        check_class_weights(t.class_weights, model)
        protocol, how = evaluate_options(config)
        protocol.at_stride(model)
        evaluator.check_batch_size(how["batch_size"])
        optimizer, schedule = make_optimizer(abstract_variables(model)["params"], steps=t.steps, **config.optimizer)
        skipped = skipped_examples(train_source, on_error=data.on_error, max_skipped=data.max_skipped)
        if first:
            make_workdir(workdir)
            held.enter_context(lock_workdir(workdir, partial(console.print, soft_wrap=True)))
            open_workdir(workdir, config, allow_config_change=allow_config_change)

    batches = partial(
        training_batches,
        train_source,
        batch_size=t.batch_size,
        rows=own_rows(mesh, t.batch_size),
        steps=t.steps,
        seed=t.seed,
        fill=model.preprocessing.mean_pixel,
        timeout=data.timeout,
        stopped=stop.heard,
        skipped=skipped,
        **loader_options(data),
    )
    initial = partial(create_state, model=model, optimizer=optimizer, size=tuple(data.crop_size), ema=t.ema_decay > 0)
    shardings = state_shardings(jax.eval_shape(initial, jax.random.key(0)), mesh, split=t.shard_state)
    with Checkpoints(workdir / CHECKPOINTS, keep=t.keep) as checkpoints:
        state, start = start_state(
            checkpoints,
            initial,
            config,
            shardings,
            console,
            model=model,
            images=partial(sample, partial(batches, rows=None), model),
        )
        with together():
            if first:
                record_start(workdir, config)
                write_description(workdir, model, model_info(train_source))
        if start >= t.steps and checkpoints.metrics(start):
            console.print(f"{workdir}: already trained for {start} of {t.steps} steps; nothing to do", soft_wrap=True)
            return None
        step = partial(train_step, model=model, optimizer=optimizer, key=jax.random.key(t.seed), **step_options(t))
        postmortem = partial(
            write_postmortem, workdir / POSTMORTEM, config=config, model=model, info=model_info(train_source)
        )
        with together():
            writers = held.enter_context(
                Writers(workdir, start=start, steps=t.steps, console=console) if first else NoWriters(workdir)
            )
        announce(config, model, train_source, val_source, mesh, writers)
        evaluation = partial(
            evaluate_and_draw,
            model=model,
            source=val_source,
            config=config,
            mesh=mesh,
            workdir=workdir,
            writers=writers,
            stop=stop,
        )
        with saying_skipped(skipped, train_source, writers):
            return run(
                state,
                start,
                step=jax.jit(keep_finite(step), donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
                place=partial(place_batch, mesh=mesh),
                batches=checked(batches(start=start), model.num_classes, train_source.name),
                schedule=jax.jit(schedule),  # One small program, not one for each of its operations.
                settings=t,
                evaluation=evaluation,
                checkpoints=checkpoints,
                writers=writers,
                postmortem=postmortem,
                stop=stop,
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
    postmortem: Callable[[TrainState, int, Any], None],
    stop: Stop,
) -> Results | None:
    """Run the steps from `start` on; evaluate, save and report when it is time to."""
    results, clock, steps = None, Clock(settings.batch_size), settings.steps

    def save() -> None:
        scores = scores_of(results) if results is not None and results["step"] == number else None
        checkpoints.save(number, state.variables(), state.extra(), metrics=scores)

    def fetch() -> Any:
        batch = next(batches, None)
        return None if batch is None else place(batch)  # None where a signal came first: this step is the last.

    def log() -> None:
        if number % settings.log_every == 0 or number == steps or number == start + 1:
            with together():
                report(number, int(state.step), metrics, schedule, clock, writers)
            clock.restart()

    def log_and_save() -> None:
        log()
        save()

    if start and is_due(start, settings) and not checkpoints.metrics(start):  # The evaluation was cut short.
        results = evaluation(state, start)
        checkpoints.add_metrics(start, scores_of(results))
    with together():
        batch = fetch() if start < steps else None
    clock.restart()
    for number in range(start + 1, steps + 1):
        state, metrics = step(state, batch)
        stop.wait_for_step()  # Not before the first one is compiled, which takes long.
        used = batch
        with saving_first(log_and_save), together():
            began = time.perf_counter()
            batch = fetch() if number < steps else None  # While the devices work.
            clock.stepped(metrics, fetching=time.perf_counter() - began)
        if not is_finite(metrics):
            stop_or_skip(
                state, number, used, metrics, allowed=settings.skip_nonfinite, postmortem=postmortem, writers=writers
            )
        writers.step(number)
        distributed.watch(settings.timeout)  # From now on: the first step compiles.
        log()
        due = is_due(number, settings)
        if due and not stop.asked():
            with saving_first(save):
                results = evaluation(state, number)
        asked = stop.asked()
        if due or number % settings.checkpoint_every == 0 or asked:
            save()
            clock.restart()  # What was neither a step nor waiting for data does not count.
        if asked:
            stop.check(number, steps)
    done = max(start, steps)
    if skipped := done - int(state.step):
        writers.say(f"{skipped} of {done} updates were skipped: their loss or gradient was not finite")
    return results


def is_due(number: int, settings: ConfigDict) -> bool:
    """Whether there is an evaluation after step `number`."""
    return number % settings.evaluate_every == 0 or number >= settings.steps


def scores_of(results: Results) -> dict[str, float]:
    """Return what a checkpoint keeps of an evaluation."""
    return {METRIC: results["miou"] or 0.0}


def evaluate_and_draw(
    state: TrainState,
    number: int,
    *,
    model: Segmenter,
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
    writers: Writers,
    stop: Stop,
) -> Results:
    """Evaluate on the validation split, and draw a few of its images."""
    collector = StripCollector(
        source.labels, total=len(distributed.own_share(len(source))), count=config.train.pictures
    )
    protocol, how = evaluate_options(config)
    results = evaluate(
        model,
        jax.device_put(state.variables(), replicated(mesh)),
        source,
        protocol,
        split=config.data.val_split,
        timeout=config.data.timeout,
        stopped=stop.heard,
        on_prediction=collector,
        progress=lambda done, total: stop.check(number, config.train.steps),
        **how,
    )
    stop.check(number, config.train.steps)  # It may have ended early, without another batch.
    scalars = {
        name: results[name]
        for name in ("miou", "pixel_accuracy", "mean_accuracy", "seconds")
        if results[name] is not None
    }
    with together():
        if collector.strips and distributed.is_first():
            with recording(workdir):
                (workdir / "pictures").mkdir(exist_ok=True)
            write_image(workdir / "pictures" / f"step_{number:07d}.png", stack_strips(collector.strips))
        writers.scalars(number, scalars, prefix="val")
    writers.say(
        f"step {number}: validation mIoU {results['miou'] or 0:.4f} on {results['protocol']['images']} images in "
        f"{results['seconds']:.1f} s"
    )
    return {**results, "step": number}


def checked(batches: Iterator[Batch], num_classes: int, name: str) -> Iterator[Batch]:
    """Pass batches on, the first few after a look at their labels: on an accelerator a wrong one would go unnoticed."""
    for index, batch in enumerate(itertools.islice(batches, CHECKED_BATCHES)):
        check_labels(batch["label"], num_classes, name=f"training batch {index + 1} of {name}")
        yield batch
    yield from batches
