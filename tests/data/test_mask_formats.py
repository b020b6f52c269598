"""Masks in colours, in a channel, of one file for each class, and drawn in labelme."""

import base64
import io
import json
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.config import to_plain
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.labelme import draw_shape
from deeplab_jax.data.mask_formats import ColourMasks, IdMasks, PalettesDifferError, combine
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CITYSCAPES
from tests.support.tiny import tiny_config, tiny_models

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLACK = (250, 50, 83), (51, 221, 0), (0, 0, 0)
IDS = np.array([[0, 0, 1, 1], [0, 2, 2, 1]], np.uint8)
COLOURS = np.array([BLACK, RED, GREEN], np.uint8)
LABELMAP = "# label:color_rgb:parts:actions\nrust:250,50,83::\nbackground:0,0,0::\ncrack:51,221,0::\n"


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def image(path: Path, shape: tuple[int, int] = (2, 4)) -> None:
    put(path, np.zeros((*shape, 3), np.uint8))


def only(root: Path, **options: object) -> np.ndarray:
    """The label of the only example, read by a copy of the source as a worker process has it."""
    source = pickle.loads(pickle.dumps(open_source("folder", split="all", dir=root, **options)))
    assert len(source) == 1
    return source[0]["label"]


@pytest.fixture
def coloured(tmp_path):
    image(tmp_path / "images/1.jpg")
    put(tmp_path / "masks/1.png", COLOURS[IDS])
    return tmp_path


def test_colours_of_a_palette(coloured):
    names = ("background", "rust", "crack")
    np.testing.assert_array_equal(only(coloured, class_names=names, palette=(BLACK, RED, GREEN)), IDS)
    put(coloured / "masks/1.png", IDS)  # a grey mask keeps its ids
    np.testing.assert_array_equal(only(coloured, class_names=names, palette=(BLACK, RED, GREEN)), IDS)


def test_a_palette_image_is_read_by_its_colours_if_all_have_a_class(coloured):
    indexed = Image.fromarray(np.array([7, 3, 5], np.uint8)[IDS])
    colours = np.zeros((256, 3), np.uint8)
    colours[[7, 3, 5]] = COLOURS
    indexed.putpalette(colours.tobytes())
    indexed.save(coloured / "masks/1.png")
    palette = (BLACK, RED, GREEN)
    np.testing.assert_array_equal(only(coloured, class_names=("a", "b", "c"), palette=palette), IDS)
    own = Image.fromarray(IDS)
    own.putpalette(list(range(256)) * 3)
    own.save(coloured / "masks/1.png")
    np.testing.assert_array_equal(only(coloured, class_names=("a", "b", "c"), palette=palette), IDS)


def test_every_colour_of_a_large_palette_keeps_its_class(tmp_path):
    """254 classes and ignored colours: no id is mistaken for a colour without one."""
    rng = np.random.default_rng(0)
    codes = rng.choice(2**24, 300, replace=False)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1)
    ids = np.where(np.arange(300) < 254, np.arange(300), 255)
    read = ColourMasks(
        tuple((tuple(colour), class_id) for colour, class_id in zip(colours.tolist(), ids.tolist(), strict=True))
    )
    put(tmp_path / "m.png", colours.reshape(20, 15, 3).astype(np.uint8))
    np.testing.assert_array_equal(read(str(tmp_path / "m.png")), ids.reshape(20, 15))


def test_colours_are_looked_up_and_not_sorted(coloured, monkeypatch):
    """Sorting every pixel of a mask of 2 megapixels took 7 times the time of reading it."""
    monkeypatch.setattr(np, "unique", None)
    np.testing.assert_array_equal(only(coloured, class_names=("a", "b", "c"), palette=(BLACK, RED, GREEN)), IDS)


