"""`push`: a model folder with its card to the Hugging Face hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.errors import UserError
from deeplab_jax.files import save_json, write_whole
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.weights import folder
from deeplab_jax.weights.card import model_card
from deeplab_jax.weights.download import OFFLINE, is_offline
from deeplab_jax.weights.folder import METRICS_FILE
from deeplab_jax.weights.hub import CARD_FILE, PREFIX, Unreachable, hub_errors, load_hub, parse


class Pushed(NamedTuple):
    """What was uploaded: file name to bytes, the commit, and the address of its page."""

    files: dict[str, int]
    commit: str
    page: str


def write_folder(
    path: str | Path,
    target: str,
    model: Segmenter,
    variables: Variables,
    info: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any] | None = None,
    licence: str = "",
) -> Path:
    """Write what `push` uploads, a model folder with `README.md` and, if given, `metrics.json`, and return its path.

    For the arguments see `card.model_card`.

    Raises:
      UserError: the folder cannot be written, huggingface_hub is missing, or the target is no address of a repository.
    """
    card = model_card(target, model, variables, info, metrics=metrics, licence=licence)
    made = folder.save(path, model, variables, info)
    write_whole(made / CARD_FILE, lambda file: file.write_text(card, encoding="utf-8"))
    if metrics is not None:
        save_json(made / METRICS_FILE, metrics)
    return made


def push(
    target: str,
    model: Segmenter,
    variables: Variables,
    info: Mapping[str, Any],
    *,
    private: bool = False,
    revision: str = "",
    metrics: Mapping[str, Any] | None = None,
    licence: str = "",
) -> Pushed:
    """Upload a model to a repository of the hub, which is created if it does not exist, and return what was uploaded.

    Args:
      target: `hf://owner/repo[@revision]`.
      model, variables, info, metrics, licence: see `card.model_card`.
      private: whether a new repository is private; one that exists stays as it is.
      revision: branch to upload to, created if it does not exist; "" is the target's, or else the main branch.

    Raises:
      UserError: no token, one without the right to write, no connection, or see `write_folder`.
    """
    repository, stated = parse(target)
    branch = revision or stated
    hub = load_hub("push")
    if is_offline():
        raise UserError(f"{target}: {OFFLINE} is set; unset it, or give --out FOLDER to write the folder alone")
    name = f"{PREFIX}{repository}" + (f"@{branch}" if branch else "")
    with tempfile.TemporaryDirectory() as fresh:
        made = write_folder(Path(fresh, "model"), name, model, variables, info, metrics=metrics, licence=licence)
        files = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
        try:
            with hub_errors(hub, name):
                api = hub.HfApi()
                api.create_repo(repository, private=private or None, exist_ok=True)
                if branch:
                    api.create_branch(repository, branch=branch, exist_ok=True)
                done = api.upload_folder(
                    repo_id=repository,
                    folder_path=made,
                    revision=branch or None,
                    commit_message=f"Upload {describe(model)['name']} of deeplab_jax",
                )
        except Unreachable as error:
            raise UserError(
                f"{target}: {hub.constants.ENDPOINT} cannot be reached ({error}); check the connection, or give --out "
                "FOLDER to write the folder alone"
            ) from None
    return Pushed(files, done.oid, f"{hub.constants.ENDPOINT}/{repository}/tree/{done.oid}")
