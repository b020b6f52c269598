"""Prediction of files: what is written, and that a bad image costs only itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.predictor import find_images, predict_files
from tests.tiny import MadeUp, tiny_model, tiny_models


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with tiny_models():
        yield tiny_model()


def photo() -> Image.Image:
    return Image.fromarray(MadeUp(((40, 52),))[0]["image"])


def test_class_ids_and_palette_are_written(model: Any, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    palette = [(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]
    [(path, error)] = predict_files(*model, [tmp_path / "a.png"], tmp_path / "out", palette=palette)
    assert (path, error) == (tmp_path / "a.png", None)
    with Image.open(tmp_path / "out" / "a.png") as written:
        assert written.mode == "P"
        np.testing.assert_array_equal(np.asarray(written), segment(*model, np.asarray(photo())))
        assert written.getpalette()[:12] == list(range(1, 13))
    with Image.open(tmp_path / "out" / "a_overlay.png") as drawn:
        assert (drawn.mode, drawn.size) == ("RGB", (52, 40))


def test_every_kind_of_image_is_read(model: Any, tmp_path: Path) -> None:
    image = photo()
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    paths = find_images([tmp_path])
    assert len(paths) == 5
    assert [error for _, error in predict_files(*model, paths, tmp_path / "out")] == [None] * 5
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 5


def test_a_bad_image_is_named_and_the_others_are_done(model: Any, tmp_path: Path) -> None:
    photo().save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    found = dict(predict_files(*model, find_images([tmp_path]), tmp_path / "out"))
    assert found[tmp_path / "good.png"] is None
    for name in ("empty.png", "cut.png"):
        assert name in str(found[tmp_path / name])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.png", "good_overlay.png"]


def test_paths_that_hold_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        find_images([tmp_path / "missing"])
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no image"):
        find_images([tmp_path / "none"])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        photo().save(tmp_path / folder / "a.png")
    with pytest.raises(UserError, match="overwrite"):
        find_images([tmp_path / "one", tmp_path / "two"])


def test_predictions_never_overwrite_the_images(model: Any, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match="another --out"):
        list(predict_files(*model, [tmp_path / "a.png"], tmp_path))
    assert (tmp_path / "a.png").read_bytes() == before
