"""Weights by name, as their authors published them: an entry of the table, or a repository of the Hugging Face hub."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.terminal import note, progress_of_bytes
from deeplab_jax.weights import download, hub
from deeplab_jax.weights.published import LISTS_NAMES, PUBLISHED, Published, is_free


class Named(NamedTuple):
    """Weights that a name stands for.

    Attributes:
      path: their file or folder in a cache.
      info: for `model.json`: class names and palette where the table has them, and `provenance`.
    """

    path: Path
    info: dict[str, Any]


def is_name(text: str) -> bool:
    """Return whether a text is a name of weights, rather than a path.

    Raises:
      UserError: it is neither, and looks like a name with a mistake in it.
    """
    if text.startswith(hub.PREFIX) or text in PUBLISHED:
        return True
    owner, _, rest = text.partition("/")
    owners = {known.partition("/")[0] for known in PUBLISHED}
    without_owner = {known.partition("/")[2] for known in PUBLISHED}
    if (rest and owner in owners) or text in without_owner or difflib.get_close_matches(text, PUBLISHED, cutoff=0.9):
        raise UserError(
            f"{text}: neither a path nor a name of published weights: "
            f"{did_you_mean(text, PUBLISHED, listed_by=LISTS_NAMES)}"
        )
    return False


def find(name: str) -> Named:
    """Return what a name stands for, fetched if it is not here.

    Raises:
      UserError: it cannot be fetched.
    """
    return from_hub(hub.fetch(name, say=note)) if name.startswith(hub.PREFIX) else from_table(name)


def from_table(name: str) -> Named:
    """Return an entry of the table, fetched if it is not here."""
    entry = PUBLISHED[name]
    with progress_of_bytes() as progress:
        file = download.fetch(entry.file, entry.addresses, sha256=entry.sha256, say=note, progress=progress)
    _say_licence(name, entry.licence, entry.addresses[0])
    labels = {} if entry.labels is None else entry.labels.info()
    return Named(file, {**labels, "provenance": _of_entry(name, entry, file)})


def from_hub(snapshot: hub.Snapshot) -> Named:
    """Return a repository that `hub.fetch` has fetched."""
    name, address = f"{hub.PREFIX}{snapshot.repository}@{snapshot.commit}", hub.page(snapshot)
    _say_licence(f"{hub.PREFIX}{snapshot.repository}", snapshot.licence, address)
    provenance = {"name": name, "address": address, "revision": snapshot.commit, "licence": snapshot.licence}
    return Named(snapshot.folder, {"provenance": provenance})


def _say_licence(name: str, licence: str, address: str) -> None:
    if not is_free(licence):
        note(f"{name}: its licence is {licence}; see {address} before commercial use")


def _of_entry(name: str, entry: Published, file: Path) -> dict[str, str]:
    """Return where an entry's weights come from, as values for JSON."""
    return {
        "name": name,
        "address": entry.addresses[0],
        "sha256": download.recorded_sha256(file),
        "licence": entry.licence,
        "trained_on": entry.trained_on,
        "published": entry.figure,
    }
