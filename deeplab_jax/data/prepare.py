"""Writing any source as a TFDS data set: array_record files, written and read without TensorFlow.

TFDS needs TensorFlow to encode arrays and for its default file format, but it stores encoded bytes unchanged. So a
plain RGB photograph keeps the bytes of its file, any other image becomes a PNG, and a mask becomes a grey PNG of class
ids and 255.
"""

import contextlib
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from deeplab_jax.data import images
from deeplab_jax.data.loader import describe
from deeplab_jax.data.sets.prepared import FEATURES, SIDE_FILE
from deeplab_jax.data.source import Source
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json

SplitProgress = Callable[[str, int, int], None]
"""Called as `progress(split, done, total)` after each example."""

PER_FILE = 256  # Examples; TFDS holds the examples of a file in memory while it writes.


def prepare(sources: Mapping[str, Source], out_dir: str | Path, *, progress: SplitProgress | None = None) -> Path:
    """Write the splits of a data set into a TFDS folder, which `open_source("tfds", dir=out_dir, split=...)` reads.

    The folder appears when all of it is written. Until then everything is in a hidden folder beside it, which a failure
    removes.

    Args:
      sources: split -> source, all with the same classes. Split names are letters, digits and underscores.
      out_dir: the folder to create; it must not exist, or be empty.
      progress: called after each example.

    Returns:
      `out_dir`.

    Raises:
      UserError: `out_dir` is in use, the splits differ in classes, an example cannot be read, or the disk is full.
    """
    target = Path(out_dir)
    _check(sources, target)
    name = next(iter(sources.values())).name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise UserError(f"{target}: cannot be made ({error.strerror}); choose another folder for --out") from error
    try:
        written = _write(sources, work, name, progress)
        _write_side_file(written / SIDE_FILE, sources, name)
        if target.exists():
            target.rmdir()  # It is empty, as checked.
        written.rename(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); free some space or choose another --out"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _check(sources: Mapping[str, Source], target: Path) -> None:
    if not sources:
        raise ValueError("no split to write")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{target}: exists already and is not an empty folder; choose another folder for --out, or remove it"
        )
    classes = {split: (source.labels.names, source.labels.palette) for split, source in sources.items()}
    if len(set(classes.values())) > 1:
        raise UserError(f"splits {', '.join(sources)} have different classes; write splits of one data set together")
    for split, source in sources.items():
        if source.labels.multilabel:
            raise UserError(
                f"split '{split}' has several labels a pixel; prepare writes one: train from its own folder"
            )
        if len(source) == 0:
            raise UserError(f"split '{split}' has no example; leave it out")


def _write(sources: Mapping[str, Source], work: Path, name: str, progress: SplitProgress | None) -> Path:
    tfds.disable_progress_bar()
    failures: list[Exception] = []

    def generate(split: str, indices: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            try:
                features = _features(sources[split], index)
            except Exception as error:
                failures.append(error)
                raise
            yield index, features
            if progress is not None:
                progress(split, index + 1, len(sources[split]))

    every = {split: range(len(source)) for split, source in sources.items()}
    files = {
        split: [partial(generate, split, indices[start : start + PER_FILE]) for start in indices[::PER_FILE]]
        for split, indices in every.items()
    }
    builder = _Builder(name, files, data_dir=str(work), version="1.0.0", file_format="array_record")
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:
        # TFDS wraps the generator's error; the user sees the cause.
        if failures:
            raise failures[0] from None
        if os.strerror(errno.ENOSPC) in str(error):  # array_record reports a full disk as a RuntimeError.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    return Path(builder.data_dir)


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes each file from a function that yields its examples. A builder that is not based on shards sorts all
    examples of a split. Beyond a gigabyte it does this on the disk, which needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so there are no checksums beside the code. TFDS's search for them needs a package that it
    # does not declare.
    code_path = None

    def __init__(self, name: str, files: Mapping[str, Sequence[Callable[[], Iterator[Any]]]], **how: Any) -> None:
        self.name, self._files = name, files
        super().__init__(**how)

    def _info(self) -> tfds.core.DatasetInfo:
        about = f"Written by deeplab_jax.data.prepare; class names and colours are in {SIDE_FILE}."
        return tfds.core.DatasetInfo(builder=self, description=about, features=FEATURES, disable_shuffling=True)

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Callable[[], Iterator[Any]]]]:
        return self._files

    def _log_download_bytes(self) -> None:
        """Print nothing: TFDS would announce a download."""

    def _log_download_done(self) -> None:
        """Print nothing: TFDS would name the hidden folder."""


def _features(source: Source, index: int) -> dict[str, Any]:
    example = source[index]
    if example["image"].dtype != np.uint8 or example["image"].shape[2] != 3:
        raise UserError(
            f"{describe(source, index)}: {example['image'].shape[2]} bands of "
            f"{example['image'].dtype}, and prepared folders hold 8-bit RGB; train from the files themselves"
        )
    try:
        example["name"].encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{example['name']}: a name that is not UTF-8, as TFDS stores names; rename the file") from None
    image = _file_bytes(source, index, example["image"]) or images.encode_image(example["image"])
    return {
        "image": io.BytesIO(image),
        "label": io.BytesIO(images.encode_grey(example["label"])),
        "name": example["name"],
    }


def _file_bytes(source: Source, index: int, image: np.ndarray) -> bytes | None:
    """Return the bytes of the example's file if whoever reads them sees the example's image, otherwise None."""
    described = source.describe(index)
    if isinstance(described, str):
        return None
    with contextlib.suppress(Exception):  # A user's own source may name any file, and change what it reads.
        data = Path(described[0]).read_bytes()
        if images.is_plain_rgb(data) and np.array_equal(images.decode_image(data, name=described[0]), image):
            return data
    return None


def _write_side_file(path: Path, sources: Mapping[str, Source], name: str) -> None:
    labels = next(iter(sources.values())).labels
    stored = {"names": labels.names, "palette": labels.palette, "value_map": labels.value_map}
    write_json(path, {"source": name, **stored})
