"""What the user got wrong: one line on stderr that names it, exit code 2, no traceback, and nothing lost."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import commands
from deeplab_jax.cli import main
from deeplab_jax.config import split_config_arguments
from deeplab_jax.weights.folder import save
from tests.support.layouts import data_arguments, write_pair
from tests.support.tiny import tiny_model

ROOT = Path(__file__).resolve().parent.parent
SCENES = f"{ROOT}/configs/scenes.py:debug"
FOLDER = f"{ROOT}/configs/folder.py:debug"

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of nine classes, as many as `scenes` has."""
    made = tiny_model("cascade_tiny", num_classes=9)
    return save(tmp_path_factory.mktemp("model") / "nine", *made, {"class_names": list("abcdefghi")})


def tiny_training(*words):
    """Train `cascade_tiny` on the folder data set."""
    return ["train", "--config", FOLDER, "--config.model.name=cascade_tiny", *words]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: VERB"),
        (["trian"], "'trian'.*train"),
        (
            ["train", "--workdir", "x"],
            r"config: no configuration is named; give --config .* such as configs/scenes\.py",
        ),
        (
            ["train", "--config.train.steps=3", "--workdir", "x"],
            r"steps=3: no configuration is named; give --c",
        ),
        (["train", "--config", SCENES], "required: --workdir"),
        (["train", "--config", SCENES, "--workdir", "x", "--alow_config_change"], "did you mean --allow_config_change"),
        (["train", "--config", "gone.py", "--workdir", "x"], r"config file 'gone\.py' does not exist"),
        (
            ["train", "--config", SCENES, "--workdir", "x", "--config.train.stepz=3"],
            r"did you mean --config\.train\.steps",
        ),
        (
            ["train", "--config", SCENES, "--workdir", "x", "--config.train.steps", "many"],
            "steps=many: give a whole number",
        ),
        (["train", "--config", f"{SCENES},dbug", "--workdir", "x"], "'dbug' is not known: did you mean debug"),
        (["evaluate", "--model", "gone", "--out", "x"], "gone: no such folder"),
        (["evaluate", "--model", "gone", "--out", "x", "--config.data.dir=y"], "gone: no such folder"),
        (["evaluate", "--model", "gone", "--out", "x", "--scales", "1,two"], "--scales: '1,two': give numbers"),
        (["evaluate", "--model", "gone", "--out", "x", "--mode", "paded"], "--mode: invalid choice: 'paded'.*padded"),
        (
            ["evaluate", "--model", "gone", "--out", "x", "--flop"],
            "--flop is not an option of this verb: did you mean --flip",
        ),
        (["evaluate", "--model", "gone", "--out", "x", "--limit", "few"], "--limit: invalid int value: 'few'"),
        (["predict", "--model", "gone", "--out", "x"], "required: IMAGE_OR_FOLDER"),
        (
            ["predict", "--modle", "gone", "a.jpg"],
            "predict: --modle is not an option of this verb: did you mean .*--model",
        ),
        (["evaluate", "--model=gone", "--uot=x"], "--uot is not an option of this verb: did you mean --out"),
        (["predict", "--model", "gone", "--out", "x", "gone.jpg"], r"gone\.jpg: no such file or folder"),
        (
            ["predict", "--model", "gone", "--out", "x", "--config", SCENES, "a.jpg"],
            "--config is not an option of this verb",
        ),
        (["check-data", "extra"], "'extra': no option takes it; leave it out, or write its option before it"),
        (
            ["train", "--config", SCENES, "--steps", "3"],
            r"--steps is not an .*: did you mean --config\.train\.steps=3\?$",
        ),
        (["train", "--config", SCENES, "--data.dir=a b"], r"did you mean '--config\.data\.dir=a b'\?$"),
        (["find-lr", "--lr", "--config"], r"did you mean --config\.optimizer\.learning_rate=\?$"),
        (
            ["train", "--batch-size", "8", "--config", SCENES],
            r"did you mean --config\.train\.batch_size=8, --config\.evaluate\.batch_size=8\?$",
        ),
        (["summarize", "--steps", "3"], "--steps is not an option of this verb: did you mean|choose"),
        (
            ["check-data", "--config", SCENES, "--config.data.value_range=0-255"],
            r"value_range=\('0-255',\): give two values, low and high, such as 0,4095; each item is a number",
        ),
        (["check-data", "--confg", SCENES], "--confg is not an option of this verb: did you mean --config"),
        (["evaluate", "--model", "x" * 300, "--out", "x"], "File name too long; give a shorter name|no such folder"),
        (["predict", "--model", "gone", "--out", "x", "y" * 300], "File name too long; give a shorter name|no such"),
        (["check-data", "--config", f"{ROOT}/configs/folder.py:steps=-5"], "'steps=-5': give steps= a number of 0"),
        (
            ["train", "--config", SCENES, "--config.evaluate.scales=(255,)", "--workdir", "x"],
            r"config\.evaluate\.scales=\(255.*\): give one or more positive factors, at most 32, from 0\.01 to 16",
        ),
        (
            ["train", "--config", SCENES, "--config.evaluate.overlap=1.0", "--workdir", "x"],
            r"config\.evaluate\.overlap=1\.0: give a share of a window",
        ),
        (["check-data"], "config: no configuration is named; give --config the path"),
        (["check-data", "--config", SCENES, "--json", ""], "argument --json: empty: give a path"),
        (["evaluate", "--model", "runs/first", "--out", ""], "argument --out: empty: give a path"),
        (["predict", "--model", "runs/first", "--out", "out", ""], "argument IMAGE_OR_FOLDER: empty: give a path"),
        (["check-data", "--config", SCENES, "--split", "vall"], "no split 'vall'; did you mean val"),
        (["check-data", "--config", f"{ROOT}/configs/camvid.py", "--config.data.dir=gone"], "gone: no such folder"),
        (["check-data", "--config", f"{ROOT}/configs/camvid.py"], r"set --config\.data\.dir"),
        (["check-data", "--config", SCENES, "--config.data.name=scnes"], "'scnes'; did you mean scenes"),
        (["prepare", "--config", SCENES], "required: --out"),
    ],
)
def test_words_that_make_no_sense(complain, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, complain(*words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--config.model.name=deeplabv3plus_resnet19",
            "'deeplabv3plus_resnet19' is not known: did you mean deeplabv3plus_res",
        ),
        ("--config.model.output_stride=7", "7"),
        ("--config.train.batch_size=0", "batch_size=0: give at least 1"),
        ("--config.train.devices=99", "devices=99: there are"),
        ("--config.optimizer.learning_rate=-0.1", "learning_rate=-0.1: give 0 or more"),
        ("--config.train.class_weights=(1.0,-2.0)", r"class_weights=\(1.0, -2.0\): give 0 or more"),
        ("--config.train.class_weights=(1.0,2.0)", "class_weights has 2 values, the data has 9 classes"),
        ("--config.data.crop_size=65", r"crop_size=\(65,\): give a height and a width"),
        ("--config.optimizer.freeze=('bakbone',)", "config.optimizer.freeze: 'bakbone' matches no parameter"),
    ],
)
def test_settings_that_make_no_sense(complain, tmp_path, word, message) -> None:
    assert re.search(message, complain("train", "--config", SCENES, "--workdir", tmp_path / "run", word))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("use", [lambda _: bytearray(2**60), lambda _: jnp.zeros(2**50, jnp.uint8)])
