"""Evaluation of a model on a labelled source: one confusion matrix over all images, metrics at the end."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax.config_keys import LARGEST_BATCH
from deeplab_jax.data.check.dataset import check_labels
from deeplab_jax.data.faults import never
from deeplab_jax.data.large import row_parts
from deeplab_jax.data.loader import TIMEOUT, examples_in_order
from deeplab_jax.data.source import Example, Source, check_limit
from deeplab_jax.data.transforms import resize_pair
from deeplab_jax.distributed import in_step, listed, own_share, summed, together
from deeplab_jax.errors import UserError, spell
from deeplab_jax.evaluate.boundary import Trimap
from deeplab_jax.evaluate.calibration import summarize_confidences
from deeplab_jax.evaluate.contours import Contours
from deeplab_jax.evaluate.counts import Counts, added, counted, no_counts
from deeplab_jax.evaluate.inference import evaluate_batch, evaluate_large, pad_images
from deeplab_jax.evaluate.memory import names_what_fits
from deeplab_jax.evaluate.per_image import PerImage
from deeplab_jax.evaluate.protocol import DEFAULT, Protocol
from deeplab_jax.evaluate.results import Results, summarize_confusion, summarize_sigmoids
from deeplab_jax.evaluate.windows import Size
from deeplab_jax.labels import IGNORE_LABEL, LabelSet
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.provenance import versions

WINDOW = "--config.evaluate.window="
WAITING = 8  # In batches: images that wait for others of their size. In `exact` mode all sizes may differ.
THREADS = 2
"""Threads that read ahead. A prediction has as many that write."""
Devices = Sequence[jax.Device]
Item = TypeVar("Item", bound=Mapping[str, Any])
OnPrediction = Callable[[Example, np.ndarray], None]


def evaluate(
    model: Segmenter,
    variables: Variables,
    source: Source,
    protocol: Protocol = DEFAULT,
    *,
    split: str = "val",
    batch_size: int = 1,
    devices: int = 1,
    timeout: float = TIMEOUT,
    stopped: Callable[[], bool] = never,
    limit: int | None = None,
    on_prediction: OnPrediction | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Return the contents of `metrics.json` for a model on every image of a source; see README.md in this folder.

    Only the name and three counts a class of each image stay in memory. Several processes divide the images, and each
    returns the results of all.

    Args:
      model, variables: from `load`.
      source: labelled examples; its classes must be the model's, of which one logit has two.
      protocol: everything that changes the numbers. The other arguments do not.
      split: name of the split, for the record.
      batch_size: number of images of one size, or of windows, that run together on a device. Empty ones, which do not
        count, fill up the last batch.
      devices: number of devices of this process, each with its own batch; 0: all.
      timeout: seconds within which an image must be read.
      stopped: ends the evaluation before the next image when it returns True; the results are then of the images so
        far.
      limit: largest number of images to evaluate.
      on_prediction: called with each example of this process and its classes, as from `segment`.
      progress: called with the number of images done and in all, on this process; all processes call it equally often.

    Raises:
      UserError: classes or arguments that do not fit.
    """
    check_classes(model, source)
    check_limit(limit)
    model, chosen = settled(model, protocol, batch_size=batch_size, devices=devices)
    at_once = batch_size * len(chosen)
    fewer = "--config.evaluate.batch_size=1" if batch_size > 1 else ""
    folded, variables = fold_norm(model, copy_to(chosen, variables))
    mine = own_share(len(source) if limit is None else min(limit, len(source)))
    tally, start = Tally(protocol, model), time.perf_counter()
    read = examples_in_order(source, mine, threads=THREADS, timeout=timeout, stopped=stopped)
    for group in in_step(grouped(parts(read, protocol, model), at_once, protocol)):
        with together():
            for size, batch in group:
                names = spell([example["name"] for example in batch])
                with names_what_fits(names, protocol, size, fewer=fewer, window=WINDOW):
                    predicted, counts = run_group(folded, variables, batch, size, protocol, chosen, at_once)
                tally.add(size, batch, predicted, counts)
                if on_prediction is not None:
                    for example, ids in zip(batch, predicted, strict=True):
                        on_prediction(example, ids)
        if progress is not None:
            progress(tally.images, len(mine))
    found = {"split": split, "data": source.name, "output_stride": model.output_stride, **tally.found()}
    found["value_map"] = source.labels.value_map
    if model.activation == "sigmoid":
        found["threshold"] = protocol.threshold
        found["miou_over"] = "the presence of each label" if model.multilabel else "both classes"
    return {
        **tally.metrics(source.labels),
        "protocol": {**protocol.to_json(), **found},
        "model": describe(model) if model.recipe else None,
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 3),
    }


