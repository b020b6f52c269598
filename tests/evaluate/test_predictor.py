"""Prediction of files: which, names, what is written, and images that cannot be read."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import read_image, read_mask, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import inference
from deeplab_jax.evaluate.image_list import find_images
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.outputs import Outputs, file_names, label_set
from deeplab_jax.evaluate.predictor import PredictionWriter, checked_batch_size, predict_files
from deeplab_jax.evaluate.protocol import DEFAULT, Protocol
from deeplab_jax.labels import ADE20K, CITYSCAPES, LabelSet, colormap, to_stored
from deeplab_jax.models.catalog import create_model
from tests.support.tiny import MadeUp, tiny_model, tiny_models

SOURCE = MadeUp(((40, 50), (33, 60), (20, 20)))
LABELS = SOURCE.labels


@pytest.fixture(scope="module")
def made():
    with tiny_models():
        return tiny_model("cascade_tiny")


def with_classes(count):
    return create_model("deeplabv3_resnet18", num_classes=count)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.c.png", "d.png")):
        write_image(folder / name, SOURCE[index]["image"])
    return folder


def predict(made, found, out, protocol=DEFAULT, **options):
    """The files and their errors."""
    return list(predict_files(*made, found, Outputs(out, LABELS), protocol, **options))


def test_predictions_are_indexed_and_overlays_have_the_size_of_the_image(made, images, tmp_path) -> None:
    out = tmp_path / "new" / "out"
    progress = []
    exact, report = Protocol(mode="exact"), lambda *call: progress.append(call)
    done = predict(made, find_images([images]), out, exact, progress=report)
    assert [(each.name, error) for each, error in done] == [("a", None), ("b.c", None), ("d", None)]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}{kind}.png" for stem in ("a", "b.c", "d") for kind in ("", "_overlay")
    )
    for (path, name), _ in done:
        classes = read_mask(out / f"{name}.png")
        np.testing.assert_array_equal(classes, segment(*made, read_image(path)))
        with Image.open(out / f"{name}.png") as written:
            assert written.mode == "P"
            np.testing.assert_array_equal(np.reshape(written.getpalette(), (-1, 3))[:4], colormap(4))
        assert read_image(out / f"{name}_overlay.png").shape == read_image(path).shape


def test_a_bad_image_does_not_end_the_run(made, images, tmp_path) -> None:
    (images / "a.png").write_bytes(b"")
    done = predict(made, find_images([images]), tmp_path / "out", batch_size=2)
    assert "a.png: empty file" in str(done[0][1])
    assert [error for _, error in done[1:]] == [None, None]


def test_modes_and_views(made, images, tmp_path) -> None:
    found = find_images([images / "a.png"])
    padded, views = {"mode": "padded", "pad_to": ((65, 65),)}, {"scales": (0.75, 1.0), "flip": True}
    image = read_image(images / "a.png")
    for options in (views, {"window": (33, 40)}):
        predict(made, found, tmp_path / "out", Protocol(mode="exact", **options))
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / "a.png"), segment(*made, image, **options))
    predict(made, found, tmp_path / "out", Protocol(**padded))
    assert read_mask(tmp_path / "out" / "a.png").shape == (40, 50)
    with pytest.raises(UserError, match="window="):
        Protocol(window=(33,))


def test_batches_predict_what_single_images_do_in_few_programs(made, tmp_path) -> None:
    """Twelve sizes run at two: with batches there are two programs, and every file is the same, bit for bit."""
    source, folder = MadeUp(tuple((40 + 3 * k, 60 - 2 * k) for k in range(12))), tmp_path / "mixed"
    folder.mkdir()
    for index in range(12):
        write_image(folder / f"{index:02}.png", source[index]["image"])
    protocol, found = Protocol(pad_to=((65, 65), (97, 97))), find_images([folder])
    predict(made, found, tmp_path / "one", protocol, batch_size=1)
    before = inference.jitted_classes._cache_size()
    done = predict(made, found, tmp_path / "many", protocol, batch_size=4)
    assert inference.jitted_classes._cache_size() - before == 2
    assert [each.name for each, _ in done] == [f"{index:02}" for index in range(12)]
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "many" / file.name).read_bytes()
    for batch_size in (0, 2**16 + 1):
        with pytest.raises(UserError, match=f"--batch_size {batch_size}: give at least 1"):
            predict(made, found, tmp_path / "one", batch_size=batch_size)


def test_images_run_alone_on_cpus_and_in_eights_elsewhere(monkeypatch) -> None:
    assert checked_batch_size(None, DEFAULT) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert checked_batch_size(None, DEFAULT) == 8 and checked_batch_size(3, DEFAULT) == 3


def test_a_batch_size_is_checked_where_a_window_takes_one_image_at_a_time() -> None:
    window = Protocol(window=(33, 33))
    assert checked_batch_size(None, window) == checked_batch_size(3, window) == 1
    with pytest.raises(UserError, match="--batch_size 0: give at least 1"):
        checked_batch_size(0, window)


def test_ctrl_c_leaves_whole_files(made, images, tmp_path) -> None:
    run = predict_files(*made, find_images([images]), Outputs(tmp_path / "out", LABELS), Protocol(pad_to=((65, 65),)))
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt())
    assert {"a.png", "a_overlay.png"} <= {file.name for file in (tmp_path / "out").iterdir()}
    for file in (tmp_path / "out").iterdir():
        assert file.suffix == ".png" and read_image(file).size


def test_find_images_takes_files_and_folders(images) -> None:
    (images / "notes.txt").touch()
    assert [found.name for found in find_images([images])] == ["a", "b.c", "d"]
    assert [found.name for found in find_images([images / "d.png", images / "d.png"])] == ["d"]
    (images / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in this folder"):
        find_images([images / "empty"])
    with pytest.raises(UserError, match="gone: no such file or folder"):
        find_images([images, images / "gone"])


def test_find_images_goes_into_folders(images) -> None:
    """Equal names stay apart, hidden files, loops and older predictions are left out, and a folder counts once."""
    for name in ("video1/x.png", "video2/x.png", "odd/tiles.png/y.JPG", ".hidden/h.png", "video1/.h.png", "out/a.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes((images / "a.png").read_bytes())
    (images / "video1" / "up").symlink_to(images)
    (images / "again").symlink_to(images / "video2")
    (images.parent / "else").mkdir()
    (images.parent / "else" / "e.png").write_bytes((images / "a.png").read_bytes())
    (images / "link").symlink_to(images.parent / "else")
    (images / "gone.png").symlink_to(images / "nothing.png")
    (images / "loop").symlink_to(images / "loop")
    names = [found.name for found in find_images([images], out=images / "out")]
    assert names == ["a", "b.c", "d", "gone", "link/e", "odd/tiles.png/y", "video1/x", "video2/x"]


def test_nested_folders_are_kept(made, images, tmp_path) -> None:
    (images / "sub" / "deep").mkdir(parents=True)
    (images / "sub" / "deep" / "a.png").write_bytes((images / "d.png").read_bytes())
    done = predict(made, find_images([images]), tmp_path / "out", Protocol(pad_to=((65, 65),)))
    assert [error for _, error in done] == [None] * 4
    assert read_mask(tmp_path / "out" / "a.png").shape == (40, 50)
    assert read_mask(tmp_path / "out" / "sub" / "deep" / "a.png").shape == (20, 20)


def test_files_of_one_name_are_refused(images, tmp_path) -> None:
    outputs = Outputs(tmp_path / "out", LABELS)
    write_image(images / "a.jpg", SOURCE[0]["image"])
    with pytest.raises(UserError, match=r"a\.png: .* overwrite that of .*a\.jpg \(a\.png\); rename one of them"):
        outputs.check(find_images([images]))
    (images / "a.jpg").rename(images / "d_overlay.png")
    with pytest.raises(UserError, match=r"d_overlay\.png: its prediction would overwrite that of .*d\.png"):
        outputs.check(find_images([images]))
    (images / "d_overlay.png").unlink()
    (images / "a.png.png").mkdir()
    (images / "a.png").rename(images / "a.png.png" / "x.png")
    write_image(images / "a.png.jpg", SOURCE[0]["image"])
    with pytest.raises(UserError, match=r"x\.png: the folder of its prediction has the name .*a\.png\.jpg"):
        outputs.check(find_images([images]))


def test_more_classes_than_a_byte_holds_are_refused() -> None:
    with pytest.raises(UserError, match="the model has 300 classes; predictions are written as 8-bit images"):
        label_set({}, with_classes(300))


def test_images_are_not_overwritten(made, images) -> None:
    before = {path: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(UserError, match=r"a\.png: an input that a prediction would overwrite; give another --out"):
        predict(made, find_images([images]), images)
    assert before == {path: path.read_bytes() for path in images.iterdir()}


def test_no_prediction_is_written_beside_the_images(made, tmp_path) -> None:
    """The next `check-data` would read it as an image."""
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"photo\.png: a prediction beside the images that are read; give another --out"
    ):
        predict(made, find_images([tmp_path / "photo.jpg"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_first_image_in_another_range_is_said(made, tmp_path) -> None:
    """12 bits in 16 look black to a network of 8 bits."""
    for name, factor in (("black", 0), ("deep", 257), ("faint", 16), ("more", 16)):
        pixels = SOURCE[0]["image"][..., 0].astype(np.uint16) * factor
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    said: list[str] = []
    found = find_images([tmp_path / f"{name}.png" for name in ("black", "deep", "faint", "more")])
    assert not any(
        error for _, error in predict_files(*made, found, Outputs(tmp_path / "out", LABELS), warn=said.append)
    )
    (line,) = said
    assert re.search(r"faint\.png: its values reach 6\.\d% of what .* full range of the files' type; .*=0,4095$", line)


def test_a_folder_that_cannot_be_made_is_a_user_error(made, images) -> None:
    with pytest.raises(UserError, match="give another --out"):
        predict(made, find_images([images]), images / "a.png" / "out")


def test_names_with_dots_and_folders_keep_apart(tmp_path) -> None:
    write = PredictionWriter(Outputs(tmp_path / "out", LABELS), SOURCE, DEFAULT)
    for name in ("scene.1", "scene.2", "ulm/3"):
        write({**SOURCE[0], "name": name}, SOURCE[0]["label"] % 4)
    write({**SOURCE[0], "name": "../ulm/4"}, SOURCE[0]["label"] % 4)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.png")} == {
        f"{name}{kind}.png" for name in ("scene.1", "scene.2", "ulm/3", "ulm/4") for kind in ("", "_overlay")
    }
    write({**SOURCE[0], "name": "/ulm/3"}, SOURCE[0]["label"] % 4)
    assert str(write.fault).startswith("/ulm/3: its prediction would overwrite that of ulm/3 (ulm/3.png)")


def test_an_evaluation_writes_over_no_file_of_the_data_and_goes_on_after_a_fault(tmp_path) -> None:
    write_image(tmp_path / "a.png", SOURCE[0]["image"])
    before = (tmp_path / "a.png").read_bytes()

    class Files(MadeUp):
        def describe(self, index):
            return str(tmp_path / "a.png"), str(tmp_path / "masks" / "a.png")

    ids = SOURCE[0]["label"] % 4
    write = PredictionWriter(Outputs(tmp_path, LABELS), Files(((40, 50),)), DEFAULT)
    write({**SOURCE[0], "name": "a"}, ids)
    assert str(write.fault) == f"{tmp_path}/a.png: an input that a prediction would overwrite; " + (
        "give another --out"
    )
    write({**SOURCE[0], "name": "b"}, ids)
    assert (tmp_path / "a.png").read_bytes() == before and not (tmp_path / "b.png").exists()
    write = PredictionWriter(Outputs(tmp_path / "out", LABELS), SOURCE, DEFAULT)
    for name in ("x", "x_overlay"):
        write({**SOURCE[0], "name": name}, ids)
    assert str(write.fault).startswith("x_overlay: its prediction would overwrite that of x (x_overlay.png)")
    assert not (tmp_path / "out" / "x_overlay_overlay.png").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "UserError: b: out of memory at 50x40 pixels; give a machine with more memory"),
        (OSError(28, "No space left on device"), "OSError: .*No space left"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division"),
    ],
    ids=["memory", "disk", "program"],
)
def test_no_fault_of_a_write_ends_an_evaluation(tmp_path, monkeypatch, error, told) -> None:
    """`finish`, after the metrics are written, raises the first fault."""
    write, tried = PredictionWriter(Outputs(tmp_path, LABELS), SOURCE, DEFAULT), []

    def fails(outputs, name, *args, **how) -> None:
        tried.append(name)
        if name == "b":
            raise error

    monkeypatch.setattr(Outputs, "write", fails)
    for name in "abc":
        write({**SOURCE[0], "name": name}, SOURCE[0]["label"] % 4)
    assert tried == ["a", "b"]
    with pytest.raises(type(write.fault)) as raised:
        write.finish()
    assert re.match(told, f"{raised.type.__name__}: {raised.value}")


def test_probabilities_and_confidence_are_those_of_segment(made, images, tmp_path) -> None:
    found, labels = find_images([images / "a.png"]), LabelSet(("a", "b/c", "道", "B/c"), LABELS.palette)
    _, expected = segment(*made, read_image(images / "a.png"), return_probabilities=True)
    for kind in ("npy", "png"):
        outputs = Outputs(tmp_path / kind, labels, kind, confidence=True)
        assert [error for _, error in predict_files(*made, found, outputs, Protocol(mode="exact"))] == [None]
        np.testing.assert_array_equal(
            read_mask(tmp_path / kind / "a_confidence.png"), np.rint(expected.max(-1) * 255).astype(np.uint8)
        )
    shares = np.load(tmp_path / "npy" / "a_probabilities.npy")
    assert shares.dtype == np.float16
    np.testing.assert_array_equal(shares, expected.astype(np.float16))
    for k, name in enumerate(("0_a", "1_b_c", "2_道", "3_B_c")):
        written = read_mask(tmp_path / "png" / f"a_probability_{name}.png")
        np.testing.assert_array_equal(written, np.rint(expected[..., k] * 255).astype(np.uint8))


def test_names_of_classes_in_files() -> None:
    assert file_names(["road", "traffic light", "../x", "a" * 300]) == ["road", "traffic light", "___x", "a" * 60]


def write_with_dataset_ids(folder, labels, classes, name="a"):
    image = np.zeros((*classes.shape, 3), np.uint8)
    Outputs(folder, labels, dataset_ids=True).write(name, image, classes)
    (file,) = [file for file in folder.rglob("*") if file.is_file()]
    return file


def test_ids_of_the_data_set(tmp_path) -> None:
    """Cityscapes stores road as 7 and bicycle as 33 (its labels.py); ADE20K counts from 1; a file can hold 16 bits."""
    classes = np.array([[0, 1], [2, 3]])
    name = "berlin/berlin_000000_000019_leftImg8bit"
    file = write_with_dataset_ids(tmp_path / "cityscapes", CITYSCAPES, np.array([[0, 13], [18, 5]]), name)
    assert file.relative_to(tmp_path / "cityscapes").as_posix() == "berlin/berlin_000000_000019.png"
    np.testing.assert_array_equal(read_mask(file), [[7, 26], [33, 17]])
    file = write_with_dataset_ids(tmp_path / "ade", ADE20K, np.array([[0, 149]]))
    np.testing.assert_array_equal(read_mask(file), [[1, 150]])
    file = write_with_dataset_ids(tmp_path / "plain", LABELS, classes)
    np.testing.assert_array_equal(read_mask(file), classes)
    with Image.open(file) as written:
        assert written.mode == "P"
    wide = LabelSet(LABELS.names, LABELS.palette, ((0, 0), (1000, 1), (600, 2), (500, 2), (7, 3), (9, 255)))
    file = write_with_dataset_ids(tmp_path / "wide", wide, classes)
    assert read_mask(file).dtype == np.uint16
    np.testing.assert_array_equal(read_mask(file), [[0, 1000], [500, 7]])
    assert to_stored(wide) == ((0, 1000, 500, 7), ["class 2"])
    with pytest.raises(UserError, match="no stored value stands for the class class 3"):
        to_stored(LabelSet(LABELS.names, LABELS.palette, ((0, 0), (1, 1), (2, 2))))


def test_where_the_ids_of_the_data_set_are_known_from() -> None:
    info = {"class_names": ["a", "b"], "value_map": [[0, 0], [128, 1]]}
    assert to_stored(label_set(info, with_classes(2), dataset_ids=True))[0] == (0, 128)
    older = {"class_names": list(CITYSCAPES.names)}  # From before `value_map` was kept.
    assert to_stored(label_set(older, with_classes(19), dataset_ids=True))[0][:3] == (7, 8, 11)
    with pytest.raises(UserError, match=re.escape("does not say which values the masks of its data set store")):
        label_set({"class_names": ["a", "b"]}, with_classes(2), dataset_ids=True)
