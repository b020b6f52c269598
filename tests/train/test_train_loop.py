"""The training loop: a run that stops and goes on is the run that never stopped, and what a run directory promises."""

import itertools
import json
import logging
import math
import shutil

import jax
import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.config import base, to_plain
from deeplab_jax.config_keys import FREE
from deeplab_jax.errors import UserError
from deeplab_jax.extensions import allow
from deeplab_jax.models.catalog import create_model
from deeplab_jax.train import batches
from deeplab_jax.train import run as run_module
from deeplab_jax.train.batches import checked
from deeplab_jax.train.record import RECORD_FILE
from deeplab_jax.train.run import Run
from deeplab_jax.train.trackers import IDS_FILE
from deeplab_jax.train.workdir import CONFIG_FILE, RUN_FILE, differences, open_workdir, record_start
from deeplab_jax.train.writers import Writers
from deeplab_jax.weights.by_name import origin_of
from deeplab_jax.weights.folder import CHECKPOINTS, INITIALISED, MODEL_FILE, load
from tests.support.layouts import data_arguments
from tests.support.params import first_fast
from tests.support.tiny import (
    assert_same_arrays,
    quiet,
    read_checkpoint,
    read_metrics,
    run_training,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps. Tests that start in it again leave what they look at as it is."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    results = run_training(workdir, tiny_config())
    return workdir, results


class Killed(BaseException):
    """Nothing that training handles: other failures save the step that they meet."""


def kill_at(step):
    """Return a stand-in for `report` that ends the process's work at a step, after its line is written."""
    report = run_module.report

    def killed(number, *args):
        report(number, *args)
        if number == step:
            raise Killed

    return killed


# Resuming.

VARIANTS = {
    "sgd": {},
    "adam, average, dropout, accumulation, augmentation": {
        "optimizer.name": "adam",
        "optimizer.learning_rate": 0.01,
        "train.ema_decay": 0.9,
        "train.ema_debias": True,
        "train.accumulate": 2,
        "train.batch_size": 4,
        "model.options": {"norm_momentum": 0.9, "aux_head": True},
        "data.scale_range": (0.5, 2.0),
        "data.color_jitter": 0.2,
    },
    "eight devices": {"train.devices": 8, "train.batch_size": 8},
}


SLOW = dict.fromkeys(("sgd", "eight devices"), pytest.mark.slow)  # The first is that of `test_kill`.


@pytest.mark.parametrize(
    "changes", [pytest.param(changes, id=name, marks=SLOW.get(name, ())) for name, changes in VARIANTS.items()]
)
def test_a_killed_run_that_goes_on_is_the_run_that_was_never_killed(tmp_path, monkeypatch, changes) -> None:
    if tiny_config(**changes).train.devices > jax.device_count():
        pytest.skip("needs 8 devices: JAX_NUM_CPU_DEVICES=8")
    seen = {"whole": [], "parts": []}
    place = batches.place_batch

    def recording(into):
        def record(batch, **options):
            into.append((batch["image"].tobytes(), batch["label"].tobytes()))
            return place(batch, **options)

        return record

    monkeypatch.setattr(batches, "place_batch", recording(seen["whole"]))
    whole = run_training(tmp_path / "whole", tiny_config(**changes))
    monkeypatch.setattr(batches, "place_batch", recording(seen["parts"]))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "report", kill_at(5))
        with pytest.raises(Killed):
            run_training(tmp_path / "parts", tiny_config(**changes))
    # Steps 4 and 5 ran and are in the record; the checkpoint is of step 3.
    assert read_metrics(tmp_path / "parts")[-1]["step"] == 5
    resumed = run_training(tmp_path / "parts", tiny_config(**changes))

    assert seen["parts"][:6] == seen["whole"]
    assert seen["parts"][6:] == seen["whole"][3:]
    lines = read_metrics(tmp_path / "whole")
    assert [(line["step"], "val/miou" in line) for line in lines] == [
        *((step, False) for step in (1, 2, 3)),
        (3, True),
        *((step, False) for step in (4, 5, 6)),
        (6, True),
    ]
    assert read_metrics(tmp_path / "parts") == lines  # Bit for bit: the text of a float is exact.
    for step in (3, 6):
        arrays = [read_checkpoint(tmp_path / name, step) for name in ("whole", "parts")]
        assert_same_arrays(*arrays)
    assert whole["confusion_matrix"] == resumed["confusion_matrix"]


