"""Configs: arguments, overrides, and refusals that name the fix."""

import contextlib
import dataclasses
import inspect
import json
import logging
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from deeplab_jax import config_keys as keys
from deeplab_jax.config import base, load_config, parse_arg, read_config, shrink, to_plain
from deeplab_jax.config_keys import Augment
from deeplab_jax.config_values import check
from deeplab_jax.data.augment import augment
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.loader import skipped_examples, training_batches
from deeplab_jax.data.sampling import sampling_of
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.models.catalog import create_model, model_names
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.schedules import make_schedule
from deeplab_jax.train.step import summed_loss, train_step
from deeplab_jax.train.workdir import differences

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
SCENES = f"--config={CONFIGS[0].parent}/scenes.py"


def file_of(tmp_path, body, name="mine.py"):
    """A config file whose `get_config` has this body after `config = base()`."""
    lines = ["from deeplab_jax.config import base", "def get_config(arg=None):", "    config = base()"]
    file = tmp_path / name
    file.write_text("\n".join([*lines, *(f"    {line}" for line in body), "    return config"]) + "\n")
    return f"--config={file}"


def test_the_words_may_be_those_of_a_shell_or_the_file_alone() -> None:
    file = SCENES.removeprefix("--config=")
    assert load_config(f"{file}:debug").train.steps == load_config(Path(f"{file}:debug")).train.steps == 2
    assert load_config(["--config", file, "--config.train.steps", "7"]).train.steps == 7
    with pytest.raises(UserError, match="'gone.py' does not exist"):
        load_config("gone.py")


def test_a_dictionary_on_the_command_line_is_read_as_pairs() -> None:
    words = [f"--config={CONFIGS[0].parent}/folder.py", "--config.data.options.value_map={0:0,255:1}"]
    words += ["--config.data.options.palette={0: (0, 0, 0)}", "--config.data.options.split_lists={'train': 'a.txt'}"]
    options = load_config(words).data.options
    assert options.value_map == ((0, 0), (255, 1)) and options.palette == ((0, (0, 0, 0)),)
    assert options.split_lists.to_dict() == {"train": "a.txt"}


# Arguments after the colon.


def test_parse_arg_reads_flags_and_values_of_the_type_of_their_default() -> None:
    args = parse_arg("backbone=resnet101,debug,steps=7,rate=1e-3", backbone="resnet50", steps=3, rate=0.5)
    assert (args.backbone, args.debug, args.steps, args.rate) == ("resnet101", True, 7, 1e-3)
    for nothing in (None, "", ","):
        assert parse_arg(nothing, steps=3).to_dict() == {"debug": False, "steps": 3}


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("dbug", "config argument 'dbug' is not known: did you mean debug"),
        ("step=3", "config argument 'step=3' is not known: did you mean steps"),
        ("steps=-1", "config argument 'steps=-1': give steps= a number of 0 or more"),
        ("steps=many", "config argument 'steps=many': give steps= a value of type int"),
        ("debug=false", "config argument 'debug=false' is not known: did you mean debug"),
    ],
)
def test_parse_arg_refuses_other_words(arg, message) -> None:
    with pytest.raises(UserError, match=message):
        parse_arg(arg, steps=3)


# Loading.


def test_overrides_apply_and_keep_the_types() -> None:
    words = ["--config.train.steps=9", "--config.data.crop_size=(65,97)", "--config.optimizer.learning_rate=1"]
    words += ["--config.optimizer.multipliers=(('classifier',10.0),)", "--config.data.flip=false"]
    config = load_config([f"{SCENES}:debug", *words, "--config.model.options.width=1.5"])
    assert config.train.steps == 9 and config.data.crop_size == (65, 97) and config.data.flip is False
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
    assert config.optimizer.multipliers == (("classifier", 10.0),)
    assert config.model.options.width == 1.5


def test_a_whole_number_does_not_say_that_fractions_do_not_fit() -> None:
    words = [SCENES, "--config.model.options.width=1", "--config.model.options.width=0.5"]
    assert load_config(words).model.options.width == 0.5