def test_unknown_colours_are_named_with_the_file_and_the_count(coloured, capsys):
    wrong = COLOURS[IDS]
    wrong[0, :3] = (9, 8, 7)
    put(coloured / "masks/1.png", wrong)
    with pytest.raises(UserError, match=r"masks/1\.png: 1 colours have no class: \(9, 8, 7\) in 3 pixels"):
        only(coloured, class_names=("a", "b", "c"), palette=(BLACK, RED, GREEN))
    words = [f"--config={ROOT}/configs/folder.py", f"--config.data.dir={coloured}", "--split=all"]
    words += ["--config.data.options.class_names=('a','b','c')"]
    assert main(["check-data", *words, f"--config.data.options.palette={(BLACK, RED, GREEN)}"]) == 2
    assert "(9, 8, 7) in 3 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value_map", "ids", "shown"),
    [
        (((0, 0), (1, 1), (2, 1)), [0, 1, 1], (BLACK, RED)),
        (((0, 0), (1, 1), (2, 255)), [0, 1, 255], (BLACK, RED)),
        (((0, 1), (1, 0), (2, 1)), [1, 0, 1], (RED, BLACK)),
    ],
)
def test_a_map_of_the_colours_of_a_palette(coloured, value_map, ids, shown):
    options = {"class_names": ("a", "b"), "palette": (BLACK, RED, GREEN), "value_map": value_map}
    np.testing.assert_array_equal(only(coloured, **options), np.array(ids)[IDS])
    assert open_source("folder", split="all", dir=coloured, **options).labels.palette == shown
    put(coloured / "masks/1.png", IDS)  # Grey masks store these numbers themselves.
    np.testing.assert_array_equal(only(coloured, **options), np.array(ids)[IDS])


def test_a_palette_of_pictures_leaves_the_map_to_the_values(coloured):
    put(coloured / "masks/1.png", np.array([0, 255, 255], np.uint8)[IDS])
    options = {"class_names": ("a", "b"), "palette": (BLACK, RED), "value_map": ((0, 0), (255, 1))}
    np.testing.assert_array_equal(only(coloured, **options), IDS > 0)


def test_more_colours_than_classes_have_a_fix_that_can_be_typed(coloured, capsys):
    words = [f"--config={ROOT}/configs/folder.py", f"--config.data.dir={coloured}", "--split=all"]
    words += ["--config.data.options.class_names=('a','b')", f"--config.data.options.palette={(BLACK, RED, GREEN)}"]
    assert main(["check-data", *words]) == 2
    fix = "--config.data.options.value_map=((0,0),(1,1),(2,255))"
    assert f'the class id of each of the 3 (255: ignored), here "{fix}"' in capsys.readouterr().err
    assert main(["check-data", *words, fix]) == 0


def test_colours_without_a_palette_name_the_option(coloured):
    with pytest.raises(UserError, match=r"masks/1\.png: mask of mode RGB .* say with --config\.data\.options\.palette"):
        only(coloured, class_names=("a", "b", "c"))


def test_published_palettes(coloured):
    put(coloured / "masks/1.png", np.array([BLACK, (128, 64, 128), (0, 0, 142)], np.uint8)[IDS])
    expected = np.array([255, 0, CITYSCAPES.names.index("car")], np.uint8)[IDS]
    np.testing.assert_array_equal(only(coloured, palette="cityscapes"), expected)
    put(coloured / "masks/1.png", np.array([(224, 224, 192), (128, 0, 0), BLACK], np.uint8)[IDS])
    np.testing.assert_array_equal(only(coloured, palette="voc"), np.array([255, 1, 0], np.uint8)[IDS])
    for name, names in (("vocs", r"did you mean voc\?"), ("x", "choose from voc, cityscapes")):
        fix = rf"give the path of a labelmap\.txt from there, or a name: {names}$"
        with pytest.raises(UserError, match=rf"palette='{name}': no such file in .*; {fix}"):
            only(coloured, palette=name)


def cvat(root: Path) -> None:
    """CVAT's export "Segmentation mask 1.1"."""
    for name in ("a b", "c"):
        image(root / f"JPEGImages/{name}.jpg")
        put(root / f"SegmentationClass/{name}.png", COLOURS[IDS])
        put(root / f"SegmentationObject/{name}.png", COLOURS[IDS])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "labelmap.txt").write_text(LABELMAP)