def test_a_finished_run_stays_as_it_is(finished) -> None:
    workdir, results = finished
    before = (workdir / RECORD_FILE).read_bytes()
    assert results["step"] == 6 and 0 <= results["miou"] <= 1
    assert run_training(workdir, tiny_config()) is None
    assert (workdir / RECORD_FILE).read_bytes() == before


def test_the_step_is_compiled_once(tmp_path, caplog) -> None:
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        run_training(tmp_path, tiny_config(**{"train.evaluate_every": 2, "train.checkpoint_every": 1}))
        run_training(tmp_path, tiny_config(**{"train.evaluate_every": 2, "train.checkpoint_every": 1}))
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert sum("train_step" in message for message in compiled) == 1, compiled
    assert sum("_classes_and_counts" in message for message in compiled) <= 1, compiled


# The record.


def test_metrics_have_each_step_once_with_its_numbers(finished) -> None:
    lines = [json.loads(line) for line in (finished[0] / RECORD_FILE).read_text().splitlines()]
    train = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    for line in train:
        assert line["train/learning_rate"] == pytest.approx(0.1 * (1 - (line["step"] - 1) / 6) ** 0.9, rel=1e-5)
        assert math.isfinite(line["train/loss"]) and 0 <= line["train/pixel_accuracy"] <= 1
        assert line["train/images_per_second"] > 0 and 0 <= line["train/data_wait"] <= 1
    validation = [line for line in lines if "val/miou" in line]
    assert [line["step"] for line in validation] == [3, 6]
    assert set(validation[0]) >= {"val/miou", "val/pixel_accuracy", "val/mean_accuracy", "val/seconds"}


def test_a_run_directory_records_how_it_came_about(finished) -> None:
    workdir = finished[0]
    assert json.loads((workdir / CONFIG_FILE).read_text()) == json.loads(json.dumps(to_plain(tiny_config())))
    first = json.loads((workdir / RUN_FILE).read_text())[0]
    assert set(first) == {"time", "command", "commit", "versions"}
    assert {"python", "jax", "flax", "device"} <= set(first["versions"])
    assert list((workdir / "tensorboard").glob("events.*"))
    assert [path.name for path in sorted((workdir / "pictures").iterdir())] == ["step_0000003.png", "step_0000006.png"]
    model, _, info = load(workdir)
    assert model.num_classes == 9 and info["class_names"][0] == "meadow" and info["step"] in (3, 6)


def test_writers_drop_what_a_killed_run_wrote_past_its_checkpoint(tmp_path) -> None:
    lines = [json.dumps({"step": step, name: 1}) for step, name in ((1, "a"), (2, "a"), (2, "b"), (3, "a"), (4, "a"))]
    lines[-1] = lines[-1][:12]
    (tmp_path / RECORD_FILE).write_text("\n".join(lines))
    with Writers(tmp_path, start=2, steps=9, console=quiet(), config=base()) as writers:
        writers.scalars(3, {"a": 0.5}, prefix="train")
    assert (tmp_path / RECORD_FILE).read_text().splitlines() == [*lines[:3], '{"step": 3, "train/a": 0.5}']


# What a directory refuses.


def test_a_directory_of_another_configuration_is_refused_with_the_keys(finished, tmp_path) -> None:
    workdir = finished[0]
    before = {name: (workdir / name).read_bytes() for name in (CONFIG_FILE, RUN_FILE, MODEL_FILE)}
    other = tiny_config(**{"train.seed": 1, "optimizer.learning_rate": 0.2})
    message = (
        r"config\.optimizer\.learning_rate: 0\.1 -> 0\.2; config\.train\.seed: 0 -> 1\); .* or --allow_config_change"
    )
    with pytest.raises(UserError, match=message):
        run_training(workdir, other)
    # Allowed, but the checkpoint does not fit the new network: nothing of the old run may be lost.
    group = tiny_config(**{"model.options": {"norm": "group"}})
    with pytest.raises(UserError, match=r"a checkpoint of another model.*missing .*unexpected batch_stats/"):
        run_training(workdir, group, allow_config_change=True)
    assert before == {name: (workdir / name).read_bytes() for name in before}


def test_an_allowed_change_is_recorded(finished, tmp_path) -> None:
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    results = run_training(workdir, tiny_config(**{"train.steps": 7}), allow_config_change=True)
    assert results["step"] == 7
    assert json.loads((workdir / CONFIG_FILE).read_text())["train"]["steps"] == 7
    assert len(json.loads((workdir / RUN_FILE).read_text())) == 2