def test_options_are_set_in_their_order() -> None:
    words = [f"--config.model.options.width={width}" for width in (1, 2, 1)]
    assert load_config([SCENES, *words]).model.options.width == 1


def test_options_need_not_be_in_the_file() -> None:
    words = ["dtype=bfloat16", "separable=true", "aspp_rates=(2,4)", "dropout=0.5", "norm=none"]
    config = load_config([SCENES, *(f"--config.model.options.{word}" for word in words)])
    expected = {"dtype": "bfloat16", "separable": True, "aspp_rates": (2, 4), "dropout": 0.5, "norm": "none"}
    assert {**config.model.options.to_dict(), **expected} == config.model.options.to_dict()
    assert create_model(config.model.name, **config.model.options).settings.dtype == "bfloat16"
    config = load_config([SCENES, "--config.model.options.widht=1", "--config.data.options.cuont=3"])
    with pytest.raises(UserError, match="option 'widht' has no meaning for .*: did you mean width"):
        create_model(config.model.name, **config.model.options)
    with pytest.raises(UserError, match="data set 'scenes' has no option 'cuont'; did you mean count"):
        open_source("scenes", split="val", **config.data.options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.train.stepz=3"], r"there is no key config\.train\.stepz; did you mean --config\.train\.steps"),
        (["--config.trian.steps=3"], r"there is no key config\.trian; did you mean --config\.train\?$"),
        (
            ["--config.data.augment.rotate=30"],
            r"no key config\.data\.augment\.rotate; did you mean --config\.data\.augment\.rotation",
        ),
        (["--config.model.options.width=wide"], r"config\.model\.options\.width is 'wide'; give a number$"),
        (["--config.model.options.norm={1}"], r"config\.model\.options\.norm is \{1\}; give a number, text"),
        (["--config.model.options.decoder_convs=3"], r"config\.model\.options\.decoder_convs is 3; give a list$"),
        (
            ["--config.model.options.decoder_convs=(a,'b')"],
            r"""decoder_convs is "\(a,'b'\)"; give a list: "--config\.model\.options\.decoder_convs=\('a', 'b'\)"$""",
        ),
        (["--config.model.options.decoder_convs=('a')"], r"""give a list: "--config\.\S+=\('a',\)"$"""),
        (["--config.train.steps=many"], "flag --config.train.steps=many: give a whole number$"),
        (["--config.train.steps=1.5"], "flag --config.train.steps=1.5: give a whole number$"),
        (["--config.train.remat=maybe"], "flag --config.train.remat=maybe: give true or false$"),
        (["--config.optimizer.learning_rate=x"], "flag --config.optimizer.learning_rate=x: give a number$"),
        (["--config.data.flip=maybe"], "flag --config.data.flip=maybe"),
        (["--config.train=3"], "flag --config.train=3"),
        (["--config.train.steps"], "Missing value for flag --config.train.steps"),
    ],
)
def test_overrides_that_do_not_fit_are_user_errors(words, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config([f"{SCENES}:debug", *words])
    assert str(caught.value).startswith("config ") and "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (["config.train.stepz = 3"], 'line 4: Key "stepz" does not exist .* Did you mean "steps"'),
        (["config.trian = 3"], 'line 4: Key "trian" does not exist .* Did you mean "train"'),
        (["", "config.train.steps = 'many'"], "line 5: steps is many; give a whole number$"),
        (["config.train.class_weights = 3"], "line 4: class_weights is 3; give a list$"),
        (
            ["config.data.options.value_map = ()", "config.data.options.value_map = {0: 0, 255: 1}"],
            r"line 5: value_map is a dictionary; give pairs: value_map = \(\(0, 0\), \(255, 1\)\)$",
        ),
        (["unknown_name()"], "line 4: name 'unknown_name' is not defined"),
        (["import no_such_module"], "line 4: No module named 'no_such_module'"),
        (["x = 1 / 0"], "line 4: division by zero"),
        (["x = {}['medium']"], "line 4: no key medium$"),
        (["x ="], "line 4: invalid syntax"),
    ],
)
def test_errors_in_a_config_file_name_its_line(tmp_path, body, message) -> None:
    argument = file_of(tmp_path, body)
    with pytest.raises(UserError, match=message) as caught:
        load_config([argument])
    assert str(tmp_path / "mine.py") in str(caught.value)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_what_a_config_file_raises_for_its_argument_stays_one_line() -> None:
    with pytest.raises(UserError, match=r"scenes\.py:dbug: config argument 'dbug' is not known: did you mean debug\?$"):
        load_config([f"{SCENES}:dbug"])
    with pytest.raises(UserError, match=r"config argument 'steps=x': give steps= a value of type int$"):
        load_config([f"--config={CONFIGS[0].parent}/camvid.py:steps=x"])
    with pytest.raises(UserError, match=r"voc\.py:stage=3: config argument 'stage=3': give stage=1 or stage=2$"):
        load_config([f"--config={CONFIGS[0].parent}/voc.py:stage=3"])


