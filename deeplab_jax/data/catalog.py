"""The data sets by name. A data set is its file in `sets`, and its line in `SOURCES`."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.data.own import OwnSource
from deeplab_jax.data.sets.ade20k import open_ade20k
from deeplab_jax.data.sets.camvid import open_camvid
from deeplab_jax.data.sets.cityscapes import open_cityscapes
from deeplab_jax.data.sets.coco import CocoSource, open_coco
from deeplab_jax.data.sets.coco_file import open_coco_file
from deeplab_jax.data.sets.folder import open_folder
from deeplab_jax.data.sets.multilabel import MULTILABEL, MultilabelSource, open_multilabel
from deeplab_jax.data.sets.pet import open_pet
from deeplab_jax.data.sets.scenes import Scenes
from deeplab_jax.data.sets.voc import open_voc
from deeplab_jax.data.source import PairSource, Source, read_as
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.extensions import own_errors, own_table
from deeplab_jax.files import at_home


def open_prepared(dir: str | Path, *, split: str) -> Source:
    """Return one split of a folder that `prepare` wrote (`prepared.open_prepared`)."""
    # Imported here because TFDS takes almost a second to import.
    from deeplab_jax.data.sets import prepared

    return prepared.open_prepared(dir, split=split)


SOURCES: dict[str, Callable[..., Source]] = {
    "scenes": Scenes,
    "camvid": open_camvid,
    "voc": open_voc,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "coco": open_coco,
    "pet": open_pet,
    "folder": open_folder,
    "coco_file": open_coco_file,
    MULTILABEL: open_multilabel,
    "tfds": open_prepared,
}
"""Name -> `open(dir, *, split, ...)`, or `open(*, split, ...)` for a data set without files. Further arguments are the
data set's options.
"""


def open_source(
    name: str,
    *,
    split: str,
    dir: str | Path | None = None,
    strict: bool = True,
    module: str = "",
    channels: Sequence[int] = (),
    value_range: Sequence[float] = (),
    **options: Any,
) -> Source:
    """Return one split of a data set.

    This lists folders once; reading an example afterwards opens only its own files.

    Args:
      name: a name of `SOURCES`, or of the table `SOURCES` in the user's own file.
      split: the part to open, usually `train` or `val`; each data set lists its own.
      dir: the folder of the data set. `scenes` is generated, and ignores it.
      strict: whether to refuse images without a mask and masks without an image; `check-data` opens them, to report
        all.
      module: path of the user's own file (`deeplab_jax.extensions`); "" for none.
      channels, value_range: how image files are read; see `images.read_image`.
      **options: options of the data set: the further arguments of its entry in `SOURCES`.

    Raises:
      UserError: an unknown name, split or option; a folder that does not exist or has another layout.
    """
    own = own_table(module, "SOURCES")
    sources = {**SOURCES, **own}
    if name not in sources:
        raise UserError(f"no data set is called '{name}'; {did_you_mean(name, sources)}")
    opener = sources[name]
    parameters = inspect.signature(opener).parameters
    if "split" not in parameters:
        raise UserError(f"{module}: SOURCES[{name!r}] takes no split; give it the argument split: 'train', 'val', ...")
    arguments = [argument for argument in parameters if argument != "split"]
    known = [argument for argument in arguments if argument != "dir"]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it takes none"
            raise UserError(f"data set '{name}' has no option '{option}'; {hint}")
    if "dir" in arguments:
        options = {**options, "dir": _folder(name, dir)}
    try:
        with own_errors(module):
            source = opener(split=split, **options)
    except UserError:
        raise
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(
            f"data set '{name}': an option has a value of the wrong type ({error}); see config.data.options"
        ) from error
    as_opened, source = source, read_as(source, channels=channels, value_range=value_range)
    if (channels or value_range) and source is as_opened:
        raise UserError(
            f"data set '{name}': it does not read bands of image files; leave out config.data.channels and "
            "config.data.value_range, and in Python the model's channels and stored_range"
        )
    if strict and isinstance(source, PairSource | CocoSource | MultilabelSource):
        source.require_pairs()
    return OwnSource(source, name, split, module) if name in own and not isinstance(source, PairSource) else source


def _folder(name: str, dir: str | Path | None) -> Path:
    if not dir:
        raise UserError(f"data set '{name}' reads files; set --config.data.dir to the folder that holds them")
    dir = at_home(dir)
    if not os.path.isdir(dir):  # Unlike Path.is_dir, it takes names of any length.
        raise UserError(f"{dir}: no such folder; set --config.data.dir to the folder of data set '{name}'")
    return dir
