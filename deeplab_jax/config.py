"""The default configuration; each file in `configs/` states its differences from it.

`config_keys` lists its keys, each with its default and meaning.
"""

import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from deeplab_jax.config_keys import defaults
from deeplab_jax.config_values import WORDS, check, fill, literal, set_option
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.extensions import allow
from deeplab_jax.files import read_json, with_home

CONFIG_FILE, RUN_FILE = "config.json", "run.json"
"""The files of a run directory that hold its configuration, and the record of its starts."""
# An argument of the command line that sets an option of a model or a data set: section, key, value.
OPTION = re.compile(r"--config\.(model|data)\.options\.(\w+)=(.*)", re.DOTALL)
# ml_collections' message for a value of another type than the key's.
OTHER_TYPE = re.compile(
    r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '([\w.]+)'> "
    r"and cannot be casted to type <class '(\w+)'>"
)
# absl's messages for a flag value of another type, and the fixes.
FLAG_FIXES = {
    "Non-boolean argument": "give true or false",
    "invalid literal for int()": "give a whole number",
    "could not convert string to float": "give a number",
}


def base() -> ConfigDict:
    """Return the defaults: the protocol of DeepLabv3 (sec. 4.1) and of its authors' code, as far as it does not depend
    on the data set.

    Two things of that code are left out: its dropout of 0.1 after the ASPP, and its rule that the kernels of depthwise
    convolutions do not decay. The model's option `dropout`, and `depthwise/conv/kernel$` in `optimizer.no_decay`, add
    them.
    """
    return defaults()


# Options that make a head small, for `shrink`.
SMALL_HEADS: dict[str, dict[str, Any]] = {
    "deeplabv3": {"aspp_channels": 8},
    "deeplabv3plus": {"aspp_channels": 8, "decoder_convs": ((3, 8),)},
    **{name: {"fc_channels": 8} for name in ("largefov", "parsenet", "fcn32s", "fcn16s", "fcn8s")},
    "refinenet": {"decoder_channels": (8, 8, 8, 8)},
    "pspnet": {"context_channels": 8},
    "spp": {"context_channels": 8},
}


def choose_model(config: ConfigDict, name: str, *, heads: Mapping[str, Any] | None = None, **common: Any) -> None:
    """Set the name of the model, and its options: the common ones and those in `heads` for its architecture."""
    config.model.name = name
    config.model.options = ConfigDict({**common, **(heads or {}).get(name.split("_")[0], {})})


