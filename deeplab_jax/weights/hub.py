"""`hf://owner/repo[@revision]`: models of the Hugging Face hub, through the package huggingface_hub and its cache."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from deeplab_jax.errors import UserError, in_one_line, optional, printable, spell
from deeplab_jax.files import DISK_ERRORS
from deeplab_jax.weights.download import LARGEST, OFFLINE, is_offline
from deeplab_jax.weights.folder import MODEL_FILE, WEIGHTS_FILE
from deeplab_jax.weights.formats import keras_weights
from deeplab_jax.weights.formats.read import FOLDER_FILES, PARTS_INDEX, PROCESSOR_FILE, SAVED_CONFIG
from deeplab_jax.weights.published import UNKNOWN

PREFIX = "hf://"
FORM = "hf://owner/repo[@revision]"
CARD_FILE = "README.md"
LONGEST_LICENCE = 100
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^\s@]+))?")


class Address(NamedTuple):
    """What a name says: the repository, and a branch, tag or commit; "" is the main branch."""

    repository: str
    revision: str


class Snapshot(NamedTuple):
    """A repository's files at one commit, in the cache of huggingface_hub.

    Attributes:
      repository: "owner/repo".
      commit: 40 hexadecimal digits.
      folder: holds the files that this package reads.
      licence: as its card states it, "unknown" if it states none.
    """

    repository: str
    commit: str
    folder: Path
    licence: str


def parse(name: str) -> Address:
    """Return the parts of `hf://owner/repo[@revision]`.

    Raises:
      UserError: it is written in another way.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"{name}: no address of a repository; write {FORM}")
    return Address(found[1], found[2] or "")


def load_hub(what: str) -> ModuleType:
    """Return the package huggingface_hub, or raise a UserError that says what needs it."""
    name = "huggingface_hub"
    return optional(what, name, f"{name}.constants", f"{name}.errors", install=name)[0]


def fetch(name: str, *, say: Callable[[str], object]) -> Snapshot:
    """Return a repository's files; download those that are read here and are not in the cache of huggingface_hub.

    A branch is looked up at every use, unless `DEEPLAB_JAX_OFFLINE` is set. If the hub cannot be reached, the commit
    that the branch had at its last use is taken, and `say` receives a line about it.

    Raises:
      UserError: no such repository or revision, no access, nothing that is read here, or neither the hub nor a copy.
    """
    repository, revision = parse(name)
    hub = load_hub(name)
    reason = ""
    if not is_offline():
        try:
            with hub_errors(hub, name):
                return _snapshot(hub, repository, _download(hub, name, say))
        except Unreachable as error:
            reason = str(error)
    with hub_errors(hub, name):
        folder = _cached(hub, repository, revision)
    if folder is None:
        problem = f"{hub.constants.ENDPOINT} cannot be reached ({reason})" if reason else f"{OFFLINE} is set"
        fix = "check the connection" if reason else f"unset {OFFLINE}"
        raise UserError(f"{name}: {problem}, and {hub.constants.HF_HUB_CACHE} holds no copy; {fix}")
    if reason:
        say(f"{name}: {hub.constants.ENDPOINT} cannot be reached ({reason}); commit {folder.name[:12]} is here")
    return _snapshot(hub, repository, folder)


def page(snapshot: Snapshot) -> str:
    """Return the address of a commit's page."""
    return f"{load_hub(snapshot.repository).constants.ENDPOINT}/{snapshot.repository}/tree/{snapshot.commit}"


class Unreachable(Exception):
    """The hub does not answer; a copy may be here."""