@pytest.mark.parametrize("steps", first_fast([2, 1]))
def test_a_change_without_a_step_rewrites_nothing(tmp_path, steps) -> None:
    """Finished weights keep what their classes mean, also if the data now map other values."""
    data_arguments("folder", tmp_path / "data")
    folder = {"data.name": "folder", "data.dir": str(tmp_path / "data"), "train.steps": 2}
    options = {"class_names": ("a", "b"), "val_fraction": 0.2, "val_rule": "share"}
    run_training(tmp_path / "run", tiny_config(**folder, **{"data.options": options}))
    before = {name: (tmp_path / "run" / name).read_bytes() for name in (CONFIG_FILE, RUN_FILE, MODEL_FILE)}
    swapped = tiny_config(
        **{**folder, "train.steps": steps, "data.options": {**options, "value_map": ((0, 1), (1, 0))}}
    )
    assert run_training(tmp_path / "run", swapped, allow_config_change=True) is None
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}
    swapped.train.steps = 3
    run_training(tmp_path / "run", swapped, allow_config_change=True)
    assert load(tmp_path / "run")[2]["value_map"] == [[0, 1], [1, 0], [255, 255]]


@pytest.fixture
def saved(tmp_path):
    """A run directory with a checkpoint."""
    (tmp_path / CHECKPOINTS / "2").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("leftovers", [(), ("3.damaged",)])
def test_without_a_checkpoint_any_configuration_may_start(tmp_path, leftovers) -> None:
    for name in leftovers:
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
    for seed in (0, 1):
        open_workdir(tmp_path, tiny_config(**{"train.seed": seed}), allow_config_change=False)
        assert json.loads((tmp_path / CONFIG_FILE).read_text())["train"]["seed"] == seed