def test_cvats_export_works_by_its_folder_alone(tmp_path, capsys):
    cvat(tmp_path)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("a b\nc\n")
    words = [f"--config={ROOT}/configs/folder.py", f"--config.data.dir={tmp_path}"]
    assert main(["check-data", *words, "--config.data.options.val_fraction=0.5"]) == 0
    assert "found JPEGImages/ and SegmentationClass/" in capsys.readouterr().out
    source = open_source("folder", split="train", dir=tmp_path, val_fraction=0.5)
    assert source.labels.names == ("background", "rust", "crack") and source.labels.palette == (BLACK, RED, GREEN)
    np.testing.assert_array_equal(source[0]["label"], IDS)
    for split, name in (("Train", "c"), ("Validation", "a b")):
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(name + "\n")
    assert [open_source("folder", split=s, dir=tmp_path)[0]["name"] for s in ("train", "val")] == ["c", "a b"]


def test_class_names_choose_the_order_of_a_labelmap(tmp_path):
    cvat(tmp_path)
    source = open_source("folder", split="all", dir=tmp_path, class_names=("crack", "background", "rust"))
    np.testing.assert_array_equal(source[0]["label"], np.array([1, 2, 0], np.uint8)[IDS])
    with pytest.raises(UserError, match=r"labelmap\.txt has the classes .* or leave class_names out"):
        open_source("folder", split="all", dir=tmp_path, class_names=("crack", "sky", "rust"))
    (tmp_path / "labelmap.txt").write_text("sky:1,2::\n")
    with pytest.raises(UserError, match=r"labelmap\.txt, line 1: 'sky:1,2::'; write NAME:RED,GREEN,BLUE"):
        open_source("folder", split="all", dir=tmp_path)