@contextmanager
def hub_errors(hub: ModuleType, name: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub about a repository into one line with a fix.

    Raises:
      UserError: the repository, the revision, the rights or the disk.
      Unreachable: no connection.
    """
    errors, (repository, revision) = hub.errors, parse(name)
    where = f"{hub.constants.ENDPOINT}/{repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{name}: gated; ask for access at {where}, then type: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such repository at {hub.constants.ENDPOINT}, or a private one; check the name, or, for a "
            "private one, type: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the repository has no revision {revision!r}; {where}/commits lists them") from None
    except errors.HFValidationError as error:
        raise UserError(f"{name}: no name that a repository can have ({in_one_line(error)}); write {FORM}") from None
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(in_one_line(error.__cause__ or error)) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{name}: access denied (HTTP status {status}); type: hf auth login, with a token that may do this"
            ) from None
        if status == 429 or status >= 500:
            raise Unreachable(f"HTTP status {status}") from None
        raise UserError(f"{name}: HTTP status {status} ({in_one_line(error)}); see {where}") from None
    except (OSError, errors.HTTPError) as error:  # The second is its HTTP library's, which differs by its version.
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise UserError(
                f"{error.filename or hub.constants.HF_HUB_CACHE}: {error.strerror}; free space, or set HF_HUB_CACHE"
            ) from None
        raise Unreachable(in_one_line(error)) from None


def _download(hub: ModuleType, name: str, say: Callable[[str], object]) -> Path:
    """Return the folder of a commit's files, after a download of those that are not here."""
    repository, revision = parse(name)
    info = hub.HfApi().model_info(repository, revision=revision or None, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = wanted(sizes, name=name)
    total = sum(sizes[file] for file in files)
    if total > LARGEST:
        raise UserError(
            f"{name}: its weights are {total} bytes, and {LARGEST} are the limit; no network here is so large"
        )
    if not all(isinstance(hub.try_to_load_from_cache(repository, file, revision=info.sha), str) for file in files):
        say(f"fetching {hub.constants.ENDPOINT}/{repository}/tree/{info.sha}, {total / 2**20:.1f} MiB")
    # By the branch and not by the commit, so that the cache knows the branch, too.
    paths = [Path(hub.hf_hub_download(repository, file, revision=revision or None)) for file in files]
    if len({path.parent for path in paths}) > 1:
        raise UserError(f"{name}: has changed while it was fetched; start again")
    return paths[0].parent


def wanted(names: Collection[str], *, name: str) -> list[str]:
    """Return which files of a repository are read, in the order in which they are fetched: the card, then a model
    folder's, or else a saved folder's. The last one is what `_cached` looks for, so a copy is whole where that is.

    Raises:
      UserError: there are no weights among them.
    """
    found = [MODEL_FILE, WEIGHTS_FILE]
    if not set(found) <= set(names):
        weights = next((file for file in FOLDER_FILES if file in names), "")
        if not weights:
            there = printable(spell(sorted(set(names) - {".gitattributes", CARD_FILE}))) or "no files"
            raise UserError(
                f"{name}: no weights of a form that is read here: neither {MODEL_FILE} with {WEIGHTS_FILE} nor any of "
                f"{', '.join(FOLDER_FILES)}; it holds {there}; other files go through hf download, then convert"
            )
        parts: list[str] = []
        if weights.endswith(PARTS_INDEX):  # Such as model.safetensors.index.json, of model-00001-of-00002.safetensors.
            stem, suffix = weights.removesuffix(PARTS_INDEX).split(".")
            parts = [each for each in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", each)]
        if weights == keras_weights.PRESET_FILE:
            parts = [*keras_weights.CONFIG_FILES.values(), keras_weights.TASK_FILE]
        found = [SAVED_CONFIG, PROCESSOR_FILE, *parts, weights]
    return [each for each in (CARD_FILE, *found) if each in names]


def _cached(hub: ModuleType, repository: str, revision: str) -> Path | None:
    """Return the folder of a commit whose weights are in the cache; None if there is none."""
    for file in (WEIGHTS_FILE, *FOLDER_FILES):
        found = hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _snapshot(hub: ModuleType, repository: str, folder: Path) -> Snapshot:
    return Snapshot(repository, folder.name, folder, licence_of(hub, folder / CARD_FILE))


def licence_of(hub: ModuleType, card: Path) -> str:
    """Return the licence that a model card states, "unknown" if it states none."""
    try:
        stated: Any = hub.metadata_load(card) or {}
    except Exception:  # The card may be anybody's, and holds no weights.
        return UNKNOWN
    licence = stated.get("license")
    if licence == "other" and isinstance(stated.get("license_name"), str):
        licence = f"other ({stated['license_name']})"
    fits = isinstance(licence, str) and licence.isprintable() and 0 < len(licence) <= LONGEST_LICENCE
    return licence if fits else UNKNOWN
