"""Prediction of image files: threads read ahead, images of one size run together, threads write."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jax
import numpy as np

from deeplab_jax.config_keys import LARGEST_BATCH
from deeplab_jax.data.large import Image
from deeplab_jax.data.source import Example, Source
from deeplab_jax.errors import UserError, spell
from deeplab_jax.evaluate.claims import Claims
from deeplab_jax.evaluate.evaluator import THREADS, WINDOW, grouped
from deeplab_jax.evaluate.image_list import Found
from deeplab_jax.evaluate.inference import Prediction, is_faint, predict_images
from deeplab_jax.evaluate.memory import is_out_of_memory, names_what_fits, out_of_memory
from deeplab_jax.evaluate.outputs import Outputs
from deeplab_jax.evaluate.protocol import DEFAULT, Protocol
from deeplab_jax.evaluate.reading import open_for, read_for
from deeplab_jax.evaluate.scratch import scratch
from deeplab_jax.evaluate.windows import Size
from deeplab_jax.files import make_folder
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.terminal import note

In = TypeVar("In")
Out = TypeVar("Out")
Outcome = Future[UserError | None] | UserError

LONGEST_WHOLE = 2**14
"""Longest side of an image, in pixels, that runs whole: the matrix that resizes logits along it has side² / output
stride entries.
"""


def predict_files(
    model: Segmenter,
    variables: Variables,
    found: Sequence[Found],
    outputs: Outputs,
    protocol: Protocol = DEFAULT,
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], Any] = note,
) -> Iterator[tuple[Found, UserError | None]]:
    """Predict image files and write what `outputs` says.

    Images that run at one size form batches; empty images fill up the last one. So there is one compiled program for
    each size of `protocol.run_size`. An unreadable image does not end the run. The protocol's `resize`, `crop` and
    `trimap` concern only labelled examples and are not used here.

    Args:
      model, variables: from `load`.
      found: from `find_images`.
      outputs: what is written.
      protocol: how the model runs.
      batch_size: images that run together; by default 1 on a CPU, otherwise 8. With a sliding window it is 1.
      progress: called with the number of images done and in all.
      warn: receives one line for the first image whose values are probably in another range than the model's.

    Yields:
      Each file in order, with None or the reason why it failed.

    Raises:
      UserError: an output stride at which the model cannot run, a batch size below 1, a prediction that would overwrite
        another file, or a file that cannot be written.
    """
    count = min(checked_batch_size(batch_size, protocol), max(1, len(found)))
    fewer = "--batch_size 1" if count > 1 else ""
    model = protocol.at_stride(model)
    outputs.check(found)
    make_folder(outputs.folder)
    model, variables = fold_norm(model, variables)
    outcomes = Outcomes(found, progress)
    how: dict[str, Any] = {"count": count, "probabilities": outputs.needs_probabilities}
    how["onto"] = partial(_onto, model, outputs.folder)
    reading, writing = ThreadPoolExecutor(THREADS), ThreadPoolExecutor(THREADS)
    in_parts = not (outputs.needs_probabilities or protocol.crf)
    read = partial(_read, model=model, protocol=protocol, outputs=outputs, in_parts=in_parts)
    images_ahead = ahead(reading, read, found, count=count + THREADS)
    try:
        unwritten = deque[Future[UserError | None]]()
        for size, batch in grouped(_readable(images_ahead, found, outcomes, model, warn), count, protocol):
            files, images = [found[item["index"]] for item in batch], [item["image"] for item in batch]
            try:
                names = spell([file.path for file in files])
                with names_what_fits(names, protocol, images[0].shape[:2], fewer=fewer):
                    predictions = predict_images(model, variables, images, size, protocol, **how)
            except UserError as error:
                for item in batch:
                    outcomes.add(item["index"], error)
            else:
                for item, file, prediction in zip(batch, files, predictions, strict=True):
                    future = writing.submit(_write, outputs, file, item["image"], prediction, protocol)
                    outcomes.add(item["index"], future)
                    unwritten.append(future)
            while len(unwritten) > count + THREADS:  # What waits takes memory.
                unwritten.popleft().result()
            yield from outcomes.told()
        yield from outcomes.told(wait=True)
    finally:  # After Ctrl-C, too: files that are being written become whole.
        reading.shutdown(cancel_futures=True)
        writing.shutdown(cancel_futures=True)


class Outcomes:
    """The outcome of each file. Outcomes arrive in any order and are yielded in the order of the files."""

    def __init__(self, found: Sequence[Found], progress: Callable[[int, int], None] | None) -> None:
        self._found, self._progress = found, progress
        self._known: dict[int, Outcome] = {}
        self._told = 0

    def add(self, index: int, outcome: Outcome) -> None:
        """Add the reason why a file failed, or the future of what is written for it."""
        self._known[index] = outcome

    def told(self, *, wait: bool = False) -> Iterator[tuple[Found, UserError | None]]:
        """Yield the next files whose outcome is known, with it; `wait` for those that are being written."""
        while (outcome := self._known.get(self._told)) is not None:
            if isinstance(outcome, Future) and not (wait or outcome.done()):
                return
            error = outcome.result() if isinstance(outcome, Future) else outcome
            self._told += 1
            if self._progress is not None:
                self._progress(self._told, len(self._found))
            yield self._found[self._told - 1], error


def _readable(
    images: Iterable[Image | UserError],
    found: Sequence[Found],
    outcomes: Outcomes,
    model: Segmenter,
    warn: Callable[[str], Any],
) -> Iterator[dict[str, Any]]:
    """Yield each image that could be read, with its index. The first one in another range gets a note."""
    told = False
    for index, image in enumerate(images):
        if isinstance(image, UserError):
            outcomes.add(index, image)
        else:
            if not told and (told := is_faint(image)):
                warn(_faint(found[index].path, model, image))
            yield {"image": image, "index": index}


def _faint(path: Path, model: Segmenter, image: Image) -> str:
    """Return the note on an image that is probably in another range than the model's."""
    ends = model.preprocessing.stored_range
    trained = f"values from {ends[0]:g} to {ends[1]:g}" if ends else "the full range of the files' type"
    return (
        f"{path}: its values reach {image[:].max() / 255:.1%} of what the model was trained for, {trained}; scale the "
        "images to it, or train a model with the range of these, such as --config.data.value_range=0,4095"
    )


