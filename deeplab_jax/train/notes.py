"""What a training says at its start: what it is, and what it is known to lose by its settings."""

import math
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax.data.source import Source
from deeplab_jax.models.segmenter import Segmenter, abstract_variables
from deeplab_jax.train.given import is_own
from deeplab_jax.train.losses import loss_names
from deeplab_jax.train.writers import Writers

BATCH_NORM_IMAGES = 12  # The authors' advice: more than 12 images per batch to train batch norm, better 16.


def announce(
    config: ConfigDict, model: Segmenter, train_source: Source, val_source: Source, mesh: Mesh, writers: Writers
) -> None:
    """Describe the training that starts, and warn of known problems."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    t = config.train
    epochs = f" ({t.epochs:g} epochs)" if t.epochs else ""
    writers.say(
        f"{config.model.name} at output stride {model.output_stride}, {parameters:,} parameters, on "
        f"{train_source.name}: {len(train_source)} training and {len(val_source)} validation images; "
        f"{t.steps} steps of {t.batch_size}{epochs} on {mesh.size} {jax.default_backend()} device(s)"
    )
    for note in notes(config, model):
        writers.say(f"note: {note}")


def notes(config: ConfigDict, model: Segmenter) -> Iterator[str]:
    """Yield what a training is known to lose by its settings, with a setting that would help."""
    t = config.train
    warmup, evaluations = config.optimizer.warmup_steps, -(-t.steps // t.evaluate_every)
    if 2 * warmup > t.steps and not (is_own(config, "optimizer") or is_own(config, "schedule")):
        yield (
            f"the learning rate rises for {warmup} of the {t.steps} steps; "
            f"--config.optimizer.warmup_steps={t.steps // 10} suits a short run"
        )
    if t.patience >= evaluations:
        yield (
            f"config.train.patience={t.patience} cannot end the run, which has {evaluations} evaluation(s); "
            f"--config.train.evaluate_every={max(1, t.steps // (4 * t.patience))} makes more"
        )
    pixels, least = math.prod(config.data.crop_size), t.loss_options.ohem_min_kept
    if least >= pixels and not is_own(config, "loss") and "ohem" in loss_names(t.loss, module=config.module):
        yield (
            f"OHEM keeps all {pixels} pixels of a crop, as config.train.loss_options.ohem_min_kept={least} says; "
            f"--config.train.loss_options.ohem_min_kept={max(1, pixels // 5)} keeps the hardest fifth at least"
        )
    images = t.batch_size // t.accumulate
    if model.backbone_settings.norm == "batch" and images < BATCH_NORM_IMAGES:
        yield (
            f"batch norm sees {images} images at a time; the authors advise more than {BATCH_NORM_IMAGES}. "
            "Accumulation does not help; --config.model.options.norm=group does not depend on the batch"
        )
