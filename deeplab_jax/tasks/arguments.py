"""The arguments that a program gives: a configuration, and names."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from deeplab_jax.config import CONFIG_FILE, base, load_config, to_plain
from deeplab_jax.config_values import check, fill
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.extensions import allow
from deeplab_jax.files import at_home


def config_of(config: Any, *, module: str = "") -> ConfigDict:
    """Return a configuration of one's own to change.

    Args:
      config: from `load_config` or `deeplab_jax.config.base`, or the path of a file, as after `--config`, such as
        "configs/scenes.py:debug"; or a list of the words that a command takes, such as ["--config=configs/scenes.py",
        "--config.train.steps=9"].
      module: path of a file with parts of your own; it takes the place of `config.module`, and may run.

    Raises:
      UserError: a file that cannot be read, an unknown key, or a value of another type.
    """
    allow(module)
    if isinstance(config, str | Path | list):
        config = load_config(config)
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    check(config, name="config")
    fill(base(), to_plain(config), name="config")  # An unlocked one may have any key.
    config = config.copy_and_resolve_references()
    config.module = module or config.module
    return config


def names_file(words: Sequence[str]) -> bool:
    """Return whether words of a configuration name its file."""
    return any(word.partition("=")[0] == "--config" for word in words)


def or_of_run(config: Any, model: str | Path) -> Any:
    """Return a configuration for `config_of`: the given one or, where it is None or words that name no file, that of
    the run directory `model` with the words' changes. It is None where there is neither.
    """
    words = [] if config is None else config
    if not isinstance(words, list) or names_file(words):
        return config
    own = at_home(model) / CONFIG_FILE
    return [f"--config={own}", *words] if own.is_file() else None


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """Raise a UserError for an argument that a function does not have."""
    for name in given:
        if name not in known:
            raise UserError(f"argument {name!r}: {did_you_mean(name, known)}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a UserError for a value that an argument does not take."""
    if value not in choices:
        raise UserError(f"{name}={value!r}: {did_you_mean(str(value), [choice for choice in choices if choice])}")
