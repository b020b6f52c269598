"""Predictions of each row's network on a few validation images, kept in the run directories."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.config import read_config
from deeplab_jax.data.images import write_image
from deeplab_jax.data.source import Example, Source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.pictures import colour_labels
from deeplab_jax.evaluate.protocol import split_section
from deeplab_jax.files import make_folder, save_json
from deeplab_jax.labels import IGNORE_LABEL, LabelSet
from deeplab_jax.train.from_config import open_split
from deeplab_jax.weights.folder import load
from experiments.outcomes.files import Unreadable, read_json
from experiments.outcomes.gather import RowResult, TableResult

INDEX = "index.json"  # It is written last, so the pictures that it names exist.


@dataclass(frozen=True)
class Pictures:
    """A row's pictures.

    Attributes:
      folder: folder of the pictures.
      names: names of the images; number i has the files `image_i.jpg`, `truth_i.png` and `prediction_i.png`.
      data: name of the data; rows of the same data show the same images.
      classes: names and colours of the classes in the pictures.
    """

    folder: Path
    names: tuple[str, ...]
    data: str
    classes: tuple[tuple[str, str], ...]

    def files(self, kind: str) -> list[Path]:
        """Return the files of "image", "truth" or "prediction"."""
        suffix = "jpg" if kind == "image" else "png"
        return [self.folder / f"{kind}_{number}.{suffix}" for number in range(len(self.names))]


@dataclass(frozen=True)
class Few:
    """A source with at most `count` examples of another source, evenly spread."""

    source: Source
    count: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def labels(self) -> LabelSet:
        return self.source.labels

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int, /) -> Example:
        return self.source[self._place(index)]

    def describe(self, index: int, /) -> tuple[str, str] | str:
        return self.source.describe(self._place(index))

    def _place(self, index: int) -> int:
        return index * len(self.source) // len(self)


def table_pictures(
    result: TableResult, runs: Path, *, count: int
) -> tuple[list[tuple[RowResult, Pictures]], list[str]]:
    """Return the pictures of all rows that have a run directory in `runs`, with `count` images each, and a message for
    every row that gives none.
    """
    found: list[tuple[RowResult, Pictures]] = []
    remarks = []
    for row in result.rows if count else ():
        workdirs = [runs / result.regime / training.name for training in row.trainings]
        workdir = next((folder for folder in workdirs if (folder / "config.json").is_file()), None)
        if workdir is not None:
            try:
                found.append((row, row_pictures(row, workdir, count=count)))
            except UserError as error:
                remarks.append(f"{workdir}: no pictures of {result.table.name}, {row.label} ({error})")
    return found, remarks


def row_pictures(row: RowResult, workdir: Path, *, count: int) -> Pictures:
    """Return a row's pictures. They are drawn where they are not there yet.

    Raises:
      UserError: the weights or the data cannot be read, or the pictures cannot be written.
    """
    folder = workdir / "report" / row.evaluation
    try:
        index = read_json(folder / INDEX, needs=("asked", "names", "data", "classes"))
    except Unreadable:
        index = None
    if index is None or index["asked"] != count:
        index = _draw(row, workdir, folder, count)
    classes = tuple((name, colour) for name, colour in index["classes"])
    return Pictures(folder, tuple(index["names"]), index["data"], classes)


def _draw(row: RowResult, workdir: Path, folder: Path, count: int) -> dict[str, Any]:
    """Predict, and write pictures and their index."""
    config = read_config(workdir / "config.json")
    data = config.data
    source = Few(open_split(config, data.val_split), count)
    model, variables, _ = load(workdir, checkpoint="newest")
    drawn: list[tuple[Example, np.ndarray]] = []
    protocol, how = split_section({**config.evaluate.to_dict(), **row.row.evaluate, "batch_size": 1, "trimap": ()})
    evaluate(
        model,
        variables,
        source,
        protocol,
        split=data.val_split,
        on_prediction=lambda example, classes: drawn.append((example, classes)),
        **how,
    )
    make_folder(folder)
    for number, (example, classes) in enumerate(drawn):
        write_image(folder / f"image_{number}.jpg", example["image"])
        for kind, ids in (("truth", example["label"]), ("prediction", classes)):
            write_image(folder / f"{kind}_{number}.png", colour_labels(ids, source.labels.palette))
    index = {
        "asked": count,
        "names": [str(example["name"]) for example, _ in drawn],
        "data": source.name,
        "classes": _classes(drawn, source.labels),
    }
    save_json(folder / INDEX, index)
    return index


def _classes(drawn: Iterable[tuple[Example, np.ndarray]], labels: LabelSet) -> list[tuple[str, str]]:
    """Return the names and colours of the classes in truth and predictions."""
    present = {int(value) for example, ids in drawn for value in np.union1d(example["label"], ids)}
    colours = ["#" + bytes(colour).hex() for colour in labels.palette]
    return [(labels.names[value], colours[value]) for value in sorted(present - {IGNORE_LABEL})]