def run_group(
    model: Segmenter,
    variables: Variables,
    batch: Sequence[Example],
    size: Size,
    protocol: Protocol,
    devices: Devices,
    at_once: int,
) -> tuple[Sequence[np.ndarray], Counts]:
    """Return the classes of each example of a group from `grouped`, and its counts; see `evaluate_batch`.

    `at_once` images run together, or as many windows of a large image.
    """
    if alone(size, protocol):
        (example,) = batch
        classes, counts = evaluate_large(
            model,
            variables,
            example["image"],
            example["label"],
            protocol,
            batch_size=at_once,
            place=partial(split_over, devices),
        )
        return [classes], counts
    images, labels, sizes = split_over(devices, *padded(batch, size, count=at_once))
    classes, counts = evaluate_batch(model, variables, images, labels, sizes, protocol)
    return cut_back(classes, batch), counts


def alone(size: Size, protocol: Protocol) -> bool:
    """Return whether an image that runs at this size is a group of its own, whose windows fill the batches."""
    return protocol.slides(size) and not protocol.crf


class Tally:
    """The counts of an evaluation so far: each process has its share of the images, and their sum at the end.

    Attributes:
      images: number of images counted on this process.
    """

    def __init__(self, protocol: Protocol, model: Segmenter) -> None:
        self.images = 0
        self._protocol, self._model = protocol, model
        self._counts = no_counts(model, counted(protocol))
        self._sizes: set[Size] = set()
        self._per_image = PerImage(model.label_classes, bootstrap=protocol.bootstrap, every=protocol.per_image)
        self._contours = Contours(model.label_classes) if protocol.boundary else None
        self._bands: Trimap | None = None
        if protocol.trimap:
            self._bands = Trimap(protocol.trimap, num_classes=model.label_classes, around=protocol.trimap_around)

    def add(self, size: Size, batch: Sequence[Example], predicted: Sequence[np.ndarray], counts: Counts) -> None:
        """Add a batch of one size: its examples, their classes, and its counts from `evaluate_batch`."""
        self.images += len(batch)
        self._counts = added(self._counts, counts)
        self._sizes.add(size)
        for example, ids in zip(batch, predicted, strict=True):
            self._per_image.add(example["name"], example["label"], ids)
            if self._bands is not None:
                self._bands.add(example["label"], ids)
            if self._contours is not None:
                self._contours.add(example["label"], ids)

    def metrics(self, labels: LabelSet) -> Results:
        """Return the metrics over the images of all processes, which all must call this."""
        more = self._per_image.results(labels)
        if self._bands is not None:
            more["trimap"] = self._bands.results()
        if self._contours is not None:
            more["boundary"] = self._contours.results(labels)
        if self._protocol.calibration:
            more["calibration"] = summarize_confidences(summed(self._counts["confidences"]))
        counts, protocol = summed(self._counts["pixels"]), self._protocol
        if self._model.activation == "softmax":
            return {**summarize_confusion(counts, labels), **more}
        of_sigmoids = summarize_sigmoids(counts, labels, thresholds=protocol.thresholds, threshold=protocol.threshold)
        return {**of_sigmoids, **more}

    def found(self) -> Results:
        """Return the number of images of all processes, and the sizes at which they ran; all processes
        must call this.
        """
        sizes = {tuple(map(int, line.split("x"))) for line in listed([f"{h}x{w}" for h, w in self._sizes])}
        return {
            "images": int(summed(np.asarray(self.images))),
            "sizes_run": [list(size) for size in sorted(sizes)],
        }


def check_classes(model: Segmenter, source: Source) -> None:
    """Raise a UserError if a model and a source differ in their classes."""
    if model.multilabel != source.labels.multilabel:
        several, one = ("the model", source.name) if model.multilabel else (source.name, "the model")
        raise UserError(
            f"{several} has several labels a pixel, {one} has one class a pixel; give the data it was trained for"
        )
    if model.label_classes != source.labels.num_classes:
        raise UserError(
            f"the model has {model.label_classes} classes, {source.name} has {source.labels.num_classes}; evaluate on "
            "the data it was trained for"
        )


def settled(model: Segmenter, protocol: Protocol, *, batch_size: int, devices: int) -> tuple[Segmenter, Devices]:
    """Return the model at the protocol's output stride and the devices of an evaluation, or raise a UserError if it
    cannot run; see `evaluate`.
    """
    check_boundaries(model, protocol)
    check_batch_size(batch_size)
    return protocol.at_stride(model), local_devices(devices)


def check_boundaries(model: Segmenter, protocol: Protocol) -> None:
    """Raise a UserError if metrics of boundaries are asked for where a pixel can have several labels."""
    for key in ("trimap", "boundary"):
        if (value := getattr(protocol, key)) and model.multilabel:
            raise UserError(
                f"config.evaluate.{key}={value}: a pixel can have several labels here, whose boundaries differ; leave "
                "it out"
            )


