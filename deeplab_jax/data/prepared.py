"""Reads a folder that `prepare` wrote, through TFDS and without TensorFlow."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from deeplab_jax.data.images import decode_image, decode_mask
from deeplab_jax.data.pairs import Example, check_sizes, choose_split, decode_label
from deeplab_jax.errors import UserError
from deeplab_jax.jsonfile import read_json
from deeplab_jax.labels import LabelSet

SIDE_FILE = "classes.json"
"""Beside the TFDS files: the class names and colours, and the name of the data set that was written."""


@dataclasses.dataclass(frozen=True)
class PreparedSource:
    """Examples of one split of a prepared folder, in the order in which they were written."""

    name: str
    labels: LabelSet
    dir: str
    split: str
    records: Sequence[Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        name = record["name"].decode("utf-8")
        where = f"{self.dir}: example '{name}'"
        image = decode_image(record["image"], name=where)
        label = decode_label(decode_mask(record["label"], name=where), self.labels, name=where)
        check_sizes(image, label, image_name=where, mask_name=where)
        return {"image": image, "label": label, "name": name}

    def describe(self, index: int) -> str:
        return self.records[index]["name"].decode("utf-8")


def open_prepared(dir: str | Path, *, split: str) -> PreparedSource:
    """Open one split of a folder written by `prepare`. The folder says by itself which classes it has.

    Raises:
      UserError: the folder was not written by `prepare`, or has no such split.
    """
    folder = Path(dir)
    try:
        content = read_json(folder / SIDE_FILE)
        labels = LabelSet(tuple(content["names"]), tuple((r, g, b) for r, g, b in content["palette"]))
        name = str(content["source"])
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {SIDE_FILE}, so 'prepare' did not write it; set data.dir to what 'prepare --out' was given"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SIDE_FILE}: damaged ({error}); write the folder again with 'prepare'") from error
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # TFDS lets through whatever its parsers raise.
        raise UserError(f"{folder}: TFDS cannot open it ({error}); write the folder again with 'prepare'") from error
    choose_split(split, builder.info.splits, source=f"{name} in {folder}")
    # Left encoded here: the images then go through the same decoder as files do.
    skip = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
    return PreparedSource(name, labels, str(folder), split, builder.as_data_source(split=split, decoders=skip))