def test_roboflows_values_become_class_ids(tmp_path):
    image(tmp_path / "train/x.jpg")
    put(tmp_path / "train/x_mask.png", np.array([0, 3, 7], np.uint8)[IDS])
    (tmp_path / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n7, scale\n3, pointer\n")
    source = open_source("folder", split="train", dir=tmp_path)
    assert source.labels.names == ("background", "pointer", "scale")
    np.testing.assert_array_equal(source[0]["label"], IDS)


def test_the_red_channel_of_carla(coloured):
    stored = np.zeros((2, 4, 4), np.uint8)
    stored[..., 0], stored[..., 1], stored[..., 3] = IDS, 99, 255
    put(coloured / "masks/1.png", stored)
    np.testing.assert_array_equal(only(coloured, class_names=("a", "b", "c"), mask_channel=0), IDS)
    with pytest.raises(UserError, match="mask_channel is 3; give 0"):
        only(coloured, class_names=("a", "b", "c"), mask_channel=3)


def transparent(path: Path, class_ids: np.ndarray) -> None:
    """Write what programs for drawing write: where there is no object, the picture is transparent."""
    put(path, np.dstack([COLOURS[class_ids], np.where(class_ids, np.uint8(255), np.uint8(0))]))


def deep(path: Path, class_ids: np.ndarray) -> None:
    cv2.imwrite(str(path), 257 * COLOURS[class_ids][..., ::-1].astype(np.uint16))


@pytest.mark.parametrize(("write", "kind"), [(transparent, "RGBA"), (deep, "RGB")])
@pytest.mark.parametrize("options", [{"palette": (BLACK, RED, GREEN)}, {"mask_channel": 0}])
def test_colours_that_are_not_read_say_how_to_save_them(coloured, write, kind, options):
    write(coloured / "masks/1.png", IDS)
    message = (
        rf"masks/1\.png: a mask of mode {kind}, where colours of 8 bits are read; save it as RGB PNG without alpha$"
    )
    with pytest.raises(UserError, match=message):
        only(coloured, class_names=("a", "b", "c"), **options)
    Image.open(coloured / "masks/1.png").convert("RGB").save(coloured / "masks/1.png")
    value_map = {} if "palette" in options else {"value_map": tuple((int(c[0]), i) for i, c in enumerate(COLOURS))}
    np.testing.assert_array_equal(only(coloured, class_names=("a", "b", "c"), **options, **value_map), IDS)


def test_a_transparent_entry_of_a_palette_has_its_colour(coloured):
    indexed = Image.fromarray(np.array([7, 3, 5], np.uint8)[IDS])
    colours = np.zeros((256, 3), np.uint8)
    colours[[7, 3, 5]] = COLOURS
    indexed.putpalette(colours.tobytes())
    indexed.save(coloured / "masks/1.png", transparency=7)
    names = ("background", "rust", "crack")
    np.testing.assert_array_equal(only(coloured, class_names=names, palette=(BLACK, RED, GREEN)), IDS)


# One file for each class.


def test_a_transparent_file_of_a_class_says_how_to_save_it(tmp_path):
    image(tmp_path / "images/1.jpg")
    transparent(tmp_path / "masks/1/rust.png", IDS)
    with pytest.raises(UserError, match=r"rust\.png: a mask of mode RGBA, .*; save it as RGB PNG without alpha"):
        only(tmp_path)


@pytest.mark.parametrize("mask", ["masks/1/{}.png", "masks/1_{}.png"])
def test_one_file_for_each_class(tmp_path, mask):
    image(tmp_path / "images/1.jpg")
    for class_id, name in ((1, "crack"), (2, "rust")):
        put(tmp_path / mask.format(name), np.uint8(255) * (class_id == IDS))
    source = open_source("folder", split="all", dir=tmp_path)
    assert source.labels.names == ("background", "crack", "rust")
    np.testing.assert_array_equal(source[0]["label"], IDS)
    # Without a class for them, unmarked pixels count as nothing.
    label = only(tmp_path, class_names=("rust", "crack"))
    np.testing.assert_array_equal(label, np.array([255, 1, 0], np.uint8)[IDS])
    both = np.full((2, 4), 255, np.uint8)
    put(tmp_path / mask.format("crack"), both)
    with pytest.raises(UserError, match=r"two classes claim 2 pixels.*overlap=ignore.*overlap=last"):
        only(tmp_path)
    assert only(tmp_path, overlap="ignore")[1].tolist() == [1, 255, 255, 1]
    assert only(tmp_path, overlap="last")[1].tolist() == [1, 2, 2, 1]


def test_parts_of_one_class_do_not_collide():
    marked = np.array([[True, True, False]])
    label = combine([(1, marked), (1, marked[:, ::-1])], rest=0, overlap="refuse", name="x")
    assert label.tolist() == [[1, 1, 1]]


# labelme. The values were drawn by hand after labelme.utils.shape_to_mask.


def drawn(kind: str, points: list[list[float]], **more: object) -> list[list[int]]:
    shape = {"shape_type": kind, "points": points, **more}
    return draw_shape(shape, 5, 6).astype(int).tolist()


def test_shapes_cover_their_outlines():
    rectangle = [[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6, [0] * 6]
    assert drawn("rectangle", [[1, 1], [3, 2]]) == drawn("rectangle", [[3, 2], [1, 1]]) == rectangle
    assert drawn("polygon", [[1, 1], [3, 1], [3, 2], [1, 2]]) == rectangle
    assert drawn("circle", [[2, 2], [3, 2]])[2] == [0, 1, 1, 1, 0, 0]
    assert np.array(drawn("point", [[2, 2]])).all()  # 5 pixels around it
    assert np.array(drawn("line", [[0, 2], [5, 2]])).all()  # 10 pixels wide
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 1], [1, 0, 0]], np.uint8)).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    pasted = drawn("mask", [[2, 1], [4, 2]], mask=encoded)
    assert pasted[1:3] == [[0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]]


