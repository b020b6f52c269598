"""`train`, `evaluate`, `predict` and `check_data` from a program: the commands' numbers, functions that are called, and
parts of one's own.
"""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image
from rich.console import Console

import deeplab_jax
from deeplab_jax.checkpoint import Checkpoints
from deeplab_jax.cli import main
from deeplab_jax.config import base, to_plain
from deeplab_jax.data.catalog import open_source
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.results import summarize_confusion, unlabelled
from deeplab_jax.labels import LabelSet, colormap
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.losses import LOSSES
from deeplab_jax.tasks import evaluation
from deeplab_jax.tasks.arguments import config_of, or_of_run
from deeplab_jax.train.from_config import build_model, model_for
from deeplab_jax.train.given import Given, recorded
from deeplab_jax.train.record import RECORD_FILE
from deeplab_jax.train.replay import replay
from deeplab_jax.train.signals import Interrupted
from deeplab_jax.weights.folder import CHECKPOINTS
from tests.support.layouts import data_arguments, write_pair
from tests.support.tiny import (
    MadeUp,
    TinyBackbone,
    assert_same_arrays,
    quiet,
    read_checkpoint,
    read_metrics,
    tiny_config,
    tiny_model,
)

pytestmark = pytest.mark.usefixtures("tiny_networks")


def train(workdir, config=None, **options):
    return deeplab_jax.train(tiny_config() if config is None else config, workdir, console=quiet(), **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(workdir)
    return workdir


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 35, 3), np.uint8)).save(file)
    return file


def assert_same_end(workdir, undisturbed) -> None:
    assert_same_arrays(read_checkpoint(workdir, 6), read_checkpoint(undisturbed, 6))
    last = [read_metrics(each)[-1] for each in (workdir, undisturbed)]
    assert last[0] == last[1] and "val/miou" in last[0]


# The commands and the functions are the same code.


def test_the_command_line_gives_the_same_numbers(tmp_path, undisturbed, photo, capsys) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_plain(tiny_config())))
    assert main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert read_metrics(tmp_path / "run") == read_metrics(undisturbed)
    assert_same_end(tmp_path / "run", undisturbed)

    words = ["--output_stride=8", "--scales=0.75,1", "--flip", "--limit=3"]
    assert main(["evaluate", f"--model={undisturbed}", f"--out={tmp_path / 'cli'}", *words]) == 0
    how = {"output_stride": 8, "scales": (0.75, 1.0), "flip": True, "limit": 3}
    results = deeplab_jax.evaluate(undisturbed, out=tmp_path / "python", **how)
    written = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cli", "python")]
    assert written[1] == json.loads(json.dumps(results)) and results["protocol"]["images"] == 3
    assert written[0] | {"seconds": 0} == written[1] | {"seconds": 0}

    assert main(["predict", f"--model={undisturbed}", f"--out={tmp_path / 'p1'}", str(photo)]) == 0
    done = deeplab_jax.predict(undisturbed, photo, tmp_path / "p2", say=lambda line: None)
    assert done.files == {photo: tmp_path / "p2" / "photo.png"} and not done.failed
    assert done.page == tmp_path / "p2" / "index.html" and done.page.is_file()
    for name in ("photo.png", "photo_overlay.png"):
        assert (tmp_path / "p1" / name).read_bytes() == (tmp_path / "p2" / name).read_bytes()

    capsys.readouterr()
    assert main(["check-data", f"--config={file}", "--limit=2"]) == 0
    reports = deeplab_jax.check_data(str(file), limit=2)
    assert capsys.readouterr().out == f"{reports}\n" and reports.ok and list(reports) == ["train", "val"]
    assert reports["val"].checked == 2


