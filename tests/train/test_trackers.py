"""TensorBoard's pictures, and trackers: what they get, that a run goes on in its own record, and that none stops it."""

import json
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from deeplab_jax.errors import UserError
from deeplab_jax.train import loop, trackers
from deeplab_jax.train.given import Given
from deeplab_jax.train.trackers import IDS_FILE, TRACKERS, check_trackers
from tests.support.tiny import read_metrics, run_training, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_networks")


def events(workdir: Path) -> list[Event]:
    """All events of a run: records of a length, its checksum, the content, and its checksum."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def record_of(workdir: Path) -> dict[tuple[int, str], float]:
    """The scalars of `metrics.jsonl`, with the times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}


class Kept:
    """A tracker that keeps what it is told in `told`, and fails where `fails` says so."""

    told: list
    fails: str = ""

    def __init__(self, id, workdir, config) -> None:
        self.id = id or "first"
        self._tell("open", id, config["train"]["steps"])

    def _tell(self, what, *values) -> None:
        self.told.append((what, *values))
        if what == self.fails:
            raise ConnectionError("no\nnetwork")

    def scalars(self, step, values) -> None:
        self._tell("scalars", step, dict(values))

    def picture(self, step, name, file) -> None:
        self._tell("picture", step, name, file.name)

    def close(self, *, failed) -> None:
        self._tell("close", failed)


@pytest.fixture
def kept(monkeypatch):
    """A tracker called json, which is installed."""
    kind = type("Told", (Kept,), {"told": []})
    monkeypatch.setattr(trackers, "TRACKERS", {**TRACKERS, "json": kind})
    return kind


TRACKED = {"train.trackers": ("json",)}


def test_tensorboard_has_every_scalar_and_the_picture_itself(tmp_path) -> None:
    results = run_training(tmp_path, tiny_config())
    scalars, pictures = {}, {}
    for event in events(tmp_path):
        for value in event.summary.value:
            if value.HasField("image"):
                pictures[event.step, value.tag] = value.image
            else:
                scalars[event.step, value.tag] = value.simple_value
    record = record_of(tmp_path)
    assert scalars.keys() == record.keys()
    assert all(scalars[key] == pytest.approx(value, rel=1e-6) for key, value in record.items())
    per_class = {f"val/iou/{row['name']}": row["iou"] for row in results["per_class"] if row["iou"] is not None}
    assert per_class and {name: record[6, name] for name in per_class} == per_class
    assert {name for step, name in record if step == 6 and name.startswith("val/iou/")} == {*per_class}
    assert list(pictures) == [(3, "val/pictures"), (6, "val/pictures")]
    image, content = pictures[6, "val/pictures"], (tmp_path / "pictures/step_0000006.png").read_bytes()
    assert image.encoded_image_string == content
    with Image.open(tmp_path / "pictures/step_0000006.png") as picture:
        assert (image.width, image.height) == picture.size


def test_a_tracker_gets_all_and_goes_on_in_its_record(tmp_path, kept) -> None:
    run_training(tmp_path, tiny_config(**TRACKED, **{"train.steps": 3}))
    first, kept.told = kept.told, []
    run_training(tmp_path, tiny_config(**TRACKED), allow_config_change=True)
    assert first[0] == ("open", "", 3) and kept.told[0] == ("open", "first", 6)
    assert json.loads((tmp_path / IDS_FILE).read_text()) == {"json": "first"}
    told = [*first, *kept.told]
    assert {
        (step, name): value for what, step, *rest in told if what == "scalars" for name, value in rest[0].items()
    } == (record_of(tmp_path))
    names = [("picture", step, "val/pictures", f"step_{step:07d}.png") for step in (3, 6)]
    assert [each for each in told if each[0] == "picture"] == names
    assert first[-1] == kept.told[-1] == ("close", False)


@pytest.mark.parametrize(
    "fails", ["open", "picture", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scalars", "close"))]
)
def test_a_tracker_that_fails_is_left_out(tmp_path, kept, capsys, fails) -> None:
    kept.fails = fails
    results = loop.train(tiny_config(**TRACKED), tmp_path)
    assert results["step"] == 6 and read_metrics(tmp_path)[-1]["val/miou"] == results["miou"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: json")]
    assert said == ["note: json: ConnectionError: no network; it gets no more of this run, and training goes on"]
    told = [each[0] for each in kept.told]
    index = told.index(fails)
    assert told[index:] == ([fails] if fails == "open" else [fails, "close"])
    assert fails == "open" or kept.told[-1] == ("close", True)


def test_a_failed_run_is_recorded_as_such(tmp_path, kept) -> None:
    def fail(step, metrics):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_training(tmp_path, tiny_config(**TRACKED), given=Given(on_step=fail))
    assert kept.told[-1] == ("close", True)


def test_an_unknown_or_missing_tracker_is_named_before_anything_is_written(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"config\.train\.trackers=\('wandbb',\): did you mean wandb"):
        run_training(tmp_path / "run", tiny_config(**{"train.trackers": ("wandbb",)}))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match=f"{name} is not installed; type pip install {name}"):
            run_training(tmp_path / "run", tiny_config(**{"train.trackers": (name,)}))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: SimpleNamespace())
    check_trackers(("wandb", "mlflow"))


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("train/loss", "train/loss"),
        ("val/iou/car", "val/iou/car"),
        ("val/iou/road/", "val/iou/road_"),
        ("val/iou/a//b", "val/iou/a__b"),
        ("val/iou/..", "val/iou/_.."),
        ("val/iou/", "val/iou/_"),
        ("val/iou/stra\u00dfe (\u00e4)", "val/iou/stra\u00dfe _\u00e4_"),
        ("val/iou/" + 300 * "x", "val/iou/" + 242 * "x"),
    ],
)
def test_names_for_mlflow(name, taken) -> None:
    assert trackers._mlflow_name(name) == taken


