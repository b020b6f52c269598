"""A folder that `prepare` wrote, read through TFDS and without TensorFlow."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from deeplab_jax.data.images import decode_image, decode_mask
from deeplab_jax.data.source import Example, check_sizes, choose_split, decode_label
from deeplab_jax.errors import UserError, in_one_line
from deeplab_jax.files import read_json
from deeplab_jax.labels import LabelSet

SIDE_FILE = "classes.json"
"""The file beside the TFDS files with the class names and colours, and the name of the written data set."""

FEATURES_FILE = "features.json"
FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png"),
        "name": tfds.features.Text(),
    }
)
"""The name in every prepared folder."""


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
        record = self._record(index)
        name = record["name"]
        where = f"{self.dir}: example '{name}'"
        image = decode_image(record["image"], name=where)
        label = decode_label(decode_mask(record["label"], name=where), self.labels.decoded(), name=where)
        check_sizes(image, label, image_name=where, mask_name=where)
        return {"image": image, "label": label, "name": name}

    def describe(self, index: int) -> str:
        try:
            return str(self._record(index)["name"])
        except UserError:
            return f"{self.dir}: example {index}"

    def _record(self, index: int) -> dict[str, Any]:
        try:
            record = self.records[index]
            return {**record, "name": record["name"].decode("utf-8")}
        except Exception as error:  # array_record raises RuntimeErrors, and TFDS whatever its decoders do.
            raise _damaged(f"{self.dir}: example {index}", error) from error


def open_prepared(dir: str | Path, *, split: str) -> PreparedSource:
    """Return one split of a folder that `prepare` wrote. The folder itself lists its classes.

    Raises:
      UserError: the folder was not written by `prepare`, or has no such split.
    """
    folder = Path(dir)
    try:
        content = read_json(folder / SIDE_FILE)
        names = tuple(content["names"])
        palette = tuple((int(r), int(g), int(b)) for r, g, b in content["palette"])
        value_map = content.get("value_map")  # Folders of older versions have none.
        pairs = None if value_map is None else tuple((int(stored), int(class_id)) for stored, class_id in value_map)
        labels = LabelSet(names, palette, pairs)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"class names {names!r:.100}")
        name = str(content["source"])
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {SIDE_FILE}, so 'prepare' did not write it; set --config.data.dir to the folder "
            "of 'prepare --out'"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{folder / SIDE_FILE}: damaged ({error}); write the folder again with 'prepare'") from error
    _check_features(folder)
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # TFDS does not catch the errors of its parsers.
        raise _damaged(str(folder), error) from error
    choose_split(split, builder.info.splits, source=f"{name} in {folder}")
    # Left encoded here, so that the images go through the same decoder as files do.
    skip = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split=split, decoders=skip)
        len(records)  # Reads the ends of the files.
    except Exception as error:
        raise _damaged(str(folder), error) from error
    return PreparedSource(name, labels, str(folder), split, records)


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: TFDS cannot read it ({in_one_line(error)}); write the folder again with 'prepare'")


def _check_features(folder: Path) -> None:
    """Raise a UserError if the folder's features are not those that `prepare` writes.

    TFDS imports the modules that the file names, in several spellings and in JSON inside JSON. So TFDS must read
    nothing else.
    """
    file = folder / FEATURES_FILE
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}); write the folder again with 'prepare'") from error
    about = FEATURES.to_json()
    if content != {"pythonClassName": about["type"], "featuresDict": about["content"]}:
        raise UserError(f"{file}: other features than 'prepare' writes; write the folder again with 'prepare'")
