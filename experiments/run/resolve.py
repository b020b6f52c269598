"""Resolves a row of a table in a regime: its full configuration, and the keys of its results."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from deeplab_jax.config import base, load_config, to_plain
from deeplab_jax.config_keys import FREE
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.models.catalog import known_options
from deeplab_jax.weights.folder import WEIGHTS_FILE
from experiments import ROOT
from experiments.regimes import MULTI_GRID, Network, Regime
from experiments.tables import Row, Table

NORM = "model.options.norm"
PLAIN = {"model.output_stride": 32, "model.options.aspp_rates": (), "model.options.image_pooling": False}
# The key of a training leaves these out. Weights depend on none of them but the seed, which stands beside the key.
OUTSIDE_KEY = (*FREE, "config.train.seed")


@dataclass(frozen=True)
class Settings:
    """The user's settings besides tables and regime.

    Attributes:
      overrides: arguments `--config.key=value`; the changes of a row come after them.
      data_dir: folder of the data; "" for generated data.
      init: model folder of pre-trained weights, or a folder of model folders that are named after their backbones.
      steps: steps of every training; 0: the regime's number.
    """

    overrides: tuple[str, ...] = ()
    data_dir: str = ""
    init: str = ""
    steps: int = 0


@dataclass(frozen=True)
class Resolved:
    """A row that can be run.

    Attributes:
      config: configuration of the training, without its seed.
      evaluation: the section `evaluate` for this row.
      notes: differences of this row from the paper's row.
      pretraining: configuration of the training whose backbone this one starts from; None where it starts from given or
        random weights.
    """

    config: ConfigDict
    evaluation: Mapping[str, Any]
    notes: tuple[str, ...]
    pretraining: ConfigDict | None = None

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of the training and of the evaluation."""
        return self.training_key, self.evaluation_key

    @property
    def training_key(self) -> str:
        """Hash of all settings on which the weights depend, except the seed."""
        return key_of(self.config, start="" if self.pretraining is None else key_of(self.pretraining))

    @property
    def evaluation_key(self) -> str:
        """Hash of all settings on which the metrics depend, besides the weights."""
        changes = beyond(to_plain(base().evaluate), to_plain(self.evaluation))
        changes = {key: value for key, value in changes.items() if key not in ("batch_size", "devices")}
        return _hash({**changes, "split": self.config.data.val_split})

    def seeded(self, seed: int) -> ConfigDict:
        """Return the configuration of the training with this seed."""
        config = self.config.copy_and_resolve_references()
        config.train.seed = seed
        return config


@dataclass(frozen=True)
class NotRun:
    """A row that a regime cannot run, and why."""

    reason: str


def resolve(row: Row, table: Table, regime: Regime, settings: Settings) -> Resolved | NotRun:
    """Return a row with its full configuration in a regime.

    The regime's configuration file and network come first, then the user's `--config...`, then the row's changes. A
    later change replaces an earlier one.

    Raises:
      UserError: an override or a row's change does not fit, or the pre-trained weights are not there.
    """
    if reason := regime.why_not(row):
        return NotRun(reason)
    name = row.train["model.name"]
    network, architecture = regime.network(name), name.split("_", 1)[0]
    steps = settings.steps or regime.steps
    file = network.config.format(model=f"{architecture}_{network.backbone}", data=table.data, steps=steps)
    words = [f"--config={ROOT / file}"]
    words += [f"--config.train.steps={steps}"] if steps else []
    words += [f"--config.data.dir={settings.data_dir}"] if settings.data_dir else []

    def configured(*overrides: str) -> ConfigDict:
        found = load_config([*words, *regime.overrides, *overrides, *settings.overrides]).copy_and_resolve_references()
        _set_options(found, network, besides=settings.overrides)
        return found

    config = configured(*network.overrides)
    notes = [network.note] if network.note else []
    pretraining = None
    given = initial_weights(settings.init, network.backbone) if network.pretrained and settings.init else ""
    if regime.pretraining:
        pretraining = plain_network(configured(), network, table, settings.steps or regime.pretraining)
        if row.train.get(NORM) == "group":
            _set(pretraining, NORM, "group")
        about = f"starts from the backbone of a plain network, {pretraining.train.steps} steps on the same data"
        notes.append(f"{about}, one for all seeds")
    where = f"table {table.name}, row {table.row_name(row)}"
    left_out = {"model.name"} if network.units else {"model.name", MULTI_GRID}
    changes = {key: value for key, value in row.train.items() if key not in left_out}
    _check_keys([*changes, *(f"evaluate.{key}" for key in row.evaluate)], config, where)
    for key, value in changes.items():
        _change(config, key, regime.translated(key, value, network, config.data.crop_size), where)
    if given:
        first = config if pretraining is None else pretraining
        first.init, first.init_scope = given, "backbone"
    evaluation = {**config.evaluate.to_dict(), **row.evaluate}
    if evaluation["output_stride"] == config.model.output_stride:
        evaluation["output_stride"] = 0  # The evaluation at the end of the training has the same key then.
    return Resolved(config, evaluation, tuple(notes), pretraining)


