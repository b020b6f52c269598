"""Prediction of files: names, what is written, and images that cannot be read."""

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import read_image, read_mask, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.predictor import find_images, predict_files, prediction_writer
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.labels import LabelSet, colormap
from tests.support.tiny import MadeUp, tiny_model, tiny_models

SOURCE = MadeUp(((40, 50), (33, 60), (20, 20)))


@pytest.fixture(scope="module")
def made():
    with tiny_models():
        return tiny_model("cascade_tiny")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.c.png", "d.png")):
        write_image(folder / name, SOURCE[index]["image"])
    return folder


def test_predictions_are_indexed_and_overlays_have_the_size_of_the_image(made, images, tmp_path) -> None:
    out = tmp_path / "new" / "out"
    progress = []
    exact, report = Protocol(mode="exact"), lambda *call: progress.append(call)
    done = list(predict_files(*made, find_images([images]), out, exact, progress=report))
    assert [(path.name, error) for path, error in done] == [("a.png", None), ("b.c.png", None), ("d.png", None)]
    assert progress[-1] == (3, 3)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}{kind}.png" for stem in ("a", "b.c", "d") for kind in ("", "_overlay")
    )
    for path, _ in done:
        classes = read_mask(out / f"{path.stem}.png")
        np.testing.assert_array_equal(classes, segment(*made, read_image(path)))
        with Image.open(out / f"{path.stem}.png") as written:
            assert written.mode == "P"
            np.testing.assert_array_equal(np.reshape(written.getpalette(), (-1, 3))[:4], colormap(4))
        assert read_image(out / f"{path.stem}_overlay.png").shape == read_image(path).shape


def test_a_bad_image_does_not_end_the_run(made, images, tmp_path) -> None:
    (images / "a.png").write_bytes(b"")
    done = list(predict_files(*made, find_images([images]), tmp_path / "out"))
    assert "a.png: empty file" in str(done[0][1])
    assert [error for _, error in done[1:]] == [None, None]


def test_modes_and_views(made, images, tmp_path) -> None:
    paths = find_images([images / "a.png"])
    padded, views = {"mode": "padded", "pad_to": ((65, 65),)}, {"scales": (0.75, 1.0), "flip": True}
    for options in (padded, views, {"window": (33, 40)}):
        list(predict_files(*made, paths, tmp_path / "out", Protocol(**options)))
        assert read_mask(tmp_path / "out" / "a.png").shape == (40, 50)
    with pytest.raises(UserError, match="window="):
        Protocol(window=(33,))


def test_find_images_takes_files_and_folders(images) -> None:
    (images / "notes.txt").touch()
    assert [path.name for path in find_images([images])] == ["a.png", "b.c.png", "d.png"]
    assert find_images([images / "d.png", images / "d.png"]) == [images / "d.png"] * 2
    (images / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in this folder"):
        find_images([images / "empty"])
    with pytest.raises(UserError, match="gone: no such file or folder"):
        find_images([images, images / "gone"])
    write_image(images / "a.jpg", SOURCE[0]["image"])
    with pytest.raises(UserError, match=r"a\.png: its prediction would overwrite that of .*a\.jpg"):
        find_images([images])
    (images / "a.jpg").rename(images / "d_overlay.png")
    with pytest.raises(UserError, match=r"d_overlay\.png: its prediction would overwrite that of .*d\.png"):
        find_images([images])


def test_more_classes_than_a_byte_holds_are_refused(made, images, tmp_path) -> None:
    model, variables = made
    with pytest.raises(UserError, match="the model has 300 classes; predictions are written as 8-bit images"):
        list(predict_files(model.clone(num_classes=300), variables, find_images([images]), tmp_path / "out"))


def test_images_are_not_overwritten(made, images) -> None:
    before = {path: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(UserError, match=r"a\.png: an image that a prediction would overwrite; give another --out"):
        list(predict_files(*made, find_images([images]), images))
    assert before == {path: path.read_bytes() for path in images.iterdir()}


def test_a_folder_that_cannot_be_made_is_a_user_error(made, images) -> None:
    with pytest.raises(UserError, match="give another --out"):
        list(predict_files(*made, find_images([images]), images / "a.png" / "out"))


def test_names_with_dots_and_folders_keep_apart(tmp_path) -> None:
    write = prediction_writer(tmp_path / "out", LabelSet(tuple("abcd"), colormap(4)))
    for name in ("scene.1", "scene.2", "ulm/3"):
        write({**SOURCE[0], "name": name}, SOURCE[0]["label"] % 4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}{kind}.png" for name in ("scene.1", "scene.2", "ulm_3") for kind in ("", "_overlay")
    }
