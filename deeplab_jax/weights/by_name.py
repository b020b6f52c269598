"""`load`: a model by its path, or by a name of the table of published weights."""

import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.files import locked
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.terminal import note, progress_of_bytes
from deeplab_jax.weights import folder
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.download import FOLDER, cache_folder, fetch, recorded_sha256
from deeplab_jax.weights.published import PUBLISHED, Published


def load(
    path_or_name: str | Path, *, checkpoint: str = "best", module: str = ""
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Return a model.

    Args:
      path_or_name: a model folder, a run directory, or a name of published weights, such as
        "torchvision/deeplabv3_resnet101_coco" (`python -m deeplab_jax weights` lists them). Published weights are
        fetched and converted at the first use, and then kept in the cache; see `download.fetch`. A folder that exists
        comes before a name.
      checkpoint, module: of a run directory, and of a network of your own; see `weights.folder.load`.

    Returns:
      `(model, variables, info)`. `info` holds class names, palette, metrics and, of published weights, `provenance`:
      address, SHA-256, licence, training data and the published figure.

    Raises:
      UserError: nothing to load there, an unknown name, a file that cannot be fetched, or weights that do not fit.
    """
    return folder.load(folder_of(path_or_name), checkpoint=checkpoint, module=module)


def folder_of(path_or_name: str | Path) -> Path:
    """Return the folder of what `load` takes. Published weights are fetched and converted if they are not here.

    Raises:
      UserError: a name that the table does not have, or one that cannot be fetched.
    """
    name, path = str(path_or_name), Path(path_or_name)
    if path.exists():
        return path
    if name in PUBLISHED:
        return converted(name)
    if looks_like_name(name):
        raise UserError(
            f"{name}: neither a folder nor a name of published weights: {did_you_mean(name, PUBLISHED)} "
            "(all: python -m deeplab_jax weights)"
        )
    return path


def looks_like_name(text: str) -> bool:
    """Return whether a text may be meant as a name of published weights."""
    owner, slash, rest = text.partition("/")
    return bool(slash and rest) and owner in {name.partition("/")[0] for name in PUBLISHED}


def converted(name: str, *, say: Callable[[str], object] = note) -> Path:
    """Return the model folder of published weights in the cache; fetch and convert them if it is not there.

    Another version of this package converts again. Several processes that want one name convert it once.
    """
    entry = PUBLISHED[name]
    target = cache_folder() / "models" / name
    with locked(target.with_name(f"{target.name}.lock"), "", option=f"folder with {FOLDER}", say=say):
        if _is_current(target):
            return target
        with progress_of_bytes() as progress:
            file = fetch(entry.file, entry.addresses, sha256=entry.sha256, say=say, progress=progress)
        if not entry.is_free:
            say(f"{name}: its licence is {entry.licence}; see {entry.addresses[0]} before commercial use")
        model, variables, info = convert(file)
        names = {} if entry.labels is None else entry.labels.info()
        info = {**info, **names, "provenance": provenance(name, entry, file)}
        with tempfile.TemporaryDirectory(dir=target.parent) as fresh:
            made = folder.save(Path(fresh, target.name), model, variables, info)
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)
    return target


def provenance(name: str, entry: Published, file: Path) -> dict[str, str]:
    """Return where converted weights come from, as values for JSON."""
    return {
        "name": name,
        "address": entry.addresses[0],
        "sha256": recorded_sha256(file),
        "licence": entry.licence,
        "trained_on": entry.trained_on,
        "published": entry.figure,
        "converted_by": _converter(),
    }


def is_here(name: str) -> bool:
    """Return whether published weights are in the cache."""
    return (cache_folder() / PUBLISHED[name].file).is_file()


def _is_current(target: Path) -> bool:
    if not (target / folder.WEIGHTS_FILE).is_file():
        return False
    try:
        _, info = folder.read_description(target)
    except UserError:  # Damaged, or of a version whose format is another.
        return False
    return info.get("provenance", {}).get("converted_by") == _converter()


def _converter() -> str:
    return f"deeplab_jax {metadata.version('deeplab_jax')}"