def test_objects_and_paths_evaluate_alike(tmp_path, undisturbed) -> None:
    model, variables, _ = deeplab_jax.load(undisturbed)
    protocol = deeplab_jax.Protocol(pad_to=((33, 33),))
    ours = deeplab_jax.evaluate(model, variables, MadeUp(((33, 33), (20, 30)), classes=9), protocol, batch_size=2)
    named = deeplab_jax.evaluate(undisturbed, source=MadeUp(((33, 33), (20, 30)), classes=9))
    assert ours["confusion_matrix"] == named["confusion_matrix"] and ours["protocol"] == named["protocol"]
    with pytest.raises(UserError, match=r"^evaluate\(model, variables\): .*; give source= or config=$"):
        deeplab_jax.evaluate(model, variables)
    folder = deeplab_jax.save(tmp_path / "folder", model, variables, {})
    with pytest.raises(
        UserError, match=r"folder: .*; give --config configs/NAME.py \(in Python: config= or source=\)$"
    ):
        deeplab_jax.evaluate(folder)
    with pytest.raises(UserError, match="argument 'flip'"):
        deeplab_jax.evaluate(model, variables, SOURCES[1], protocol, flip=True)
    with pytest.raises(UserError, match="no weights"):
        deeplab_jax.evaluate(model)


def test_classes_are_compared_by_their_names(tmp_path, capsys) -> None:
    """A class in another place would be scored as another class."""
    info = {"class_names": ["road", "tree", "car"], "palette": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]}
    model = deeplab_jax.create_model("deeplabv3_tiny", num_classes=3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)), train=False)
    folder = deeplab_jax.save(tmp_path / "folder", model, variables, info)
    fix = r"give the data those of the model: \"--config\.data\.options\.class_names=\('road', 'tree', 'car'\)\"$"
    for names in (("road", "car", "tree"), ("road", "car")):
        with pytest.raises(UserError, match=fix):
            deeplab_jax.evaluate(folder, source=MadeUp(((33, 33),), classes=len(names), names=names))
    assert deeplab_jax.evaluate(folder, source=MadeUp(((33, 33),), classes=3, names=("road", "tree", "car")))
    assert capsys.readouterr().err == ""
    assert deeplab_jax.evaluate(folder, source=MadeUp(((33, 33),), classes=3, names=("way", "tree", "car")))
    assert "the model calls its classes ('road', 'tree', 'car'), and" in capsys.readouterr().err


def test_stored_values_are_compared_with_those_of_the_model(tmp_path) -> None:
    data_arguments("folder", tmp_path / "data")
    model, variables = tiny_model("cascade_tiny", num_classes=2)
    pairs = [[0, 1], [1, 0]]

    def evaluated(known: list[list[int]] | None, **options: Any) -> dict[str, Any]:
        info = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [1, 0, 0]], "value_map": known}
        folder = deeplab_jax.save(tmp_path / "model", model, variables, info)
        source = open_source("folder", dir=tmp_path / "data", split="all", class_names=("a", "b"), **options)
        return deeplab_jax.evaluate(folder, source=source, pad_to=((65, 65),))

    fixes = r"map=\(\(0,1\),\(1,0\)\)\".*map=\(\(0,0\),\(1,1\),\(255,255\)\)\"$"
    with pytest.raises(UserError, match=f"^folder: .* training had other values; .*{fixes}"):
        evaluated(pairs)
    assert evaluated(pairs, value_map=pairs)["protocol"]["images"] == 12
    assert evaluated(None)["protocol"]["images"] == 12
    assert evaluated(pairs, value_map=((0, 0), (1, 1)))["protocol"]["images"] == 12  # The data say what they mean.
    # A value that class ids cannot be, as in CamVid's map.
    assert evaluated([[0, 0], [1, 1], [11, 255]])["protocol"]["images"] == 12