def _onto(model: Segmenter, folder: Path, image: Image) -> np.ndarray | None:
    """Return an array in a file of the folder without a name, for the ids of an image that is read a part at a time."""
    return None if isinstance(image, np.ndarray) else scratch(folder, (*image.shape[:2], *model.label_axes))


def ahead(pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], *, count: int) -> Iterator[Out]:
    """Yield the results for some items in order, with at most `count` of them computed ahead."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def checked_batch_size(batch_size: int | None, protocol: Protocol) -> int:
    """Return the number of images that run together, or raise a UserError: by default 1 on a CPU and otherwise 8, with
    a sliding window always 1.
    """
    if batch_size is not None and not 1 <= batch_size <= LARGEST_BATCH:
        raise UserError(f"--batch_size {batch_size}: give at least 1, and at most {LARGEST_BATCH}")
    if protocol.window:
        return 1
    return batch_size or (1 if jax.default_backend() == "cpu" else 8)


def _read(found: Found, *, model: Segmenter, protocol: Protocol, outputs: Outputs, in_parts: bool) -> Image | UserError:
    """Return an image: whole, or what reads it a part at a time if it slides; or the reason why it cannot be read or
    put on its map.
    """
    try:
        with names_what_fits(str(found.path), protocol):
            opening = open_for if in_parts and protocol.window else read_for
            image = opening(model.preprocessing, found.path)
            size = image.shape[0], image.shape[1]
            image = image if protocol.slides(protocol.run_size(size)) else image[:]
        check_whole(size, protocol, name=str(found.path))
        outputs.check_ground(found.path)  # A fault in it is this file's alone.
        return image
    except UserError as error:
        return error


def _write(
    outputs: Outputs, found: Found, image: Image, prediction: Prediction, protocol: Protocol
) -> UserError | None:
    """Write the files of a prediction; return the reason if they do not fit into memory.

    Raises:
      UserError: a file cannot be written.
    """
    try:
        outputs.write(found.name, image, *prediction, path=found.path)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return out_of_memory(str(found.path), protocol, (image.shape[0], image.shape[1]))
    return None


def check_whole(size: Size, protocol: Protocol, *, name: str) -> None:
    """Raise a UserError if an image has a side too long to run whole."""
    if max(size) > LONGEST_WHOLE and not protocol.window:
        raise UserError(
            f"{name}: an image of {size[1]}x{size[0]} pixels; sides of more than {LONGEST_WHOLE} cannot run whole; "
            "give --window 513,513"
        )


class PredictionWriter:
    """Writes what `evaluate` calls it with: each example and its class ids.

    Names keep their folders: the prediction of `sub/a` is in the folder `sub`. None leads out of the folder. After the
    first fault of whatever kind it writes nothing more, so that no metric is lost; `finish` raises it.

    Args:
      outputs: what is written, and where.
      source: its files are never overwritten.
      protocol: how the model runs, for the fix of a prediction that does not fit into memory.

    Attributes:
      fault: why a prediction could not be written; None so far.
    """

    def __init__(self, outputs: Outputs, source: Source, protocol: Protocol) -> None:
        self.fault: Exception | None = None
        self._outputs, self._protocol = outputs, protocol
        files = (source.describe(index) for index in range(len(source)))
        inputs = [file for pair in files if isinstance(pair, tuple) for file in pair]
        self._claims = Claims(outputs.folder, inputs, fix="give the examples other names")

    def __call__(self, example: Example, classes: np.ndarray) -> None:
        if self.fault is not None:
            return
        size = classes.shape[0], classes.shape[1]
        try:
            with names_what_fits(example["name"], self._protocol, size, window=WINDOW):
                self._outputs.write(self._claim(example["name"]), example["image"], classes, truth=example["label"])
        except Exception as error:
            self.fault = error

    def finish(self) -> None:
        """Write the page, and raise the fault if there was one."""
        if self._outputs.page is not None:
            self._outputs.page.write()
        if self.fault is not None:
            raise self.fault

    def _claim(self, example: str) -> str:
        """Return the name of an example's prediction, or raise a UserError if a file of it has another owner."""
        name = "/".join(part for part in PurePosixPath(example).parts if part not in ("/", "//", ".."))
        self._claims.claim(example, self._outputs.files(name))
        return name