def labelme(file: Path, *shapes: tuple) -> None:
    content = {
        "imagePath": "x.jpg",
        "imageHeight": 2,
        "imageWidth": 4,
        "shapes": [dict(zip(("label", "shape_type", "points", "mask"), shape, strict=False)) for shape in shapes],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("place", ["{}.json", "images/{}.json", "annotations/{}.json"])
def test_outlines_of_labelme(tmp_path, place):
    for name in "ab":
        image(tmp_path / ("" if place == "{}.json" else "images") / f"{name}.jpg")
    all_of_it = ("rust", "rectangle", [[0, 0], [3, 1]])
    later = ("crack", "rectangle", [[1, 0], [2, 0]])
    ignored = ("__ignore__", "rectangle", [[3, 1], [3, 1]])
    labelme(tmp_path / place.format("a"), all_of_it, later, ignored)
    labelme(tmp_path / place.format("b"))
    source = open_source("folder", split="all", dir=tmp_path)
    assert source.labels.names == ("_background_", "crack", "rust")
    assert source[0]["label"].tolist() == [[2, 1, 1, 2], [2, 2, 2, 255]] and not source[1]["label"].any()
    with pytest.raises(UserError, match=r"a\.json: shape 1 is 'rust', which is no class"):
        open_source("folder", split="all", dir=tmp_path, class_names=("background", "crack"))[0]


def test_outlines_need_a_class_for_what_is_outside(tmp_path):
    """A list may name only what is drawn. Pixels outside of all outlines are never of a class that is drawn."""
    image(tmp_path / "1.jpg")
    labelme(tmp_path / "1.json", ("crack", "rectangle", [[0, 0], [1, 1]]))
    (tmp_path / "labels.txt").write_text("crack\nrust\n")
    source = open_source("folder", split="all", dir=tmp_path)
    assert source.labels.names == ("_background_", "crack", "rust")
    assert source[0]["label"].tolist() == [[1, 1, 0, 0]] * 2
    fix = r"name the background first: \"--config\.data\.options\.class_names=\('_background_', 'crack', 'rust'\)\"$"
    with pytest.raises(UserError, match=f"there are outlines of 'crack'; {fix}"):
        open_source("folder", split="all", dir=tmp_path, class_names=("crack", "rust"))
    # The first class may have any name, as long as it is not drawn.
    source = open_source("folder", split="all", dir=tmp_path, class_names=("sound", "crack"))
    assert source[0]["label"].tolist() == [[1, 1, 0, 0]] * 2


@pytest.mark.parametrize("name", ["background", "Background", "_background_"])
def test_a_background_that_is_drawn_is_the_background(tmp_path, name):
    image(tmp_path / "1.jpg")
    labelme(tmp_path / "1.json", ("crack", "rectangle", [[0, 0], [2, 1]]), (name, "rectangle", [[0, 0], [0, 1]]))
    source = open_source("folder", split="all", dir=tmp_path)
    assert source.labels.names == (name, "crack")
    assert source[0]["label"].tolist() == [[0, 1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (("rust", "polygon", [[0, 0], [1, 1]]), "a polygon of 2 points"),
        (("rust", "star", [[0, 0]]), "unknown shape 'star'"),
        (("rust", "polygon", [[0, 0], [1, 1], [1e9, 0]]), "far from any image"),
        (("rust", "mask", [[0, 0], [1, 1]], "Z2FyYmFnZQ=="), "cannot identify image file"),
    ],
)
def test_shapes_that_cannot_be_drawn(tmp_path, shape, complaint):
    image(tmp_path / "1.jpg")
    labelme(tmp_path / "1.json", shape)
    with pytest.raises(UserError, match=rf"1\.json: shape 1 \('rust'\) cannot be drawn \(.*{complaint}"):
        only(tmp_path)


def test_labels_of_labelme2voc(tmp_path):
    image(tmp_path / "JPEGImages/1.jpg")
    put(tmp_path / "SegmentationClassPNG/1.png", IDS)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nrust\ncrack\n")
    source = open_source("folder", split="all", dir=tmp_path)
    assert source.labels.names == ("_background_", "rust", "crack")
    np.testing.assert_array_equal(source[0]["label"], IDS)


# A fix that is printed can be typed.


def test_the_suggested_value_map_can_be_typed(coloured, capsys):
    put(coloured / "masks/1.png", np.uint8(255) * (IDS > 0))
    words = ["check-data", f"--config={ROOT}/configs/folder.py", f"--config.data.dir={coloured}", "--split=all"]
    words += ["--config.data.options.class_names=('a','b')"]
    assert main(words) == 2
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("suggestion"))
    assert main([*words, line.split(": ")[1].strip('"')]) == 0
    assert "    1  b" in capsys.readouterr().out