@pytest.mark.parametrize(
    ("line", "key"),
    [('config.data = {"name": "scenes"}', "data.dir"), ("del config.train.seed", "train.seed")],
)
def test_a_config_file_that_drops_keys_is_a_user_error(tmp_path, line, key) -> None:
    with pytest.raises(UserError, match=rf"there is no key config\.{key}; let get_config start from .*base\(\)$"):
        load_config([file_of(tmp_path, ["config.unlock()", line])])


@pytest.mark.parametrize("argument", ["--config=gone.py", "--config=gone.py:debug", "--config=", "--config=."])
def test_missing_config_files_are_user_errors(argument) -> None:
    with pytest.raises(UserError, match=r"does not exist: give --config the path of a file such as configs/scenes\.py"):
        load_config([argument])


@pytest.mark.parametrize("words", [(), ("--config.train.steps=many",)])
def test_loading_leaves_the_messages_of_absl_to_others(words) -> None:
    logger = logging.getLogger("absl")
    level = logger.level
    with contextlib.suppress(UserError):
        load_config([SCENES, *words])
    assert logger.level == level <= logging.WARNING


@pytest.mark.parametrize("argument", ["--config", "--config.train.steps=3"])
def test_words_that_name_no_config_file_are_user_errors(argument) -> None:
    message = rf"^{argument}: no configuration is named; give --config the path of a file such as configs/scenes\.py$"
    with pytest.raises(UserError, match=message):
        load_config([argument])


# The configs themselves.


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("arg", ["", ":debug"])
def test_every_config_has_the_base_keys_and_no_others(path, arg) -> None:
    config, defaults = load_config([f"--config={path}{arg}"]), base()
    assert set(config) == set(defaults)
    for section in defaults:
        assert set(config[section]) == set(defaults[section]), section
    json.dumps(to_plain(config))
    assert f"configs/{path.name}" in path.read_text().split('"""')[1]  # The docstring has the command.
    if arg:
        assert config.train.steps == 2 and config.train.devices == 1


def test_shrink_makes_any_config_small() -> None:
    config = base()
    config.optimizer.freeze = ("norm",)
    config.init, config.init_scope = "models/resnet101", "backbone"
    shrink(config)
    assert (config.init, config.init_scope) == ("", "all")
    assert config.model.name == "deeplabv3plus_resnet18" and config.model.options.width == 0.125
    assert config.train.steps == config.train.batch_size == 2
    assert config.data.crop_size == (65, 65) and config.optimizer.freeze == ()


@pytest.mark.parametrize("name", model_names())
def test_debug_shrinks_any_model_to_options_that_it_has(name, monkeypatch) -> None:
    monkeypatch.setattr("deeplab_jax.models.catalog.check_output_stride", lambda model, **_: None)
    config = load_config([f"{SCENES}:model={name},debug"])
    assert config.model.name.split("_")[0] == name.split("_")[0]
    assert create_model(config.model.name, **config.model.options)
    config = load_config([f"{SCENES}:model={name}"])
    assert config.model.name == name
    assert create_model(name, **config.model.options)


def test_options_take_any_key() -> None:
    """What a model or a data set takes is theirs to say."""
    config = base()
    config.model.options.width = 0.5
    config.data.options = ConfigDict({"anything": 1})
    with pytest.raises((AttributeError, KeyError)):
        config.train.anything = 1


# The keys.