def test_classes_without_a_label_are_said_once(tmp_path, capsys) -> None:
    """255 of black and white masks is the ignore label, so without a map the object is never learned."""
    data = tmp_path / "data"
    for index in range(12):
        write_pair(data / f"images/{index}.png", data / f"masks/{index}.png", values=(0, 255), seed=index)
    options = {"class_names": ("background", "crack"), "val_fraction": 0.2, "val_rule": "share"}
    of_data = {"data.name": "folder", "data.dir": str(data), "data.options": options}
    said, line = io.StringIO(), "class 1 (crack): in no label of val; run check-data"
    config = tiny_config(**of_data, **{"train.steps": 2, "train.evaluate_every": 1})
    deeplab_jax.train(config, tmp_path / "run", console=Console(file=said, width=200))
    assert said.getvalue().count(f"note: {line}\n") == 1
    capsys.readouterr()
    deeplab_jax.evaluate(tmp_path / "run")
    assert capsys.readouterr().err == f"{line}\n"
    for crack, complaint in ((255, "every label of val is ignored, so nothing is measured; run check-data\n"), (1, "")):
        found = {0: crack, 255: crack} if crack == 255 else {0: 0, 255: 1}
        more = {"class_names": options["class_names"], "value_map": found}
        deeplab_jax.evaluate(tmp_path / "run", source=open_source("folder", dir=data, split="all", **more))
        assert capsys.readouterr().err == complaint


def test_a_share_of_another_folder_is_said(tmp_path, capsys) -> None:
    """Where the folder is that of the training, the other images are those of the training."""
    model, variables = tiny_model("cascade_tiny", num_classes=2)
    folder = deeplab_jax.save(tmp_path / "model", model, variables, {})
    options = {"class_names": ("ground", "crack"), "val_fraction": 0.2, "val_rule": "share"}
    own, other = tmp_path / "own", tmp_path / "other"
    data_arguments("folder", own)
    config = tiny_config(**{"data.name": "folder", "data.dir": str(own), "data.options": options})

    def said(config: Any = None, **how: Any) -> tuple[int, str]:
        images = deeplab_jax.evaluate(folder, config=config, **how)["protocol"]["images"]
        return images, capsys.readouterr().err

    fix = "if the model was trained on none of them, --split all evaluates all"
    note = f"val: 2 of 12 images, by val_fraction; {fix}\n"
    assert said(config) == (2, note)  # A model folder does not say what it was trained on.
    (folder / "config.json").write_text(config.to_json())
    assert said() == (2, "")
    shutil.copytree(own, other)
    elsewhere = [f"--config.data.dir={other}"]
    assert said(elsewhere) == (2, note)
    assert said(elsewhere, split="all") == (12, "")
    for kind in ("images", "masks"):  # With folders for the splits, no rule divides them.
        shutil.rmtree(other / kind)
        shutil.copytree(own / kind, other / kind / "train")
        shutil.copytree(own / kind, other / kind / "val")
    assert said(elsewhere) == (12, "")


def test_at_most_six_classes_without_a_label_are_named() -> None:
    labels = LabelSet(tuple("abcdefghi"), colormap(9))
    results = {**summarize_confusion(np.diag([5, *[0] * 8]), labels), "protocol": {"split": "val"}}
    assert unlabelled(results) == (
        "classes 1 (b), 2 (c), 3 (d), 4 (e), 5 (f), 6 (g) and 2 more: in no label of val; run check-data"
    )
    assert unlabelled({**results, "per_class": results["per_class"][:1]}) == ""