def test_the_origin_is_that_of_the_weights_that_a_run_started_from(tmp_path) -> None:
    """A start from step 0 uses those of its configuration, whatever an older one did there."""
    for start, init, origin in (
        (0, "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        (0, "torchvision/resnet18", "torchvision/resnet18"),
        (5, "timm/resnet18.a1_in1k", "torchvision/resnet18"),
    ):
        run = Run(tmp_path)
        run.config, run.start = tiny_config(init=init), start
        info = run._origin()
        assert info == {INITIALISED: origin_of(origin)}
        (tmp_path / MODEL_FILE).write_text(json.dumps({"info": info}))


def test_another_configuration_over_a_run_that_saved_nothing_gets_other_records(tmp_path) -> None:
    ids = tmp_path / IDS_FILE
    open_workdir(tmp_path, tiny_config(), allow_config_change=False)
    for changes, kept in (({}, True), ({"train.log_every": 5}, True), ({"train.seed": 1}, False)):
        ids.write_text("{}")
        open_workdir(tmp_path, tiny_config(**changes), allow_config_change=False)
        assert ids.exists() == kept
    ids.write_text("{}")
    (tmp_path / CONFIG_FILE).write_text("{")
    open_workdir(tmp_path, tiny_config(), allow_config_change=False)
    assert not ids.exists()


@pytest.mark.parametrize("key", FREE)
def test_what_moves_no_number_may_differ(saved, tmp_path, key) -> None:
    config = tiny_config()
    open_workdir(tmp_path, config, allow_config_change=False)
    _, section, name = key.split(".")
    other = to_plain(tiny_config())
    other[section][name] = "elsewhere" if name == "dir" else 7
    open_workdir(tmp_path, other, allow_config_change=False)
    other["train"]["steps"] += 1
    with pytest.raises(UserError, match=r"\(config.train.steps: 6 -> 7\)"):
        open_workdir(tmp_path, other, allow_config_change=False)
    open_workdir(tmp_path, other, allow_config_change=True)


def test_a_run_from_before_a_key_was_there_had_its_default(saved, tmp_path) -> None:
    open_workdir(tmp_path, tiny_config(), allow_config_change=False)
    stored = json.loads((tmp_path / CONFIG_FILE).read_text())
    del stored["evaluate"]["crop"], stored["train"]["skip_nonfinite"]
    del stored["train"]["ema_debias"], stored["train"]["epochs"], stored["optimizer"]["schedule"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(stored))
    open_workdir(tmp_path, tiny_config(), allow_config_change=False)
    with pytest.raises(UserError, match=r"config\.evaluate\.crop: .* -> \[33, 33\]"):
        open_workdir(tmp_path, tiny_config(**{"evaluate.crop": (33, 33)}), allow_config_change=False)


def test_differences_are_listed_by_key() -> None:
    old, new = to_plain(base()), to_plain(base())
    new["train"]["steps"] = 7
    new["data"]["crop_size"] = [65, 65]
    new["model"]["options"] = {"width": 2}
    assert differences(old, new) == [
        "config.data.crop_size: [513, 513] -> [65, 65]",
        "config.model.options.width: None -> 2",
        "config.train.steps: 30000 -> 7",
    ]
    assert differences(old, old) == []


def test_many_changes_are_counted(saved, tmp_path) -> None:
    open_workdir(tmp_path, tiny_config(), allow_config_change=False)
    names = ("steps", "seed", "batch_size", "accumulate", "aux_weight")
    other = tiny_config(**{f"train.{name}": 9 for name in names})
    with pytest.raises(UserError, match=" and 1 more"):
        open_workdir(tmp_path, other, allow_config_change=False)


def test_a_directory_that_holds_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty and holds no config\.json.*give an empty --workdir"):
        run_training(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match=r"thesis\.tex: cannot be used as run directory"):
        run_training(tmp_path / "thesis.tex", tiny_config())


@pytest.mark.parametrize("content", ['{"train": ', "[1]", "7"])
def test_a_damaged_record_is_named(saved, tmp_path, content) -> None:
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match=r"config\.json: is damaged"):
        open_workdir(tmp_path, tiny_config(), allow_config_change=False)
    (tmp_path / RUN_FILE).write_text("[")
    record_start(tmp_path, tiny_config())
    assert len(json.loads((tmp_path / RUN_FILE).read_text())) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.steps": 0}, r"config\.train\.steps=0: give at least 1"),
        ({"train.accumulate": 0}, r"config\.train\.accumulate=0"),
        ({"train.log_every": 0}, r"log_every=0: give at least 1; more than config\.train\.steps means only at the end"),
        ({"train.evaluate_every": 0}, r"config\.train\.evaluate_every=0"),
        ({"train.checkpoint_every": -1}, r"config\.train\.checkpoint_every=-1"),
        ({"train.keep": 0}, r"config\.train\.keep=0"),
        ({"train.seed": -1}, r"config\.train\.seed=-1: give 0 or more"),
        ({"train.skip_nonfinite": -1}, r"config\.train\.skip_nonfinite=-1: give 0 or more"),
        ({"train.loss": "cros_entropy"}, r"config\.train\.loss='cros_entropy': did you mean cross_entropy"),
        ({"train.top_k": 0.0}, r"config\.train\.top_k=0\.0"),
        ({"train.ema_decay": 1.0}, r"config\.train\.ema_decay=1\.0"),
        ({"train.ema_debias": True}, r"there is no average; set config\.train\.ema_decay=0\.999 too"),
        ({"train.aux_weight": 0.4}, r"aux_weight=0\.4: the model has no auxiliary head; .*options\.aux_head=True too"),
        ({"optimizer.name": "adam", "optimizer.momentum": 0.5}, r"config\.optimizer\.momentum=0\.5: adam has none"),
        ({"optimizer.schedule": "cosine", "optimizer.power": 3.0}, r"config\.optimizer\.power=3\.0: the schedule"),
        ({"train.epochs": -1.0}, r"config\.train\.epochs=-1\.0: give 0 to 1000000"),
        ({"train.epochs": 1.0, "train.batch_size": 0}, "batch_size=0: give at least 1"),
        ({"train.patience": -1}, r"config\.train\.patience=-1: give 0 or more"),
        ({"optimizer.schedule": "polly"}, r"config\.optimizer\.schedule='polly': did you mean poly"),
        ({"train.batch_size": 3, "train.accumulate": 2}, "batch_size=3 does not split over 2 .* on 1 devices; use 4"),
        ({"train.class_weights": (1.0, 2.0)}, "class_weights has 2 values, the data has 9 classes; give one for each"),
        ({"data.crop_size": (65, 20)}, r"config\.data\.crop_size=\(65, 20\): .* at least 33 pixels"),
        ({"data.crop_size": (65,)}, r"config\.data\.crop_size=\(65,\)"),
        ({"data.name": "scnes"}, "no data set is called 'scnes'; did you mean scenes"),
        ({"data.train_split": "trian"}, "there is no split 'trian'; did you mean train"),
        ({"data.options": {"sise": (33, 33)}}, "no option 'sise'; did you mean size"),
        ({"model.name": "cascade_tinny"}, "model 'cascade_tinny' is not known: did you mean cascade_tiny"),
        ({"model.options": {"nrom": "batch"}}, "option 'nrom' has no meaning for cascade_tiny: did you mean norm"),
        ({"optimizer.name": "sdg"}, "did you mean sgd"),
        (
            {"optimizer.freeze": ("resnet",)},
            "config.optimizer.freeze: 'resnet' matches no parameter",
        ),
        # The first evaluation may be hours away.
        ({"evaluate.mode": "paded"}, r"config\.evaluate\.mode='paded': did you mean padded"),
        ({"evaluate.output_stride": 7}, "output_stride=7"),
        ({"evaluate.window": (65,)}, r"window=\(65,\)"),
        ({"evaluate.crop": (65,)}, r"config\.evaluate\.crop=\(65,\)"),
        ({"evaluate.trimap": (2, 2)}, r"config\.evaluate\.trimap=\(2, 2\)"),
        ({"evaluate.trimap_around": "vod"}, "trimap_around='vod': did you mean void"),
        ({"evaluate.devices": 1000}, r"config\.evaluate\.devices=1000: there are"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        run_training(tmp_path / "run", tiny_config(**changes))
    assert not (tmp_path / "run").exists()


OWN_LOSS = """
import jax.numpy as jnp
from deeplab_jax.ops.losses import valid_pixels
from deeplab_jax.ops.resize import resize_bilinear


def squared(logits, labels, *, align_corners, **_):
    logits = resize_bilinear(logits, labels.shape[1:3], align_corners=align_corners)
    valid = valid_pixels(labels)
    total = jnp.sum(jnp.where(valid[..., None], logits, 0.0) ** 2)
    return total, jnp.sum(valid, dtype=jnp.float32), jnp.argmax(logits, -1) == labels


LOSSES = {"squared": squared}
"""


def test_a_loss_of_the_users_own_is_trained_with_once_its_file_is_named(tmp_path) -> None:
    """Logits that are pushed to zero: the loss falls from step to step, as no cross-entropy would."""
    (tmp_path / "mine.py").write_text(OWN_LOSS)
    changes = {"module": str(tmp_path / "mine.py"), "train.loss": "squared"}
    with pytest.raises(UserError, match="needs the code of this file"):
        run_training(tmp_path / "run", tiny_config(**changes))
    allow(changes["module"])
    run_training(tmp_path / "run", tiny_config(**changes))
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 6 and 0 < losses[-1] < losses[0] < 1
    with pytest.raises(UserError, match="'sqared': did you mean squared"):
        run_training(tmp_path / "other", tiny_config(**{**changes, "train.loss": "sqared"}))


WRONG_LOSSES = """
def pair(logits, labels, **_):
    return logits.sum(), labels.sum()


def sums(logits, labels, **_):
    return logits.sum(), labels.sum(), labels.sum()


def narrow(logits, labels):
    return logits.sum(), labels.sum(), labels == 0


def unequal(logits, labels, **_):
    return (logits[..., 0] - labels).sum(), labels.sum(), labels == 0


LOSSES = {"pair": pair, "sums": sums, "narrow": narrow, "unequal": unequal}
"""


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("pair", r"LOSSES\['pair'\] returns arrays of shapes \[\(\), \(\)\]; return \(sum, count, right\)"),
        ("sums", r"LOSSES\['sums'\] returns arrays of shapes \[\(\), \(\), \(\)\]; return \(sum, count, right\)"),
        ("narrow", r"LOSSES\['narrow'\]: got an unexpected keyword argument .*end its arguments with \*\*_"),
        ("unequal", r"wrong\.py, line 15: TypeError: sub got incompatible shapes .*; correct this line"),
    ],
)
def test_a_loss_that_is_none_is_told_in_one_line(tmp_path, loss: str, words: str) -> None:
    file = str(tmp_path / "wrong.py")
    (tmp_path / "wrong.py").write_text(WRONG_LOSSES)
    with pytest.raises(UserError, match=words) as error:
        deeplab_jax.train(tiny_config(**{"module": file, "train.loss": loss}), tmp_path / "run", module=file)
    assert file in str(error.value) and "\n" not in str(error.value)


def test_the_first_batches_are_looked_at() -> None:
    image, model = np.zeros((1, 2, 2, 3), np.uint8), create_model("cascade_tiny", num_classes=9)
    good, bad = ({"image": image, "label": np.full((1, 2, 2), value, np.uint8)} for value in (8, 9))
    with pytest.raises(UserError, match="training batch 2 of street: label values 9 in 4 pixels are outside"):
        list(checked(iter([good, bad]), model, "street"))
    late = [good, good, bad]
    assert list(itertools.islice(checked(iter(late), model, "street"), 3)) == late