@pytest.mark.parametrize(
    ("section", "function"),
    [
        (keys.Papers, augment),
        (keys.Loader, training_batches),
        (keys.Sampling, sampling_of),
        (keys.Skipping, skipped_examples),
        (keys.Schedule, make_schedule),
        (keys.Updates, make_optimizer),
        (keys.Objective, summed_loss),
        (keys.Step, train_step),
        (keys.Protocol, Protocol),
    ],
)
def test_a_section_holds_keyword_arguments_with_the_defaults_of_the_function(section, function) -> None:
    taken = inspect.signature(function).parameters
    for one in dataclasses.fields(section):
        assert one.name in taken
        if taken[one.name].default is not inspect.Parameter.empty and one.name != "loss":
            assert taken[one.name].default == one.default, one.name


@dataclasses.dataclass(frozen=True)
class Made:
    """A key of each kind."""

    count: int = keys.key(3, 1)
    share: float = keys.key(0.5, 0, 1, give="a share")
    pairs: tuple[tuple[str, float], ...] = ()
    two: tuple[int, int] = (1, 2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, r"^mine: config\.made\.count=0: give at least 1$"),
        ("share", 2.0, r"^mine: config\.made\.share=2\.0: give a share$"),
        ("share", float("inf"), r"^mine: config\.made\.share=inf: give a finite number$"),
        ("pairs", (("a", "b"),), "give a list; each item is a text and a number$"),
        ("two", (1, 2, 3), r"^mine: config\.made\.two has 3 values; give 2$"),
    ],
)
def test_a_new_key_is_checked_by_its_line(monkeypatch, name, value, message) -> None:
    config = ConfigDict({**base(), "made": keys.defaults(Made)})
    monkeypatch.setattr(
        "deeplab_jax.config_values.keys_of_sections", lambda: {f"made.{f.name}": f for f in dataclasses.fields(Made)}
    )
    check(config, name="mine")
    config.made[name] = value
    with pytest.raises(UserError, match=message):
        check(config, name="mine")


def test_a_section_in_a_section_has_keys_with_limits_and_survives_json(tmp_path) -> None:
    assert keys.keys_of_sections()["data.augment.rotation"].metadata["high"] == 180
    assert "data.augment" not in keys.keys_of_sections() and "init" not in keys.keys_of_sections()
    assert Augment(**base().data.augment) == Augment()
    plain = to_plain(base())
    plain["data"]["augment"] = {"resize": [40, 50], "rotation": 3, "jpeg": 5}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(plain))
    config = read_config(file)
    assert Augment(**config.data.augment) == Augment(resize=(40, 50), rotation=3.0, jpeg=5)
    assert differences(to_plain(base()), to_plain(config))[0] == "config.data.augment.jpeg: 0 -> 5"
    del plain["data"]["augment"]  # As in run directories of before.
    file.write_text(json.dumps(plain))
    assert differences(to_plain(base()), to_plain(read_config(file))) == []
    for key, value, message in (
        ("rotation", 181, r"config\.data\.augment\.rotation=181\.0: give 0 to 180"),
        ("rotatoin", 1, "there is no key 'data.augment.rotatoin': did you mean rotation"),
        ("blur", "much", r"data\.augment\.blur is 'much'; give a number"),
    ):
        file.write_text(json.dumps({"data": {"augment": {key: value}}}))
        with pytest.raises(UserError, match=message):
            read_config(file)


def test_a_function_gets_its_part_of_a_section() -> None:
    section = keys.defaults(keys.Train)
    section.top_k, section.steps = 0.5, 7
    taken = keys.arguments(section, keys.Objective)
    assert taken["top_k"] == 0.5 and "steps" not in taken
    assert {*keys.arguments(base().model, keys.Model)} == {"name", "output_stride", "options"}


# On disk.


def test_a_config_survives_json(tmp_path) -> None:
    config = load_config([f"{SCENES}:debug"])
    (tmp_path / "config.json").write_text(json.dumps(to_plain(config)))
    assert differences(to_plain(read_config(tmp_path / "config.json")), to_plain(config)) == []
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not a readable configuration"):
        read_config(tmp_path / "config.json")