def test_a_run_goes_on_with_the_classes_that_it_began_with(tmp_path, undisturbed) -> None:
    """Files name the classes of some data sets, so these may change between two starts."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    description = json.loads((workdir / "model.json").read_text())
    names = description["info"]["class_names"]
    description["info"]["class_names"] = [names[1], names[0], *names[2:]]
    (workdir / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="the run began with the classes .*, and the data now have .*give another"):
        train(workdir)
    assert json.loads((workdir / "model.json").read_text()) == description
    train(workdir, tiny_config(**{"train.steps": 7}), allow_config_change=True)
    assert json.loads((workdir / "model.json").read_text())["info"]["class_names"] == names


def test_a_protocol_keeps_the_configurations_batch_size_and_patience(undisturbed) -> None:
    protocol = deeplab_jax.Protocol(flip=True)
    settings = tiny_config(**{"evaluate.batch_size": 3, "train.devices": 1, "data.timeout": 5.0})
    made, rest = evaluation._protocol_and_arguments, {"devices": 1, "timeout": 5.0}
    assert made(protocol, settings, {"limit": 2}) == (protocol, {"batch_size": 3, "limit": 2, **rest})
    assert made(protocol, settings, {"batch_size": 5}) == (protocol, {"batch_size": 5, **rest})
    assert made(protocol, None, {"limit": 2}) == (protocol, {"limit": 2})
    found, how = made(None, settings, {"flip": True, "limit": 2})
    assert found.flip and found.pad_to == ((33, 33),) and how == {"batch_size": 3, "limit": 2, **rest}
    found, how = made(None, None, {"scales": (0.5,)})
    assert found.scales == (0.5,) and how == {}


def test_saving_predictions_leaves_the_callers_function_its_calls(tmp_path, undisturbed) -> None:
    seen = {}
    deeplab_jax.evaluate(
        undisturbed,
        out=tmp_path,
        save_predictions=True,
        on_prediction=lambda example, ids: seen.update({example["name"]: ids}),
        limit=2,
    )
    assert len(seen) == 2
    for name, ids in seen.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{name}.png")), ids)


def test_a_frozen_configuration_is_one() -> None:
    config = FrozenConfigDict(tiny_config())
    assert deeplab_jax.check_data(config, split="val", limit=1).ok
    assert to_plain(config_of(config)) == to_plain(tiny_config())


def test_a_configuration_can_be_the_words_of_a_command(repo_root) -> None:
    config = config_of([f"--config={repo_root / 'configs/scenes.py'}:debug", "--config.train.steps=9"])
    assert (config.train.steps, config.model.options.width) == (9, 0.125)
    with pytest.raises(UserError, match=r"there is no key config\.train\.stepz"):
        config_of([f"--config={repo_root / 'configs/scenes.py'}", "--config.train.stepz=9"])


def test_words_that_name_no_file_change_the_configuration_of_the_run(undisturbed, tmp_path) -> None:
    config = config_of(or_of_run(["--config.evaluate.flip=true"], undisturbed))
    assert config.evaluate.flip and config.train.steps == config_of(or_of_run(None, undisturbed)).train.steps
    named = ["--config=configs/scenes.py", "--config.evaluate.flip=true"]
    assert or_of_run(named, undisturbed) == named
    assert or_of_run([], tmp_path) is None and or_of_run(None, tmp_path) is None


def test_predict_names_what_failed(tmp_path, undisturbed, photo) -> None:
    bad, said = tmp_path / "bad.png", []
    bad.write_text("no image")
    done = deeplab_jax.predict(undisturbed, [photo, bad], tmp_path / "out", say=said.append, fail=said.append)
    assert list(done.files) == [photo] and list(done.failed) == [bad] and str(bad) in done.failed[bad]
    assert said[0] == done.failed[bad] and said[1] == f"1 of 2 images segmented into {tmp_path / 'out'}"


def test_a_config_may_be_a_file_with_its_argument(tmp_path, repo_root) -> None:
    reports = deeplab_jax.check_data(f"{repo_root}/configs/scenes.py:debug", split="val", limit=1)
    assert list(reports) == ["val"] and "1 of " in str(reports)


def test_what_is_wrong_is_said_in_one_line(tmp_path, undisturbed, photo) -> None:
    config = tiny_config()
    config.train.unlock()
    config.train.stepz = 3
    for wrong, words in (
        (config, r"config: there is no key 'train\.stepz': did you mean steps"),
        ("configs/none.py", "config file 'configs/none.py' does not exist"),
        (ConfigDict({"train": {}}), "let it start from deeplab_jax.config.base"),
        ({"train": {"steps": 3}}, "let it start from deeplab_jax.config.base"),
    ):
        with pytest.raises(UserError, match=words) as error:
            train(tmp_path / "run", wrong)
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="argument 'output_strid': did you mean output_stride"):
        deeplab_jax.evaluate(undisturbed, output_strid=8)
    with pytest.raises(UserError, match="argument 'widnow': did you mean window"):
        deeplab_jax.predict(undisturbed, photo, tmp_path, widnow=(33, 33))
    with pytest.raises(UserError, match="ids='clases': did you mean classes"):
        deeplab_jax.predict(undisturbed, photo, tmp_path, ids="clases")
    with pytest.raises(UserError, match="probabilities=True: choose from npy, png"):
        deeplab_jax.predict(undisturbed, photo, tmp_path, probabilities=True)
    with pytest.raises(UserError, match="give the folder to write to, out="):
        deeplab_jax.evaluate(undisturbed, save_predictions=True)
    with pytest.raises(UserError, match="checkpoint 7: choose from best, newest, "):
        deeplab_jax.evaluate(undisturbed, checkpoint=7)


def test_a_folder_that_cannot_be_made_is_told_before_the_evaluation(tmp_path, undisturbed) -> None:
    (tmp_path / "file").touch()
    seen = []
    with pytest.raises(UserError, match="file/out: cannot be written .*; give another --out"):
        deeplab_jax.evaluate(undisturbed, out=tmp_path / "file" / "out", on_prediction=lambda *one: seen.append(one))
    assert not seen


def test_a_run_of_more_devices_is_evaluated_on_those_that_are_there(monkeypatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    for trained, devices, used in ((8, 0, 2), (1, 0, 1), (0, 0, 0), (8, 3, 3)):
        settings = tiny_config(**{"train.devices": trained, "evaluate.devices": devices})
        assert evaluation._protocol_and_arguments(None, settings, {})[1]["devices"] == used


def test_a_finished_run_answers_from_its_record(undisturbed) -> None:
    again = train(undisturbed)
    last = json.loads((undisturbed / RECORD_FILE).read_text().splitlines()[-1])
    assert again["step"] == 6 and again["miou"] == last["val/miou"] and again["workdir"] == str(undisturbed)
    assert {row["name"]: row["iou"] for row in again["per_class"]} == {
        name.removeprefix("val/iou/"): value for name, value in last.items() if name.startswith("val/iou/")
    }


# Functions that are called.


def test_functions_see_what_the_record_has(tmp_path, undisturbed) -> None:
    steps, evaluations = {}, {}
    config = tiny_config(**{"train.log_every": 2})
    results = train(tmp_path, config, on_step=steps.__setitem__, on_evaluation=evaluations.__setitem__)
    assert list(steps) == [1, 2, 4, 6] and list(evaluations) == [3, 6]
    assert evaluations[6] == {key: value for key, value in results.items() if key != "workdir"}
    lines = [json.loads(line) for line in (tmp_path / RECORD_FILE).read_text().splitlines()]
    for step, metrics in steps.items():
        (line,) = [line for line in lines if line["step"] == step and "train/loss" in line]
        assert {f"train/{name}": value for name, value in metrics.items()} | {"step": step} == line
    assert_same_end(tmp_path, undisturbed)


def raising(at, error):
    """A function that raises at one step."""

    def function(step, metrics):
        if step == at:
            raise error

    return function


def test_a_failing_function_costs_nothing(tmp_path, undisturbed) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, on_step=raising(2, ZeroDivisionError()))
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == 2
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, on_evaluation=raising(3, ZeroDivisionError()))
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == 3 and checkpoints.metrics(3) != {}
    seen = []
    train(tmp_path, on_evaluation=lambda step, metrics: seen.append(step))
    assert seen == [6]  # That of step 3 is not repeated.
    assert read_metrics(tmp_path) == read_metrics(undisturbed)
    assert_same_end(tmp_path, undisturbed)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("which", "at"), [("on_step", 2), pytest.param("on_evaluation", 3, marks=SLOW)])
def test_a_function_that_returns_true_ends_the_run_and_the_same_call_goes_on(tmp_path, undisturbed, which, at) -> None:
    results = train(tmp_path, **{which: lambda step, metrics: step == at})
    assert results["step"] == at and 0 <= results["miou"] <= 1
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == at and checkpoints.metrics(at) != {}
    assert train(tmp_path)["step"] == 6
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("which", "at"),
    [pytest.param("on_step", 2, marks=SLOW), pytest.param("on_evaluation", 3, marks=SLOW), ("on_evaluation", 6)],
)
def test_a_keyboard_interrupt_in_a_function_is_a_ctrl_c(tmp_path, undisturbed, which, at) -> None:
    with pytest.raises(Interrupted, match=f"stopped at step {at} of 6, which is saved"):
        train(tmp_path, **{which: raising(at, KeyboardInterrupt())})
    assert train(tmp_path)["step"] == 6
    assert read_metrics(tmp_path) == read_metrics(undisturbed)
    assert_same_end(tmp_path, undisturbed)


# Parts of one's own.


def doubled(logits, labels, **options):
    total, count, right = LOSSES["cross_entropy"](logits, labels, **options)
    return 2 * total, count, right


SOURCES = MadeUp(((33, 33),) * 5), MadeUp(((33, 33),) * 2, name="held out")


def own_parts():
    """All parts, made anew as in another process."""
    backbone = TinyBackbone()
    model = deeplab_jax.create_model("cascade_tiny", num_classes=4, norm_momentum=0.9)
    composed = Segmenter(backbone=backbone, num_classes=4, output_stride=16, preprocessing=model.preprocessing)
    schedule = optax.cosine_decay_schedule(0.01, 6)
    return {
        "sources": SOURCES,
        "model": composed,
        "loss": doubled,
        "optimizer": optax.adamw(schedule),
        "schedule": schedule,
    }


@SLOW
def test_a_run_of_own_parts_goes_on_bit_for_bit(tmp_path, capsys) -> None:
    config = tiny_config()
    train(tmp_path / "whole", config, **own_parts())
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "parts", config, **own_parts(), on_step=raising(4, ZeroDivisionError()))
    deeplab_jax.train(config, tmp_path / "parts", **own_parts())
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert_same_arrays(*(read_checkpoint(tmp_path / name, 6) for name in ("parts", "whole")))
    names = [
        "sources=MadeUp and MadeUp",
        "model=Segmenter",
        "loss=doubled",
        "optimizer=GradientTransformationExtraArgs",
    ]
    own = json.loads((tmp_path / "whole" / "config.json").read_text())["own"]
    assert own[:4] == names and own[4].startswith("schedule=cosine_decay_schedule")
    note = "the run directory holds the names of these objects, not the objects; a start that goes on needs the same"
    assert capsys.readouterr().out.count(note) == 1
    rates = [line["train/learning_rate"] for line in read_metrics(tmp_path / "whole") if "train/loss" in line]
    np.testing.assert_allclose(rates, [0.005 * (1 + np.cos(np.pi * step / 6)) for step in range(6)], rtol=1e-5)

    # What is missing is refused, and what no file can describe has to be given again.
    with pytest.raises(UserError, match=r"config\.own: \['sources=MadeUp and MadeUp'.* -> \[\]"):
        train(tmp_path / "whole", config)
    changed = own_parts() | {"loss": LOSSES["cross_entropy"]}
    with pytest.raises(UserError, match=r"config\.own: .*loss=doubled.* -> .*loss=cross_entropy"):
        train(tmp_path / "whole", config, **changed)
    assert main(["evaluate", f"--model={tmp_path / 'whole'}", f"--out={tmp_path / 'out'}"]) == 2
    assert "composed in Python" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"composed in Python.*deeplab_jax\.load\(.*model=\.\.\.\)"):
        deeplab_jax.load(tmp_path / "whole")
    model, variables, info = deeplab_jax.load(tmp_path / "whole", model=own_parts()["model"])
    assert info["data"] == "made up"
    results = deeplab_jax.evaluate(model, variables, SOURCES[1], deeplab_jax.Protocol(pad_to=((33, 33),)))
    Image.fromarray(SOURCES[1][0]["image"]).save(tmp_path / "a.png")
    done = deeplab_jax.predict((model, variables, info), tmp_path / "a.png", tmp_path / "seen", say=str)
    assert done.files and np.asarray(Image.open(tmp_path / "seen" / "a.png")).max() < 4
    assert results["miou"] == pytest.approx(info["metrics"]["miou"]) and results["model"] is None


def test_a_named_model_of_ones_own_is_held_by_the_run(tmp_path, undisturbed, capsys) -> None:
    """The run is that of the same names, so the command line goes on with it."""
    model = deeplab_jax.create_model("cascade_tiny", num_classes=9, norm_momentum=0.9)
    config = tiny_config()
    config.model.name, config.model.options = base().model.name, ConfigDict({})
    before = to_plain(config)
    train(tmp_path, config, model=model, on_step=lambda step, metrics: step == 2)
    assert to_plain(config) == before
    assert json.loads((tmp_path / "config.json").read_text())["own"] == []
    assert main(["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path}"]) == 0
    assert_same_end(tmp_path, undisturbed)
    with pytest.raises(UserError, match=r"model: it has 9 classes, the data has 4; give create_model\(.*num_classes=4"):
        train(tmp_path / "other", config, model=model, sources=SOURCES)


@SLOW
def test_a_loss_that_equals_a_named_one_trains_alike(tmp_path, undisturbed) -> None:
    train(tmp_path, loss=LOSSES["cross_entropy"])
    assert_same_end(tmp_path, undisturbed)


def test_an_optimizer_without_a_known_rate_and_with_frozen_parameters(tmp_path, capsys) -> None:
    config = tiny_config(**{"train.steps": 2, "train.checkpoint_every": 1, "optimizer.freeze": ("^backbone/stem",)})
    deeplab_jax.train(config, tmp_path, optimizer=optax.sgd(0.1))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2: loss")]
    assert len(said) == 1 and "learning rate" not in said[0] and "nan" not in said[0]
    assert all("train/learning_rate" not in line for line in read_metrics(tmp_path))
    before, after = (read_checkpoint(tmp_path, step) for step in (1, 2))
    changed = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert any("'deep'" in name for name in changed) and not any("'stem'" in name for name in changed)


def test_a_schedule_has_to_be_a_function_of_jax(tmp_path) -> None:
    with pytest.raises(UserError, match="schedule: TracerBoolConversionError.*give a function of JAX operations"):
        train(tmp_path / "run", schedule=lambda step: 0.1 if step < 3 else 0.01)
    with pytest.raises(UserError, match=r"schedule: it returns an array of shape \(2,\)"):
        train(tmp_path / "run", schedule=lambda step: jnp.zeros(2))
    assert not (tmp_path / "run").exists()


def test_parts_of_another_kind_are_named(tmp_path) -> None:
    for wrong, words in (
        ({"sources": SOURCES[0]}, "sources: give two"),
        ({"sources": ("a", "b")}, "sources: 'a' is no source, it has no name; see deeplab_jax.data.source.Source"),
        ({"sources": (SOURCES[0], MadeUp((), classes=3))}, "^sources: split .* classes .*; give both the same labels$"),
        ({"model": TinyBackbone()}, "model: TinyBackbone is no Segmenter"),
        ({"optimizer": 0.1}, "optimizer: float is none of optax"),
        ({"loss": "dice"}, "loss: 'dice' is no function"),
        ({"on_step": True}, "on_step: True is no function"),
    ):
        with pytest.raises(UserError, match=words):
            train(tmp_path / "run", **wrong)


def test_a_list_of_sources_is_recorded_as_a_pair_of_them() -> None:
    pair, listed = (recorded(tiny_config(), Given(sources=sources)).own for sources in (SOURCES, list(SOURCES)))
    assert pair == listed == ("sources=MadeUp and MadeUp",)


BGR = (2, 1, 0)


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize(
    ("configured", "options", "reads"),
    [
        ({}, {}, ((), ())),
        ({}, {"channels": BGR, "stored_range": (0, 1000)}, (BGR, (0, 1000))),
        ({"channels": BGR, "value_range": (0, 1000)}, {"channels": BGR, "stored_range": (0, 1000)}, (BGR, (0, 1000))),
        ({"channels": BGR}, {"channels": (1, 2, 3)}, r"config\.data\.channels=\(2, 1, 0\): .* channels=\(1, 2, 3\); "),
        (
            {"value_range": (0, 9)},
            {"stored_range": (0, 8)},
            r"config\.data\.value_range=\(0, 9\): .*stored_range=\(0, 8\)",
        ),
        ({"channels": BGR, "value_range": (0, 9)}, {}, (BGR, (0, 9))),
        ({"channels": (0, 1, 2, 3)}, {"in_channels": 4}, ((0, 1, 2, 3), ())),
    ],
)
def test_the_model_or_the_configuration_says_how_files_are_read(composed, configured, options, reads) -> None:
    """What is trained reads as the configuration of the run says, and so does what is loaded from it."""
    model = deeplab_jax.create_model("cascade_tiny", num_classes=4, **options)
    if composed:
        model = model.clone(recipe="")
    config = tiny_config(**{f"data.{key}": value for key, value in configured.items()})
    if composed and configured.get("value_range") and not options:  # The network could not be told.
        reads = r"config\.data\.channels=\(2, 1, 0\): .*; make it with channels=\(2, 1, 0\), or leave out config"
    if isinstance(reads, str):
        with pytest.raises(UserError, match=reads):
            recorded(config, Given(model=model))
        return
    config = recorded(config, Given(model=model))
    assert (config.data.channels, config.data.value_range) == reads
    trained = model_for(config, SOURCES[0].labels, model)
    assert trained.preprocessing.bands == reads[0] and trained.preprocessing.stored_range == reads[1]
    assert composed or trained == build_model(config, num_classes=4)


def test_a_model_of_bands_needs_image_files(tmp_path) -> None:
    model = deeplab_jax.create_model("cascade_tiny", num_classes=9, channels=BGR)
    with pytest.raises(UserError, match="'scenes': it does not read bands .*, and in Python the model's channels and"):
        train(tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()


def test_a_post_mortem_of_a_network_of_ones_own_is_not_taken_for_another(tmp_path) -> None:
    """Its parts differ from those of its name, so the name would describe another network."""
    model = deeplab_jax.create_model("cascade_tiny", num_classes=9, norm_momentum=0.9)
    model = model.clone(backbone=model.backbone.clone(settings=LayerSettings(norm_momentum=0.5)))

    def infinite(logits, labels, **options):
        total, count, right = doubled(logits, labels, **options)
        return total / 0.0, count, right

    with pytest.raises(UserError, match="see python -m deeplab_jax replay"):
        train(tmp_path, model=model, loss=infinite)
    for folder in (tmp_path, tmp_path / "postmortem"):
        assert json.loads((folder / "model.json").read_text())["model"] is None
    with pytest.raises(
        UserError, match=r"config\.own: model=Segmenter was an object .*; only what a configuration names"
    ):
        replay(tmp_path / "postmortem")


def test_parts_that_no_file_holds_are_refused_elsewhere(tmp_path, capsys) -> None:
    train(tmp_path / "run", tiny_config(**{"train.steps": 1}), sources=SOURCES, loss=doubled)
    config = tmp_path / "run" / "config.json"
    again, elsewhere = "give it again, as in deeplab_jax.", "give a configuration that names one instead"
    for words, fix in (
        (
            ["evaluate", f"--model={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"],
            f"{again}evaluate('{tmp_path}/run', source=...)",
        ),
        (
            ["train", f"--config={config}", f"--workdir={tmp_path / 'new'}"],
            f"{again}train(config, workdir, sources=..., loss=...)",
        ),
        (["check-data", f"--config={config}"], elsewhere),
        (["find-lr", f"--config={config}", f"--out={tmp_path / 'rate'}"], elsewhere),
    ):
        capsys.readouterr()
        assert main(words) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        what = "config.own: sources=MadeUp and MadeUp was an object of a Python program, which no file holds"
        assert line == f"deeplab-jax: {what}; {fix}"
    results = deeplab_jax.evaluate(tmp_path / "run", source=SOURCES[1])
    assert results["protocol"]["data"] == "held out"