def plain_network(config: ConfigDict, network: Network, table: Table, steps: int) -> ConfigDict:
    """Return the configuration that trains a backbone in a plain network: a DeepLabv3 without pyramid and multi-grid,
    at output stride 32. `config`, that of the regime with the user's changes, gives data, optimizer and options of the
    layers.
    """
    file = network.config.format(model=f"deeplabv3_{network.backbone}", data=table.data, steps=steps)
    found = load_config([f"--config={ROOT / file}"]).copy_and_resolve_references()
    _set_options(found, network)
    for key in known_options(found.model.name) & set(config.model.options):
        found.model.options[key] = config.model.options[key]
    for section in ("data", "optimizer", "train"):
        found[section] = config[section].copy_and_resolve_references()
    found.train.steps = steps
    changes = {**PLAIN, **({MULTI_GRID: (1,) * network.units} if network.units else {})}
    for key, value in changes.items():
        _set(found, key, value)
    return found


def key_of(config: ConfigDict, start: str = "") -> str:
    """Return a hash of all settings on which a training's weights depend, except the seed.

    Defaults are left out. So a new key of the configuration does not change the hashes of older results. `start` is the
    key of the training whose backbone it starts from, "" where there is none.
    """
    plain = to_plain(config)
    for name in OUTSIDE_KEY:
        section, key = name.split(".")[1:]
        del plain[section][key]
    del plain["evaluate"]
    plain["init"] = fingerprint(Path(plain["init"], WEIGHTS_FILE)) if plain["init"] else start
    plain["module"] = fingerprint(Path(plain["module"])) if plain["module"] else ""
    return _hash(beyond(to_plain(base()), plain))


def initial_weights(folder: str, backbone: str) -> str:
    """Return the model folder of a backbone: a folder of that name in `folder`, or else `folder` itself.

    Raises:
      UserError: there are no weights in it.
    """
    named = Path(folder, backbone)
    chosen = named if named.is_dir() else Path(folder)
    if not (chosen / WEIGHTS_FILE).is_file():
        raise UserError(
            f"--init {folder}: no {WEIGHTS_FILE} in it or in {named}; give a model folder as `convert` writes it, or a "
            f"folder that holds model folders called {backbone} and so on"
        )
    return str(chosen)


@cache
def fingerprint(file: Path) -> str:
    """Return a short hash of a file's content, wherever the file is."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def check_init(rows: Iterable[tuple[Table, Row]], regime: Regime, init: str, *, needed: bool) -> None:
    """Raise a UserError where weights are `needed` and none are given for a row that starts from pre-trained weights,
    and where weights are given that no row starts from.
    """
    used = False
    for table, row in rows:
        if not regime.why_not(row) and (network := regime.network(row.train["model.name"])).pretrained:
            used = True
            if needed and not init:
                raise UserError(
                    f"{table.name} in regime {regime.name} starts from pre-trained weights: give --init FOLDER, a "
                    f"model folder of {network.backbone} as `python -m deeplab_jax convert` writes it"
                )
    if init and not used:
        raise UserError(
            f"--init {init}: none of these rows starts from given weights in regime {regime.name}; leave it out"
        )


def beyond(defaults: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a plain configuration that differ from the defaults."""
    found = {}
    for key, value in plain.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = beyond(default, value), {}
        if value != default:
            found[key] = value
    return found


def _set_options(config: ConfigDict, network: Network, *, besides: Iterable[str] = ()) -> None:
    """Set a network's options, except those that the arguments `--config.key=value` in `besides` set."""
    named = {word.split("=", 1)[0].removeprefix("--config.") for word in besides}
    for option, value in network.options.items():
        if (key := f"model.options.{option}") not in named:
            _set(config, key, value)


def _check_keys(keys: Iterable[str], config: ConfigDict, where: str) -> None:
    """Raise a UserError for a change of a key that neither the configuration nor the model has. Options of data are
    free here: the data set refuses those that it does not know.
    """
    options = (f"model.options.{name}" for name in known_options(config.model.name, module=config.module))
    known = {*_flat(config), *options}
    for key in keys:
        if key not in known and not key.startswith("data.options."):
            raise UserError(f"{where}: {key} is no key of the configuration: {did_you_mean(key, known)}")


def _change(config: ConfigDict, key: str, value: Any, where: str) -> None:
    """Set a value of a row."""
    try:
        _set(config, key, value)
    except TypeError:  # A ConfigDict keeps the types of its values.
        raise UserError(f"{where}: {key} is {value!r}; give a value such as {_flat(config).get(key)!r}") from None


def _flat(config: ConfigDict) -> dict[str, Any]:
    """Return all values by their dotted keys."""
    found: dict[str, Any] = flatten_dict(config.to_dict(), sep=".")
    return found


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    part: Any = config
    for section in sections:
        part = part[section]
    part[name] = value


def _hash(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