def test_training_that_does_not_fit_is_one_line(complain, monkeypatch, use) -> None:
    """Neither Python nor XLA has so much."""
    monkeypatch.setattr(commands, "train", use)
    assert re.search(
        r"train: out of memory \(.*\); lower config\.train\.batch_size or config\.data\.crop_size, or set config",
        complain("train", "--config", SCENES, "--workdir", "x"),
    )


# Data.


@pytest.fixture
def data(tmp_path):
    """The folder data set and the arguments that read it."""
    return tmp_path / "data", data_arguments("folder", tmp_path / "data")


def spoil_value(root):
    for mask in (root / "masks").iterdir():
        Image.fromarray(np.full((40, 52), 200, np.uint8)).save(mask)


def spoil_size(root):
    for mask in (root / "masks").iterdir():
        Image.fromarray(np.zeros((10, 12), np.uint8)).save(mask)


def spoil_image(root):
    for image in (root / "images").iterdir():
        image.write_bytes(image.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_value, r"masks/\d+\.png: mask values 200 are none of those expected \(0 to 1, 255\)"),
        (spoil_size, r"masks/\d+\.png: mask of 12x10 pixels for an image of 52x40"),
        (spoil_image, r"images/\d+\.png: truncated"),
        (lambda root: (root / "masks/3.png").unlink(), r"images/3\.png: no mask"),
        (lambda root: Image.new("RGB", (52, 40)).save(root / "masks/3.png"), None),
    ],
    ids=["value", "size", "truncated", "unpaired", "colour"],
)
def test_training_and_checking_name_the_file_that_is_wrong(complain, data, tmp_path, spoil, message, capsys) -> None:
    root, words = data
    spoil(root)
    if message is not None:
        line = complain(*tiny_config_words(tmp_path), *words, "--workdir", tmp_path / "run")
        assert re.search(message, line), line
    # check-data reports all of them on stdout, and fails.
    assert main(["check-data", "--config", FOLDER, *words]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert re.search(r"\d+\.png", printed.out)


def tiny_config_words(tmp_path):
    """The words that train the tiny network, from a copy of the config: its options are other ones."""
    config = tmp_path / "tiny.py"
    text = Path(f"{ROOT}/configs/folder.py").read_text()
    lines = "    config.model.name = 'cascade_tiny'\n    config.model.options = ConfigDict({})\n    return config\n"
    config.write_text(text.replace("    return config\n", lines))
    return ["train", "--config", f"{config}:debug"]


def test_a_mask_that_is_wrong_late_stops_the_run_with_a_line(complain, data, tmp_path) -> None:
    """One bad mask among twelve: met at whatever step, and the checkpoint before it is kept."""
    root, words = data
    Image.fromarray(np.full((40, 52), 200, np.uint8)).save(root / "masks/7.png")
    options = ["--config.train.steps=30", "--config.train.checkpoint_every=1"]
    line = complain(*tiny_config_words(tmp_path), *words, *options, "--workdir", tmp_path / "run")
    assert "mask values 200" in line


# Models.


def test_classes_that_do_not_match(complain, model, data, tmp_path) -> None:
    line = complain("evaluate", "--model", model, "--config", FOLDER, *data[1], "--out", tmp_path / "out")
    assert "the model has 9 classes, folder has 2" in line
    assert not (tmp_path / "out").exists()


def test_a_model_folder_does_not_say_which_data(complain, model, tmp_path) -> None:
    assert "give --config" in complain("evaluate", "--model", model, "--out", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window", "65"], r"window=\(65,\): give a height and a width"),
        (["--window", "0,65"], r"window=\(0, 65\)"),
        (["--scales", "0"], r"scales=\(0\.0,\): give one or more positive factors"),
        (["--output_stride", "7"], "7"),
        (["--output_stride", "-8"], "-8"),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_views_that_make_no_sense(complain, model, tmp_path, verb, words, message) -> None:
    write_pair(tmp_path / "image.png", None, values=())
    target = ["--config", SCENES] if verb == "evaluate" else [tmp_path / "image.png"]
    line = complain(verb, "--model", model, "--out", tmp_path / "out", *words, *target)
    assert re.search(message, line), line


def test_a_start_that_saved_nothing_takes_its_corrected_command(complain, data, tmp_path) -> None:
    words = [*tiny_config_words(tmp_path), *data[1], "--workdir", tmp_path / "run"]
    assert "no such folder" in complain(*words, f"--config.init={tmp_path / 'nowhere'}")
    assert main([str(word) for word in words]) == 0
    assert "holds a run of another configuration" in complain(*words, "--config.train.seed=7")


@pytest.mark.parametrize("more", [[], ["--config.train.steps=9"]])
def test_a_run_without_its_configuration_is_told_where_that_is(complain, tmp_path, more) -> None:
    own = tmp_path / "my run" / "config.json"
    own.parent.mkdir()
    own.write_text("{}")
    line = complain("train", "--workdir", own.parent, *more)
    assert line.endswith(f"train: --config is missing; to resume this run, give --config '{own}'")


def test_checkpoints_of_other_networks_list_what_does_not_fit(complain, data, tmp_path) -> None:
    words = [*tiny_config_words(tmp_path), *data[1], "--workdir", tmp_path / "run"]
    assert main([str(word) for word in words]) == 0
    words[-3] = "--config.data.options.class_names=('a','b','c')"
    line = complain(*words)
    assert re.search("holds a run of another configuration .*class_names: .*--allow_config_change", line)
    line = complain(*words, "--allow_config_change")
    assert re.search(r"classifier/kernel is \(1, 1, 16, 2\), the model has \(1, 1, 16, 3\)", line)
    # From a run directory, as a start for other classes.
    line = complain(*words[:-1], tmp_path / "other", f"--config.init={tmp_path / 'run'}")
    assert re.search(r"does not fit the model: .*classifier/bias is \(2,\), the model has \(3,\)", line)
    # The run itself is as it was.
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0


def test_predictions_never_overwrite_images(complain, model, tmp_path) -> None:
    write_pair(tmp_path / "image.png", None, values=())
    before = (tmp_path / "image.png").read_bytes()
    assert "would overwrite" in complain("predict", "--model", model, "--out", tmp_path, tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == before


# Files.


def test_places_that_cannot_be_written(complain, model, data, tmp_path) -> None:
    (tmp_path / "file").touch()
    blocked = tmp_path / "file" / "out"
    write_pair(tmp_path / "image.png", None, values=())
    for words in (
        ["predict", "--model", model, tmp_path / "image.png", "--out", blocked],
        ["evaluate", "--model", model, "--config", SCENES, "--limit", 1, "--out", blocked],
        ["evaluate", "--model", model, "--config", SCENES, "--limit", 1, "--save_predictions", "--out", blocked],
        ["prepare", "--config", SCENES, "--out", blocked],
        ["check-data", "--config", SCENES, "--limit", 1, "--json", blocked],
        [*tiny_config_words(tmp_path), *data[1], "--workdir", blocked],
    ):
        assert str(tmp_path / "file") in complain(*words)


def test_a_disk_that_is_full_is_a_line_and_keeps_the_older_checkpoint(complain, data, tmp_path, monkeypatch) -> None:
    import errno

    import orbax.checkpoint as ocp

    words = [*tiny_config_words(tmp_path), *data[1], "--workdir", tmp_path / "run"]
    words += ["--config.train.steps=3", "--config.train.checkpoint_every=1"]
    save_one = ocp.StandardCheckpointHandler.save

    def full(self, folder, **options):
        if not folder.parent.name.startswith("1"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_one(self, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "save", full)
        line = complain(*words)
    assert re.search(r"checkpoint of step 2 could not be saved \(.*No space left on device\); step 1 is intact", line)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize(
    ("words", "lists"),
    [
        (["weights", "zzz"], "python -m deeplab_jax weights"),
        (["summarize", "zzz"], "python -c 'import deeplab_jax; print(*deeplab_jax.model_names())'"),
    ],
)
def test_a_long_list_is_cut_and_the_command_that_prints_it_is_named(complain, words, lists) -> None:
    line = complain(*words)
    assert f"more (all: {lists})" in line and len(line) < 400


def test_config_arguments_are_told_from_the_rest() -> None:
    words = ["--config", "a.py", "--config.train.steps=3", "--config.data.dir", "d", "--workdir", "x"]
    assert split_config_arguments(words) == (
        ["--config=a.py", "--config.train.steps=3", "--config.data.dir=d"],
        ["--workdir", "x"],
    )
    assert split_config_arguments(["--configuration=3", "--config"]) == (["--config"], ["--configuration=3"])