def test_palettes_that_differ_stop_training_and_evaluation(tmp_path, capsys) -> None:
    """Indices that another program has ordered anew are other classes, whichever file is read first; greys are values,
    and colours that no pixel has do not matter. Bad files may be skipped, but not for this.
    """
    colours = [(0, 0, 0), (200, 0, 0), (0, 200, 0)]
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    ids = np.indices((40, 40)).sum(0).astype(np.uint8) // 4 % 2

    def write(index, palette):
        Image.fromarray(np.full((40, 40, 3), 20 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
        mask = Image.fromarray(ids)
        mask.putpalette(np.array(palette, np.uint8).tobytes())
        mask.save(tmp_path / "masks" / f"{index}.png")

    for index in range(4):
        write(index, [*colours[:2], (index, 0, 9)])
    options = {"class_names": ("ground", "house"), "val_fraction": 0.5}
    config = tiny_config(**{"data.name": "folder", "data.dir": str(tmp_path), "data.options": options})
    (tmp_path / "config.json").write_text(json.dumps(to_plain(config)))
    run = ["train", "--config", str(tmp_path / "config.json"), "--config.train.steps=4", "--workdir"]
    with tiny_models():
        assert main([*run, str(tmp_path / "good")]) == 0
        write(3, [colours[1], colours[0], colours[2]])
        capsys.readouterr()
        for k, more in enumerate(([], ["--config.data.on_error=skip", "--config.data.max_skipped=1"])):
            assert main([*run, str(tmp_path / f"bad{k}"), *more]) == 2
            error = capsys.readouterr().err
            assert (
                "palette index" in error and "/masks/3.png" in error and len(re.findall(r"masks/\d\.png", error)) == 2
            )
        assert (
            main(["evaluate", "--model", str(tmp_path / "good"), "--split", "all", "--out", str(tmp_path / "val")]) == 2
        )
    error = capsys.readouterr().err
    assert "palette index" in error and "/masks/3.png" in error and len(re.findall(r"masks/\d\.png", error)) == 2


def test_a_copy_of_the_reader_of_masks_begins_anew(tmp_path) -> None:
    for name, palette in (("a", ((1, 2, 3), (4, 5, 6))), ("b", ((1, 2, 3), (4, 5, 7)))):
        mask = Image.fromarray(np.uint8([[0, 1]]))
        mask.putpalette(np.array(palette, np.uint8).tobytes())
        mask.save(tmp_path / f"{name}.png")
    read = IdMasks()
    assert read(str(tmp_path / "a.png")).tolist() == [[0, 1]]
    assert pickle.loads(pickle.dumps(read))(str(tmp_path / "b.png")).tolist() == [[0, 1]]
    message = r"b\.png: palette index 1 is drawn \(4, 5, 7\), and \(4, 5, 6\) in .*a\.png"
    with pytest.raises(PalettesDifferError, match=message):
        read(str(tmp_path / "b.png"))
    coloured = ColourMasks((((9, 9, 9), 0),))
    coloured(str(tmp_path / "a.png"))
    with pytest.raises(PalettesDifferError, match=message):
        coloured(str(tmp_path / "b.png"))
