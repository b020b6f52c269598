"""`load`: a model by its path, or by a name of published weights."""

import shlex
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from deeplab_jax.errors import MOST_CHOICES, DamagedFile, UserError, did_you_mean, spell
from deeplab_jax.files import at_home, locked, read_json
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.provenance import version_of
from deeplab_jax.terminal import note
from deeplab_jax.weights import fetch_named, folder, hub
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.download import FOLDER, cache_folder
from deeplab_jax.weights.published import LISTS_NAMES, PUBLISHED

CONVERSION = 2  # Raise it with every change of what `convert` returns; then the models in caches are made again.


def load(
    path_or_name: str | Path, *, checkpoint: str = "best", module: str = "", model: Segmenter | None = None
) -> tuple[Segmenter, Variables, dict[str, Any]]:
    """Return a model.

    Args:
      path_or_name: a model folder, a run directory, a name of published weights, such as
        "torchvision/deeplabv3_resnet101_coco" (`python -m deeplab_jax weights` lists them), or a repository of the
        Hugging Face hub, "hf://owner/repo[@revision]". What a name stands for is fetched and converted at the first
        use, and then kept in the cache; see `download.fetch` and `hub.fetch`. A folder that exists comes before a name.
      checkpoint, module, model: of a run directory, and of a network of your own; see `weights.folder.load`.

    Returns:
      `(model, variables, info)`. `info` holds class names, palette, metrics and, of weights by name, `provenance`:
      address, SHA-256 or commit, licence, and of the table's entries training data and the published figure.

    Raises:
      UserError: nothing to load there, an unknown name, a file that cannot be fetched, or weights that do not fit.
    """
    path = present_folder(path_or_name, module=module)
    try:
        return folder.load(path, checkpoint=checkpoint, module=module, model=model)
    except DamagedFile as error:
        if path == at_home(path_or_name):
            raise
        fix = f"remove its folder, and the same command makes it again: rm -r {shlex.quote(str(path))}"
        raise DamagedFile(f"{error}; {fix}") from None


def folder_of(path_or_name: str | Path, *, module: str = "") -> Path:
    """Return the folder of what `load` takes. Weights by name are fetched and converted if they are not here.

    Raises:
      UserError: a name that the table does not have, or one that cannot be fetched.
    """
    name, path = str(path_or_name), at_home(path_or_name)
    if path.exists():
        return path
    return converted(name, module=module) if fetch_named.is_name(name) else path


def present_folder(path_or_name: str | Path, *, module: str = "") -> Path:
    """Return what `folder_of` does, if it exists; the message for a word without folders shows names of weights."""
    path, name = folder_of(path_or_name, module=module), str(path_or_name)
    if path.exists():
        return path
    fix = "give a model folder or a run directory"
    if Path(name).name == name:
        holding = [known for known in PUBLISHED if name in known]
        choose = f"choose from {spell(holding, limit=MOST_CHOICES)} (all: {LISTS_NAMES} {name})"
        near = choose if holding else did_you_mean(name, PUBLISHED, listed_by=LISTS_NAMES)
        fix += f", or a name of published weights: {near}"
    raise UserError(f"{path}: no such folder; {fix}")


def converted(name: str, *, module: str = "") -> Path:
    """Return the model folder of weights by name in the cache; fetch and convert them if it is not there.

    Another version of this package, or of its importers, converts again. Several processes that want one name convert
    it once.
    """
    snapshot = hub.fetch(name, say=note) if name.startswith(hub.PREFIX) else None
    where = f"hf/{snapshot.repository}/{snapshot.commit}" if snapshot else name
    target = cache_folder() / "models" / where
    if _is_current(target, module):
        return target
    with locked(target.with_name(f"{target.name}.lock"), "", option=f"folder with {FOLDER}", say=note):
        if _is_current(target, module):
            return target
        source = fetch_named.from_hub(snapshot) if snapshot else fetch_named.from_table(name)
        if (source.path / folder.MODEL_FILE).is_file():
            model, variables, info = folder.load(source.path, module=module)
        else:
            model, variables, info = convert(source.path)
        provenance = {**source.info["provenance"], "converted_by": _converter()}
        if "provenance" in info:  # A model folder knows where its own weights came from.
            provenance["before"] = info["provenance"]
        info = {**info, **source.info, "provenance": provenance}
        with tempfile.TemporaryDirectory(dir=target.parent) as fresh:
            made = folder.save(Path(fresh, target.name), model, variables, info)
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)
    return target


def origin_of(path_or_name: str | Path) -> dict[str, Any]:
    """Return where weights of `load` come from, for the `info` of a model that starts from them: what they are called,
    and their licence where the table or the folder has it. Nothing is fetched.
    """
    name, path, known = str(path_or_name), at_home(path_or_name), {}
    if name not in PUBLISHED and not name.startswith(hub.PREFIX):
        name = path.name  # The rest of the path tells others nothing.
    if path.is_dir():
        with suppress(OSError, ValueError, KeyError, TypeError):
            info = read_json(path / folder.MODEL_FILE)["info"]
            known = dict(info.get("provenance") or info.get(folder.INITIALISED) or {})
    elif name in PUBLISHED:
        known = {"name": name, "licence": PUBLISHED[name].licence}
    before = {key: known[key] for key in ("name", "address", "licence") if isinstance(known.get(key), str)}
    return {"name": name} | before


def is_here(name: str) -> bool:
    """Return whether published weights are in the cache."""
    return (cache_folder() / PUBLISHED[name].file).is_file()


def _is_current(target: Path, module: str) -> bool:
    if not (target / folder.WEIGHTS_FILE).is_file():
        return False
    try:
        _, info = folder.read_description(target, module=module)
    except UserError:  # Damaged, or of a version whose format is another.
        return False
    return info.get("provenance", {}).get("converted_by") == _converter()


def _converter() -> str:
    return f"deeplab_jax {version_of('deeplab_jax')}, conversion {CONVERSION}"
