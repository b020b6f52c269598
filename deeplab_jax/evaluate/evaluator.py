"""Evaluation of a model on a labelled source: one confusion matrix over all images, metrics once at the end."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.data.faults import never
from deeplab_jax.data.loader import TIMEOUT, examples_in_order
from deeplab_jax.data.source import Example, Source, check_limit
from deeplab_jax.distributed import in_step, listed, own_share, summed, together
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.evaluate.batches import grouped, padded
from deeplab_jax.evaluate.boundary import Trimap, check_trimap
from deeplab_jax.evaluate.devices import copy_to, local_devices, split_over
from deeplab_jax.evaluate.inference import check_views, crf_parameters, evaluate_batch
from deeplab_jax.evaluate.views import check_seen, seen
from deeplab_jax.files import write_json
from deeplab_jax.labels import IGNORE_LABEL, LabelSet
from deeplab_jax.models.catalog import check_output_stride, describe
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.ops import metrics as ops_metrics
from deeplab_jax.ops.crf import DenseCRF
from deeplab_jax.provenance import versions

METRICS_FILE = "metrics.json"
MODES = ("padded", "exact")
Size = tuple[int, int]
Results = dict[str, Any]
OnPrediction = Callable[[Example, np.ndarray], None]


def evaluate(
    model: Segmenter,
    variables: Variables,
    source: Source,
    *,
    split: str,
    mode: str = "padded",
    pad_to: Sequence[Size] = (),
    output_stride: int = 0,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: Sequence[int] = (),
    crf: DenseCRF | bool = False,
    resize: int = 0,
    crop: Sequence[int] = (),
    trimap: Sequence[int] = (),
    trimap_around: str = "labels",
    batch_size: int = 1,
    devices: int = 1,
    threads: int = 2,
    timeout: float = TIMEOUT,
    stopped: Callable[[], bool] = never,
    limit: int | None = None,
    on_prediction: OnPrediction | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Evaluate a model on every image of a source, at the labels' own resolution.

    Memory does not grow with the number of images: what remains of each is its share of the confusion matrix. Several
    processes divide the images, and all return the results of all.

    Args:
      model, variables: as from `load`.
      source: labelled examples; its classes must be the model's.
      split: its name, for the protocol.
      mode: "padded" or "exact"; see `inference`.
      pad_to: sizes to pad to.
      output_stride: 0 is the model's own.
      scales, flip: views whose probabilities are averaged.
      window: sides of a sliding window; empty sees images whole.
      crf: refine the probabilities of each image by a fully connected CRF; True takes the default parameters.
      resize, crop: what of each example is evaluated; see `views.seen`. By default all, at the labels' own resolution.
      trimap: widths in pixels of bands around boundaries in which mIoU is computed as well; see `boundary`.
      trimap_around: what a boundary is there: "labels" (any change of label) or "void" (VOC's strips of void pixels).
      batch_size: images of one padded size that run together on a device; the last batch is filled up with empty
        images, which count for nothing.
      devices: of this process, which run a batch each; 0: all of them.
      threads: that read ahead.
      timeout: seconds within which an image must be read.
      stopped: ends the evaluation before another image arrives where it says so; the results are then of those so far.
      limit: evaluate only so many images.
      on_prediction: called with each example of this process and its class ids `[H, W]`.
      progress: called with the images done and in all, those of this process; on all processes equally often.

    Returns:
      What `metrics.json` holds; see the README.

    Raises:
      UserError: classes or options that do not fit.
    """
    if model.num_classes != source.labels.num_classes:
        raise UserError(
            f"the model has {model.num_classes} classes, {source.name} has {source.labels.num_classes}; evaluate on "
            "the data it was trained for"
        )
    model = at_options(
        model,
        mode=mode,
        output_stride=output_stride,
        scales=scales,
        window=window,
        resize=resize,
        crop=crop,
        trimap=trimap,
        trimap_around=trimap_around,
        batch_size=batch_size,
    )
    check_limit(limit)
    chosen = local_devices(devices)
    folded, variables = fold_norm(model, copy_to(chosen, variables))
    at_once = batch_size * len(chosen)
    mine = own_share(len(source) if limit is None else min(limit, len(source)))
    factors = tuple(float(scale) for scale in scales)
    view = (int(window[0]), int(window[1])) if window else None
    confusion = np.zeros((model.num_classes, model.num_classes), np.int64)
    bands = Trimap(trimap, num_classes=model.num_classes, around=trimap_around) if trimap else None
    sizes_run: set[Size] = set()
    start, done = time.perf_counter(), 0
    read = examples_in_order(source, mine, threads=threads, timeout=timeout, stopped=stopped)
    examples = (seen(example, resize=resize, crop=crop) for example in read)
    for group in in_step(grouped(examples, at_once, mode=mode, pad_to=pad_to)):
        with together():
            for size, batch in group:
                sizes_run.add(size)
                arrays = split_over(chosen, *padded(batch, size, count=at_once))
                classes, counts = evaluate_batch(
                    folded, variables, *arrays, scales=factors, flip=flip, window=view, crf=crf
                )
                confusion += counts
                done += len(batch)
                for example, predicted in zip(batch, classes, strict=False):
                    height, width = example["label"].shape
                    if bands is not None:
                        bands.add(example["label"], predicted[:height, :width])
                    if on_prediction is not None:
                        on_prediction(example, predicted[:height, :width])
        if progress is not None:
            progress(done, len(mine))
    confusion, done = summed(confusion), int(summed(np.asarray(done)))
    every_size = sorted({tuple(map(int, line.split("x"))) for line in listed([f"{h}x{w}" for h, w in sizes_run])})
    parameters = crf_parameters(crf)
    protocol = {
        "split": split,
        "images": done,
        "output_stride": model.output_stride,
        "scales": list(factors),
        "flip": flip,
        "window": list(window),
        "crf": None if parameters is None else dataclasses.asdict(parameters),
        "mode": mode,
        "view": _view(window, crop),
        "sizes_run": [list(size) for size in every_size],
        "label_resolution": f"shorter side {resize}" if resize else "original",
        "ignore_label": IGNORE_LABEL,
        "data": source.name,
    }
    return {
        **summarize_confusion(confusion, source.labels),
        **({"trimap": bands.results()} if bands is not None else {}),
        "protocol": protocol,
        "model": describe(model),
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 3),
    }