# The packages themselves, in their offline modes.


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # These packages warn of their own parts.
def test_wandb_offline(tmp_path, monkeypatch) -> None:
    """Two starts write two folders of one run's id, which `wandb sync` joins."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    changes = {"train.trackers": ("wandb",)}
    run_training(tmp_path / "run", tiny_config(**changes, **{"train.steps": 3}))
    run_training(tmp_path / "run", tiny_config(**changes), allow_config_change=True)
    (run_id,) = json.loads((tmp_path / "run" / IDS_FILE).read_text()).values()
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(f"-{run_id}") for folder in folders)
    written, configs, pictures = {}, [], []
    for folder in folders:
        for item in wandb_items(next(folder.glob("*.wandb"))):
            if item.WhichOneof("record_type") == "run":
                configs.append({update.key: json.loads(update.value_json) for update in item.run.config.update})
            values = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in item.history.item}
            step = values.pop("step", None)
            for name, value in values.items():
                if name.startswith(("train/", "val/")) and not name.startswith("val/pictures"):
                    written[step, name] = value
        pictures += folder.rglob("*.png")
    assert written == record_of(tmp_path / "run")
    assert len(pictures) == 2
    contents = {file.read_bytes() for file in (tmp_path / "run" / "pictures").iterdir()}
    assert {file.read_bytes() for file in pictures} == contents
    assert configs[0]["train"]["steps"] == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_leaves_the_programs_own_run_alone(tmp_path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    own = wandb.init(id="mine", dir=str(tmp_path))
    try:
        run_training(tmp_path / "run", tiny_config(**{"train.trackers": ("wandb",), "train.steps": 1}))
        assert wandb.run is own and own.id == "mine"
        own.log({"after": 1.0})  # It fails in a run that is finished.
    finally:
        own.finish()
    (run_id,) = json.loads((tmp_path / "run" / IDS_FILE).read_text()).values()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert run_id != "mine" and folder.name.endswith(f"-{run_id}")
    (file,) = (tmp_path / "wandb").glob("offline-run-*-mine/*.wandb")
    names = {"/".join(one.nested_key) or one.key for item in wandb_items(file) for one in item.history.item}
    assert "after" in names and not any(name.startswith(("train/", "val/")) for name in names)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_takes_any_class_name_and_ends_a_record_that_fails(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    said = []
    both = trackers.Trackers(("mlflow",), tmp_path, {"train": {"steps": 1}}, said.append)
    classes = ("road/", "a//b", "..", "", "\u00e4 (b)", 300 * "x")
    both.scalars(1, {f"val/iou/{name}": 0.5 for name in classes})
    client, (run_id,) = mlflow.MlflowClient(), json.loads((tmp_path / IDS_FILE).read_text()).values()
    assert said == [] and list(client.get_run(run_id).data.metrics.values()) == 6 * [0.5]
    both.picture(1, "val/pictures", tmp_path / "missing.png")
    assert len(said) == 1 and said[0].startswith("note: mlflow: ")
    assert client.get_run(run_id).info.status == "FAILED"


def wandb_items(file: Path) -> list:
    """The records of W&B's own file. It is complete a moment after its run has finished."""
    for _ in range(100):
        items = read_wandb(file)
        if items and items[-1].WhichOneof("record_type") == "exit":
            return items
        time.sleep(0.2)
    raise AssertionError(f"{file} has no end")


def read_wandb(file: Path) -> list:
    """The records in the file so far: LevelDB's log of blocks of 32 KiB, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, items, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if place + 7 + length > len(content):  # It is being written.
            break
        parts, place = parts + content[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # Whole, or the last part.
            items.append(Record.FromString(parts))
            parts = b""
    return items


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # These packages warn of their own parts.
def test_mlflow_in_a_file(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    changes = {"train.trackers": ("mlflow",)}
    run_training(tmp_path / "run", tiny_config(**changes, **{"train.steps": 3}))
    run_training(tmp_path / "run", tiny_config(**changes), allow_config_change=True)
    (run_id,) = json.loads((tmp_path / "run" / IDS_FILE).read_text()).values()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("deeplab_jax").experiment_id])
    assert run.info.run_id == run_id and run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["train.steps"] == "3" and run.data.params["model.name"] == "cascade_tiny"
    written = {
        (one.step, name): one.value for name in run.data.metrics for one in client.get_metric_history(run_id, name)
    }
    assert written == record_of(tmp_path / "run")
    found = Path(client.download_artifacts(run_id, "val/pictures", str(tmp_path)))
    contents = {file.name: file.read_bytes() for file in (tmp_path / "run" / "pictures").iterdir()}
    assert {file.name: file.read_bytes() for file in found.iterdir()} == contents