def check_batch_size(batch_size: int) -> None:
    """Raise a UserError if a batch cannot have such a size."""
    if not 1 <= batch_size <= LARGEST_BATCH:
        raise UserError(f"config.evaluate.batch_size={batch_size}: give at least 1, and at most {LARGEST_BATCH}")


def parts(examples: Iterable[Example], protocol: Protocol, model: Segmenter) -> Iterator[Example]:
    """Yield the evaluated part of each example, or raise a UserError if it has not the model's channels or classes."""
    classes = 2 if model.multilabel else model.label_classes
    for example in examples:
        name = f"example {example['name']!r}"
        model.preprocessing.check(example["image"], name=name)
        part = part_of(example, protocol)
        for rows in row_parts(part["label"].shape):  # A large image's at once would take several times its memory.
            check_labels(part["label"][rows], classes, name=name)
        yield part


def part_of(example: Example, protocol: Protocol) -> Example:
    """Return the evaluated part of an example: resized (image bilinear, label nearest), then cropped to its centre.

    A crop keeps all of a side that is shorter than the crop.
    """
    image, label = example["image"], example["label"]
    if protocol.resize:
        image = image[:]  # A large one is read a part at a time.
        shorter = min(label.shape[:2])
        height, width = ((2 * side * protocol.resize + shorter) // (2 * shorter) for side in label.shape[:2])
        image, label = resize_pair(image, label, (height, width))
    if protocol.crop:
        (top, height), (left, width) = (
            (max(side - kept, 0) // 2, kept) for side, kept in zip(label.shape[:2], protocol.crop, strict=True)
        )
        image, label = (array[top : top + height, left : left + width] for array in (image, label))
    if not alone(protocol.run_size((image.shape[0], image.shape[1])), protocol):
        image = image[:]
    return {"image": image, "label": label, "name": example["name"]}


def grouped(examples: Iterable[Item], batch_size: int, protocol: Protocol) -> Iterator[tuple[Size, list[Item]]]:
    """Yield examples in groups that run at one size, with that size.

    A group leaves when it is full, or when `WAITING` batches of examples wait and no group has more. The rest leaves at
    the end.
    """
    waiting: dict[Size, list[Item]] = {}
    for example in examples:
        height, width = example["image"].shape[:2]
        size = protocol.run_size((height, width))
        group = waiting.setdefault(size, [])
        group.append(example)
        if len(group) == batch_size or alone(size, protocol):
            yield size, waiting.pop(size)
        elif sum(map(len, waiting.values())) >= WAITING * batch_size:
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            yield fullest, waiting.pop(fullest)
    yield from waiting.items()


def padded(batch: Sequence[Example], size: Size, *, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return examples stacked at the top left of `size`, filled up with empty examples to `count`.

    Returns:
      Images uint8 or float32 `[count, H, W, C]`, labels uint8 `[count, H, W]` (or with an axis more) with 255 around
      them, true sizes int32 `[count, 2]`.
    """
    images, sizes = pad_images([example["image"] for example in batch], size, count=count)
    labels = np.full((count, *size, *batch[0]["label"].shape[2:]), IGNORE_LABEL, np.uint8)
    for index, example in enumerate(batch):
        height, width = example["label"].shape[:2]
        labels[index, :height, :width] = example["label"]
    return images, labels, sizes


def cut_back(classes: np.ndarray, batch: Sequence[Example]) -> list[np.ndarray]:
    """Return the classes of each example of a padded batch, without the padding."""
    shapes = (example["label"].shape[:2] for example in batch)
    return [ids[:height, :width] for ids, (height, width) in zip(classes, shapes, strict=False)]


# Each device of a process runs its own images, so no number depends on the number of devices.


def local_devices(count: int) -> Devices:
    """Return the first `count` devices of this process; 0 means all.

    Raises:
      UserError: there are not so many.
    """
    found = jax.local_devices()
    if not 0 <= count <= len(found):
        raise UserError(
            f"config.evaluate.devices={count}: there are {len(found)}; choose 1 to {len(found)}, or 0 for all"
        )
    return found[: count or len(found)]


def copy_to(devices: Devices, variables: Any) -> Any:
    """Return copies on every device for arrays that are whole on some device of this process."""
    return jax.device_put(jax.tree.map(_own, variables), _sharding(devices, PartitionSpec()))


def split_over(devices: Devices, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Return arrays that are split along their first axis over the devices."""
    return jax.device_put(arrays, _sharding(devices, PartitionSpec("data")))


def _own(array: Any) -> Any:
    return array.addressable_data(0) if isinstance(array, jax.Array) else array


def _sharding(devices: Devices, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(devices), ("data",)), spec)