def at_options(
    model: Segmenter,
    *,
    mode: str,
    output_stride: int,
    scales: Sequence[float],
    window: Sequence[int],
    resize: int,
    crop: Sequence[int],
    trimap: Sequence[int],
    trimap_around: str,
    batch_size: int,
    **_others: Any,
) -> Segmenter:
    """Return the model at the output stride that it is to be evaluated at; for the options see `evaluate`.

    Raises:
      UserError: options that make no sense, those that no check here is about left aside. Training asks before its
        first step, so that its first evaluation, which may be hours away, does not fail for them.
    """
    if mode not in MODES:
        raise UserError(f"config.evaluate.mode={mode!r}: {did_you_mean(mode, MODES)}")
    check_views(scales, window)
    check_seen(resize, crop)
    check_trimap(trimap, trimap_around)
    if batch_size < 1:
        raise UserError(f"config.evaluate.batch_size={batch_size}: give at least 1")
    if output_stride:
        model = model.clone(output_stride=output_stride)
        check_output_stride(model)
    return model


def _view(window: Sequence[int], crop: Sequence[int]) -> str:
    words = [f"centre crop {crop[0]}x{crop[1]}"] if crop else []
    words += ["sliding window"] if window else []
    return ", ".join(words) or "whole image"


def summarize_confusion(confusion: np.ndarray, labels: LabelSet) -> Results:
    """Return the metrics of a confusion matrix `[K, K]` (rows are labels);
    ratios 0 to 1, None where a class does not occur.
    """
    ious, accuracies = ops_metrics.iou_per_class(confusion), ops_metrics.accuracy_per_class(confusion)
    support = confusion.sum(axis=1)
    return {
        "miou": _number(ops_metrics.mean_iou(confusion)),
        "pixel_accuracy": _number(ops_metrics.pixel_accuracy(confusion)),
        "mean_accuracy": _number(ops_metrics.mean_accuracy(confusion)),
        "per_class": [
            {"name": name, "iou": _number(ious[k]), "accuracy": _number(accuracies[k]), "support": int(support[k])}
            for k, name in enumerate(labels.names)
        ],
        "confusion_matrix": confusion.tolist(),
    }


def write_results(results: Results, folder: Path) -> Path:
    """Write `metrics.json` and return its path."""
    file = folder / METRICS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, results)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); give another --out") from None
    return file


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
