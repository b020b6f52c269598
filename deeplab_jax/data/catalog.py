"""The data sets by name."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeplab_jax.data.sets.ade20k import open_ade20k
from deeplab_jax.data.sets.camvid import open_camvid
from deeplab_jax.data.sets.cityscapes import open_cityscapes
from deeplab_jax.data.sets.coco import open_coco
from deeplab_jax.data.sets.folder import open_folder
from deeplab_jax.data.sets.pet import open_pet
from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.data.sets.voc import open_voc
from deeplab_jax.data.source import Example, PairSource, Source
from deeplab_jax.errors import UserError, did_you_mean

__all__ = ["OPENERS", "Example", "Source", "open_source", "source_names"]


def open_prepared(dir: str | Path, *, split: str) -> Source:
    """Open a folder written by `prepare` (`prepared.open_prepared`)."""
    # Imported when asked for: TFDS takes a good part of a second to import.
    from deeplab_jax.data.sets import prepared

    return prepared.open_prepared(dir, split=split)


OPENERS: dict[str, Callable[..., Source]] = {
    "scenes": Scenes,
    "camvid": open_camvid,
    "voc": open_voc,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "coco": open_coco,
    "pet": open_pet,
    "folder": open_folder,
    "tfds": open_prepared,
}
"""Name -> `open(dir, *, split, ...)`; what is generated takes no `dir`."""


def source_names() -> tuple[str, ...]:
    """The names that `open_source` knows."""
    return tuple(OPENERS)


def open_source(name: str, *, split: str, dir: str | Path | None = None, strict: bool = True, **options: Any) -> Source:
    """Open one split of a data set.

    Folders are listed here, once; reading an example afterwards opens only its own files.

    Args:
      name: one of `source_names()`.
      split: the part to open, usually `train` or `val`; each data set says which it has.
      dir: the folder of the data set. `scenes` is generated, and ignores it.
      strict: refuse images without a mask and masks without an image; `check-data` opens them to report them all.
      **options: what the data set takes besides, as the keyword arguments of its `open_...` function.

    Raises:
      UserError: an unknown name, split or option; a folder that is missing or laid out otherwise.
    """
    if name not in source_names():
        raise UserError(f"no data set is called '{name}'; {did_you_mean(name, source_names())}")
    opener = OPENERS[name]
    known = [parameter for parameter in inspect.signature(opener).parameters if parameter not in ("dir", "split")]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it takes none"
            raise UserError(f"data set '{name}' has no option '{option}'; {hint}")
    try:
        return _opened(opener, name, split, dir, strict, options)
    except (TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"data set '{name}': an option has a value of another kind than it needs ({error}); see data.options"
        ) from error


def _opened(
    opener: Callable[..., Source],
    name: str,
    split: str,
    dir: str | Path | None,
    strict: bool,
    options: dict[str, Any],
) -> Source:
    if "dir" not in inspect.signature(opener).parameters:
        return opener(split=split, **options)
    if not dir:
        raise UserError(f"data set '{name}' reads files; set data.dir to the folder that holds them")
    if not os.path.isdir(dir):  # Which takes names of any length.
        raise UserError(f"{dir}: no such folder; set data.dir to the folder of data set '{name}'")
    source = opener(Path(dir), split=split, **options)
    if strict and isinstance(source, PairSource):
        source.require_pairs()
    return source