def train_on_few_images(config: ConfigDict, model: str, *, steps: int) -> None:
    """Set a recipe for some hundred or thousand images and one device: a small network, small crops and Adam.

    A run of less than 1000 steps needs running statistics that forget the first weights sooner.
    """
    choose_model(config, model, width=0.5, norm_momentum=0.99 if steps >= 1000 else 0.9)
    config.data.crop_size = (257, 257)
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = min(100, steps // 10)
    config.train.steps = steps


def authors_weight_decay(model: str) -> float:
    """Return the weight decay for a model's backbone in the authors' train.py; the papers state none."""
    return 1e-4 if "resnet" in model else 4e-5


def shrink(config: ConfigDict) -> None:
    """Apply the argument `debug`: a config that runs in seconds on a CPU, on the same data."""
    architecture = config.model.name.split("_")[0]
    name = f"{architecture}_resnet18" if architecture.startswith("deeplabv3") else config.model.name
    normalised = {"norm_momentum": 0.9} if "norm_momentum" in config.model.options else {}
    choose_model(config, name, heads=SMALL_HEADS, width=0.125, **normalised)
    config.data.crop_size = (65, 65)
    config.optimizer.freeze = ()
    config.train.update(
        {
            "steps": 2,
            "epochs": 0.0,
            "batch_size": 2,
            "devices": 1,
            "space": 1,
            "accumulate": 1,
            "log_every": 1,
            "pictures": 1,
            "class_weights": (),
        }
    )
    config.init, config.init_scope = "", "all"
    config.evaluate.pad_to = ()


def parse_arg(arg: str | None, *, flags: Sequence[str] = ("debug",), **defaults: Any) -> ConfigDict:
    """Read a config's argument such as `"backbone=resnet101,debug"`.

    Args:
      arg: the part after the colon of `--config configs/NAME.py:arg`; None or "" is empty.
      flags: words without a value; they are True if given, otherwise False.
      **defaults: names with a value, and their defaults, whose types the values get.

    Returns:
      All flags and names.

    Raises:
      UserError: an unknown word or a value of another type.
    """
    values: dict[str, Any] = {**dict.fromkeys(flags, False), **defaults}
    for word in filter(None, (arg or "").split(",")):
        name, equals, value = word.partition("=")
        if name not in values or (name in flags and equals):
            raise UserError(f"config argument {word!r} is not known: {did_you_mean(name, values)}")
        if name in flags:
            values[name] = True
            continue
        try:
            values[name] = type(values[name])(value)
        except ValueError:
            raise UserError(
                f"config argument {word!r}: give {name}= a value of type {type(values[name]).__name__}"
            ) from None
        if isinstance(values[name], int | float) and values[name] < 0:
            raise UserError(f"config argument {word!r}: give {name}= a number of 0 or more")
    return ConfigDict(values)


def split_config_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the `--config...` words, written with "=", from the rest."""
    config, unknown = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if word.split("=")[0].split(".")[0] != "--config":
            unknown.append(word)
        elif "=" in word or not words:
            config.append(word)
        else:
            config.append(f"{word}={words.pop(0)}")
    return config, unknown


def load_config(argv: str | Path | Sequence[str]) -> ConfigDict:
    """Load `--config FILE[:arg]` and apply `--config.section.key=value` to it.

    The words may be those of a shell, with "=" or as two words. A single text, or a path, is that of the file.

    A Python file is run. A `.json` file, such as the `config.json` of a run directory, only changes values of `base`.
    `--config.model.options.KEY` and `--config.data.options.KEY` need not be in the file: the model or the data set
    refuses unknown keys.

    Raises:
      UserError: a file that does not exist, an error in it (with its line), an unknown key, or a value of another type.
    """
    words = [f"--config={argv}"] if isinstance(argv, str | Path) else argv
    argv = [with_home(word) for part in split_config_arguments(words) for word in part]
    options = [match for word in argv if (match := OPTION.fullmatch(word))]  # In their order.
    argv = [word for word in argv if not OPTION.fullmatch(word)]
    path, file = _config_file(argv)
    values = flags.FlagValues()
    if is_json := Path(file).suffix.lower() == ".json":
        argv = [word for word in argv if not word.startswith("--config=")]
        define = partial(config_flags.DEFINE_config_dict, config=read_config(Path(file)))
    else:
        define = config_flags.DEFINE_config_file
    absl_logging.use_absl_handler()
    logger = logging.getLogger("absl")
    shown = logger.level
    logger.setLevel(logging.CRITICAL)  # It would log what is raised.
    try:
        define("config", lock_config=True, flag_values=values, sys_argv=["deeplab_jax", *argv])
        values(["deeplab_jax", *argv], known_only=False)
        config: ConfigDict = values["config"].value
        for section, key, text in (match.groups() for match in options):
            set_option(config[section].options, key, text, name=f"config {path}", prefix=f"config.{section}.options.")
    except UserError:
        raise
    except Exception as error:  # Errors of the file, and of the parsers of its keys.
        raise UserError(f"config {path}: {_unknown_key(argv) or _complaint(error, file)}") from None
    finally:
        logger.setLevel(shown)
    check(config, name=path)
    state_val_rule(config.data, "share")
    if not is_json:  # A Python file is code itself; JSON may come from anybody.
        allow(config.module)
    return config


def _config_file(argv: Sequence[str]) -> tuple[str, str]:
    """Return what the one `--config=FILE[:arg]` names, and its file, Python or JSON, which can be read.

    Raises:
      UserError: there is none, more than one, or not such a file.
    """
    given = [word.split("=", 1)[1] for word in argv if word.startswith("--config=")]
    if len(given) > 1:
        raise UserError(f"--config is given {len(given)} times ({', '.join(given)}); give it once")
    if not given:
        raise UserError(
            f"{' '.join(argv) or 'config'}: no configuration is named; give --config the path of a file such as "
            "configs/scenes.py"
        )
    file, arg = _split(given[0])
    kind = Path(file).suffix.lower()
    if not Path(file).is_file():
        raise UserError(
            f"config file {file!r} does not exist: give --config the path of a file such as configs/scenes.py, seen "
            f"from this folder, {Path.cwd()}"
        )
    if kind not in (".py", ".json"):  # No other file, such as a config.json.old, is run by mistake.
        raise UserError(f"config file {file!r} is neither Python nor JSON by its name; give a .py or a .json file")
    try:
        Path(file).open("rb").close()
    except OSError as error:
        raise UserError(f"config file {file!r} cannot be read ({error.strerror}); allow access to it") from None
    if kind == ".json" and arg is not None:
        raise UserError(f"config file {file!r} is JSON, which takes no argument ':{arg}'; leave it out")
    return given[0], file


def _split(path: str) -> tuple[str, str | None]:
    """Split `FILE[:arg]` at the first colon, as ml_collections does for files that it runs; a JSON name may have a
    colon.
    """
    if path.lower().endswith(".json") and Path(path).is_file():
        return path, None
    file, colon, arg = path.partition(":")
    return file, arg if colon else None


def _complaint(error: BaseException, file: str) -> str:
    """Return in one line the fault of a config file, with its line, or of a `--config.key=value`."""
    chain = [error]
    # The parsers wrap the file's error, with its whole traceback as text.
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and not chain[-1].__suppress_context__:
        chain.append(inner)
    if isinstance(chain[-1], UserError):
        return str(chain[-1])
    for cause in reversed(chain):
        lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == file]
        if isinstance(cause, SyntaxError):
            lines.append(cause.lineno)
        if lines:
            text = _of_another_type(_without_list_of_keys(cause))
            only_a_key = isinstance(cause, KeyError) and " " not in text
            return f"line {lines[-1]}: {'no key ' if only_a_key else ''}{text}"
    text = _without_list_of_keys(error)
    if isinstance(error, flags.IllegalFlagValueError):
        flag, _, reason = text.partition(": ")
        text = f"{flag}: {next((fix for part, fix in FLAG_FIXES.items() if part in reason), reason)}"
    unknown_key = isinstance(error, KeyError | AttributeError) and "has no attribute" not in text
    return f"there is no key {text}" if unknown_key else text


def _of_another_type(text: str) -> str:
    """Return ml_collections' message about a value of another type with the fix, or another message as it is."""
    match = OTHER_TYPE.fullmatch(text)
    words = {kind.__name__: word for kind, word in WORDS.items()}
    if match is None or match[4] not in words:
        return text
    key, value, given, kind = match.groups()
    if kind == "tuple" and given.endswith("ConfigDict"):  # As YAML: 0: 0 255: 1.
        pairs = tuple((literal(name), literal(to)) for name, to in re.findall(r"'?([^\s':]+)'?: (\S+)", value))
        return f"{key} is a dictionary; give pairs: {key} = {pairs}"
    return f"{key} is {value:.100}; give a {words[kind]}"


def _unknown_key(argv: Sequence[str]) -> str:
    """Return the fault of the first `--config.section.key=value` that names no key, with the nearest; "" if all do."""
    for word in argv:
        prefix, *keys = word.partition("=")[0].split(".")
        section: Any = base() if prefix == "--config" else None
        for last in keys:
            if not isinstance(section, ConfigDict) or not section.is_locked:
                break
            prefix += "."
            if last not in section:
                near = did_you_mean(last, list(section), prefix=prefix)
                return f"there is no key {prefix.removeprefix('--')}{last}; {near}"
            prefix, section = prefix + last, section[last]
    return ""


def _without_list_of_keys(error: BaseException) -> str:
    """Return an error's text without line breaks and without ml_collections' list of all keys."""
    text = str(error.args[0]) if error.args else type(error).__name__
    text = re.sub(r'Other fields present: "\{.*\}"', "", text.replace("\\n", " ").replace("\\'", "'"), flags=re.DOTALL)
    text = " ".join(text.split())
    # A KeyError's text is the repr of its key, and an AttributeError's text may contain one.
    while len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return text


def to_plain(config: Any) -> Any:
    """Turn a config, or a part of it, into dictionaries, lists and scalars, as in JSON."""
    if isinstance(config, ConfigDict | Mapping):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config


def read_config(path: Path) -> ConfigDict:
    """Read a config from JSON, as in run directories; missing keys have their defaults.

    Raises:
      UserError: it cannot be read, an unknown key, or a value of another type.
    """
    try:
        plain = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable configuration ({error}); give another --config") from None
    config = base()
    if isinstance(plain, dict) and path.name == CONFIG_FILE and (path.parent / RUN_FILE).is_file():
        state_val_rule(plain.get("data"), "hash")
    try:
        fill(config, plain, name=str(path))
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # A ConfigDict refuses some keys, such as one with a dot.
        raise UserError(f"{path}: {_without_list_of_keys(error)}") from None
    check(config, name=str(path))
    return config


def state_val_rule(data: Any, rule: str) -> None:
    """Put the rule by which data set 'folder' holds images out into a section `data`, if it holds some out and states
    no rule.

    Until the rule "share" came, the rule was "hash", and configurations did not state it. So a run's own `config.json`
    without one means "hash": the run keeps its validation images. Any other configuration means "share".

    Args:
      data: a section, or what a JSON file has in its place.
      rule: "share" or "hash".
    """
    options = data.get("options") if isinstance(data, ConfigDict | dict) else None
    if (
        isinstance(options, ConfigDict | dict)
        and data.get("name") == "folder"
        and options.get("val_fraction") is not None
    ):
        options["val_rule"] = options.get("val_rule") or rule
