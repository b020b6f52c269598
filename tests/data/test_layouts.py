"""Folders of users: the layouts that are found by themselves, their names, their lists, and what is held out."""

import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.config import load_config
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.holdout import hold_out
from deeplab_jax.data.layouts import collect
from deeplab_jax.data.lists import read_lines
from deeplab_jax.errors import UserError
from tests.support.layouts import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"--config={ROOT}/configs/folder.py:debug"
NAMES = "--config.data.options.class_names=('a','b')"
SIZE = (6, 8)


def put(image: Path, mask: Path, value: int = 0) -> None:
    for path, array in ((image, np.full((*SIZE, 3), 90, np.uint8)), (mask, np.full(SIZE, value, np.uint8))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def found(root: Path, split: str, **options: object) -> dict[str, int]:
    """Name -> the one class id of each example."""
    source = open_source("folder", split=split, dir=root, **{"class_names": ("a", "b"), **options})
    return {source[i]["name"]: int(source[i]["label"].max()) for i in range(len(source))}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{split}/{name}.jpg", "masks/{split}/{name}.png"),
        ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
        ("img_dir/{split}/{name}.jpg", "ann_dir/{split}/{name}.png"),
        ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
        ("{split}/{name}.jpg", "{split}_labels/{name}.png"),
        ("{split}_images/{name}.png", "{split}_masks/{name}.png"),
        ("Images/{split}/{name}.jpg", "Label/{split}/{name}.png"),
        ("{split}/img/{name}.jpg", "{split}/annotations/{name}_label.png"),
    ],
)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_layouts_with_splits(tmp_path, image, mask, val):
    for split, names, value in (("train", "xyz", 0), (val, "vw", 1)):
        for name in names:
            words = {"split": split, "name": name}
            put(tmp_path / image.format(**words), tmp_path / mask.format(**words), value)
    # The configuration's own val_fraction gives way to folders.
    assert found(tmp_path, "train", val_fraction=0.2) == {"x": 0, "y": 0, "z": 0}
    assert found(tmp_path, "val", val_fraction=0.2) == {"v": 1, "w": 1}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("image/{}.jpg", "label/{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClassPNG/{}.png"),
        ("imgs/{}.jpg", "annotations/{}_mask.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}.jpg", "{}.png"),
    ],
)
def test_layouts_without_splits(tmp_path, image, mask):
    for index in range(10):
        put(tmp_path / image.format(index), tmp_path / mask.format(index), index % 2)
    assert found(tmp_path, "all") == {str(index): index % 2 for index in range(10)}
    train, val = (found(tmp_path, split, val_fraction=0.2) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2) and not train.keys() & val.keys()


@pytest.mark.parametrize(
    ("image", "mask", "name"),
    [
        ("images/tile_{}_img.png", "masks/tile_{}_mask.png", "tile_{}"),
        ("images/tile_{}-image.png", "masks/tile_{}.png", "tile_{}"),
        ("images/{}_img.png", "masks/{}_img.png", "{}_img"),
        ("images/{}_img.png", "masks/{}_img_mask.png", "{}_img"),
        ("{}_sat.jpg", "{}_mask.png", "{}"),
    ],
)
def test_an_image_may_have_an_end_that_its_mask_lacks(tmp_path, image, mask, name):
    for index in range(2):
        put(tmp_path / image.format(index), tmp_path / mask.format(index), index)
    assert found(tmp_path, "all") == {name.format(index): index for index in range(2)}


def test_the_splits_of_coco_are_not_divided_anew(tmp_path):
    """As in COCO-Stuff: the year stands in the names of the folders."""
    for word, names, value in (("train2017", "wxyz", 0), ("val2017", "uv", 1)):
        for name in names:
            put(tmp_path / f"images/{word}/{name}.jpg", tmp_path / f"annotations/{word}/{name}.png", value)
    assert found(tmp_path, "train", val_fraction=0.2) == dict.fromkeys("wxyz", 0)
    assert found(tmp_path, "val", val_fraction=0.2) == {"u": 1, "v": 1}


def test_only_training_folders_are_divided(tmp_path):
    for index in range(5):
        put(tmp_path / f"train/images/{index}.jpg", tmp_path / f"train/masks/{index}.png")
    assert len(found(tmp_path, "train", val_fraction=0.2)) == 4
    assert len(found(tmp_path, "val", val_fraction=0.2)) == 1


def test_two_layouts_that_fit_are_named_with_the_option_to_choose(tmp_path):
    put(tmp_path / "imgs/1.jpg", tmp_path / "labels/1.png")
    put(tmp_path / "imgs/1.jpg", tmp_path / "gt/1.png", 1)
    with pytest.raises(UserError, match=r"both imgs/ and labels/ and imgs/ and gt/ could be the data") as error:
        found(tmp_path, "all")
    flags = [word.strip("'") for word in str(error.value).split() if word.startswith("--config")]
    assert flags == ["--config.data.options.images='imgs", "--config.data.options.masks='labels"]
    assert found(tmp_path, "all", images="imgs", masks="gt") == {"1": 1}


def test_the_option_to_choose_serves_every_split(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for index, images, masks in (
            (i, *pair) for i in range(count) for pair in (("image", "label"), ("img", "mask"))
        ):
            put(tmp_path / split / images / f"{index}.jpg", tmp_path / split / masks / f"{index}.png")
    with pytest.raises(UserError, match="could be the data; choose with options: ") as error:
        found(tmp_path, "train")
    options = re.findall(r"--config\.data\.options\.(\w+)='(.*?)'", str(error.value))
    assert options == [("images", "{split}/image"), ("masks", "{split}/mask")]
    assert [len(found(tmp_path, split, **dict(options))) for split in ("train", "val")] == [3, 2]


@pytest.mark.parametrize("val", ["val", "valid", "Validation", ""])
@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("images/{}", ("labels/{}", "annotations/{}")),
        ("{}", ("{}_masks", "{}_labels")),
        ("{}/img", ("{}/mask", "{}/annot")),
        ("{}", ("{}_gt", "{}annot")),
    ],
)
def test_the_choice_between_two_layouts_keeps_each_split_with_its_masks(tmp_path, image, masks, val):
    """Training masks are of class 0, those of validation of class 1; without a folder for validation a part is held
    out.
    """
    for word, names, value in (("train", "wxyz", 0), (val, "uv", 1)):
        for name, row in ((name, row) for name in names for row in masks if word):
            put(tmp_path / image.format(word) / f"{name}.jpg", tmp_path / row.format(word) / f"{name}.png", value)
    with pytest.raises(UserError, match="could be the data; choose with options: ") as error:
        found(tmp_path, "val", val_fraction=0.25)
    options = dict(re.findall(r"--config\.data\.options\.(\w+)='(.*?)'", str(error.value)))
    assert options == {"images": image.format("{split}"), "masks": masks[0].format("{split}")}
    train, held = (found(tmp_path, split, val_fraction=0.25, **options) for split in ("train", "val"))
    assert (len(train), set(train.values())) == (4 if val else 3, {0})
    assert (len(held), set(held.values())) == ((2, {1}) if val else (1, {0}))


def test_a_glob_for_each_split(tmp_path):
    for word, value in (("train", 0), ("valid", 1)):
        put(tmp_path / f"photos/{word}/1.jpg", tmp_path / f"truth/{word}_1.png", value)
    options = {"images": "photos/{split}/*.jpg", "masks": "truth/{split}_*.png"}
    assert [found(tmp_path, split, **options) for split in ("train", "val")] == [{"1": 0}, {"1": 1}]


def test_equal_names_in_folders_keep_the_folder(tmp_path):
    for video, value in (("v1", 0), ("v2", 1)):
        put(tmp_path / f"images/{video}/0001.png", tmp_path / f"masks/{video}/0001.png", value)
    (tmp_path / "images/v1/tiles.png").mkdir()
    assert found(tmp_path, "all") == {"v1/0001": 0, "v2/0001": 1}


def test_both_unicode_forms_are_one_name(tmp_path):
    name = "Stra\u00dfe \u00e9"
    put(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{unicodedata.normalize('NFD', name)}.png", 1)
    (tmp_path / "list.txt").write_text(unicodedata.normalize("NFD", name), encoding="utf-8")
    assert found(tmp_path, "train", split_lists={"train": "list.txt"}) == {name: 1}


@pytest.mark.parametrize("mask", ["{}_mask.png", "{}.png", "masks/{}/b.png", "masks/{}_mask.png"])
def test_both_unicode_forms_are_one_name_in_every_layout(tmp_path, mask):
    name = "Stra\u00dfe \u00e9"
    folder = "images/" if "masks/" in mask else ""
    put(tmp_path / f"{folder}{name}.jpg", tmp_path / mask.format(unicodedata.normalize("NFD", name)), 1)
    assert found(tmp_path, "all") == {name: 1}


def test_both_unicode_forms_are_one_class(tmp_path):
    name = "b\u00e9ton"
    put(tmp_path / "images/1.jpg", tmp_path / f"masks/1/{unicodedata.normalize('NFD', name)}.png", 1)
    assert found(tmp_path, "all", class_names=("background", name)) == {"1": 1}
    assert open_source("folder", split="all", dir=tmp_path).labels.names == ("background", name)


def test_masks_beside_many_images_are_found_in_time(tmp_path):
    """Each path is compared with a few others only. Masks in a list took as many comparisons as its square."""
    compared = 0

    class Counting(type(tmp_path)):  # type: ignore[misc]
        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return super().__eq__(other)

        __hash__ = type(tmp_path).__hash__

    for index in range(300):
        (tmp_path / f"{index}.jpg").touch()
        (tmp_path / f"{index}_mask.png").touch()
    files = collect(Counting(tmp_path), Counting(tmp_path), Counting(tmp_path))
    assert len(files.images) == len(files.masks) == 300 and files.masks["7"].name == "7_mask.png"
    assert compared < 10 * 600


def test_names_that_look_like_globs(tmp_path):
    root = tmp_path / "[v2] what? *"
    put(root / "images/1.jpg", root / "masks/1.png", 1)
    put(root / "my [set]/1.jpg", root / "truth [a]/1_mask.png", 1)
    assert found(root, "all") == {"1": 1}
    assert found(root, "all", images="my [set]", masks="truth [a]") == {"1": 1}
    assert found(root, "all", images="my [set]", masks="truth*/*_mask.png") == {"1": 1}


def test_a_tilde_is_the_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "data/images/1.jpg", tmp_path / "data/masks/1.png", 1)
    (tmp_path / "list.txt").write_text("~/data/images/1.jpg\n")
    lists = "--config.data.options.split_lists=(('train','~/list.txt'),('val','~/list.txt'))"
    words = ["check-data", CONFIG, NAMES, "--config.data.dir=~/data", lists, "--split", "train", "--json=~/report.json"]
    assert main(words) == 0
    assert (tmp_path / "report.json").is_file() and not (tmp_path / "~").exists()
    assert "train: found images/ and masks/; listed in ~/list.txt" in capsys.readouterr().out
    options = {"split": "all", "class_names": ("a", "b")}
    assert len(open_source("folder", dir="~/data", **options)) == 1
    (tmp_path / "other").mkdir()
    elsewhere = open_source("folder", dir="~/other", images="~/data/images", masks=f"{tmp_path}/data/masks", **options)
    assert len(elsewhere) == 1 and elsewhere.note == "found ../data/images/ and ../data/masks/"


def test_check_data_says_the_layout(tmp_path, capsys):
    for split in ("train", "valid"):
        put(tmp_path / f"{split}/1.jpg", tmp_path / f"{split}/1_mask.png")
        Image.fromarray(np.tile(np.uint8([0, 1]), (6, 4))).save(tmp_path / split / "1_mask.png")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, scale\n")
    assert main(["check-data", CONFIG, f"--config.data.dir={tmp_path}"]) == 0
    assert "val: found valid/ (NAME and NAME_mask); classes from _classes.csv\n" in capsys.readouterr().out


# Options that a flag unsets.


def test_a_flag_unsets_an_option(tmp_path):
    for text in ("None", ""):
        config = load_config([CONFIG, f"--config.data.options.val_fraction={text}"])
        assert "val_fraction" not in config.data.options
    assert load_config([CONFIG, "--config.data.options.val_fraction=0.3"]).data.options.val_fraction == 0.3


def test_older_runs_keep_their_validation_images(tmp_path):
    text = '{"data": {"name": "folder", "options": {"class_names": ["a", "b"], "val_fraction": 0.2}}}'
    for name in ("config.json", "mine.json"):
        (tmp_path / name).write_text(text)
    assert load_config([f"--config={tmp_path}/config.json"]).data.options.val_rule == "share"
    (tmp_path / "run.json").write_text("[]")  # Now it is the configuration of a run.
    assert load_config([f"--config={tmp_path}/config.json"]).data.options.val_rule == "hash"
    assert load_config([f"--config={tmp_path}/mine.json"]).data.options.val_rule == "share"
    assert load_config([CONFIG]).data.options.val_rule == "share"
    again = load_config([CONFIG, "--config.data.options.val_rule=hash"])
    assert again.data.options.val_rule == "hash"


# What is held out.


@pytest.mark.parametrize(("count", "fraction", "kept"), [(30, 0.2, 6), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)])
def test_the_share_is_exact(count, fraction, kept):
    names = [f"image{i}" for i in range(count)]
    assert len(hold_out(names, fraction)) == kept
    assert hold_out(names[::-1], fraction) == hold_out(names, fraction)


def test_files_without_a_partner_are_named_before_the_share(tmp_path, capsys):
    """Names that do not match are the first mistake of many: nothing is left to divide."""
    for index in range(3):
        put(tmp_path / f"images/photo{index}.jpg", tmp_path / f"masks/mask{index}.png", 1)
    options = {"dir": tmp_path, "class_names": ("no", "yes"), "val_fraction": 0.2}
    for name in ("photo0.png", "photo1.png"):
        with pytest.raises(UserError, match=r"photo2\.jpg: no mask of that name"):
            open_source("folder", split="train", **options)
        (tmp_path / "masks" / name).write_bytes((tmp_path / "masks/mask0.png").read_bytes())
    words = ["check-data", f"--config={ROOT}/configs/folder.py:debug", f"--config.data.dir={tmp_path}"]
    assert main([*words, "--config.data.options.class_names=('no','yes')"]) == 2
    assert "photo2.jpg: no mask is called 'photo2'; add the mask or remove the image" in capsys.readouterr().out


def test_images_without_a_mask_can_be_left_out_by_lists(listed):
    (listed / "masks/b.png").unlink()
    with pytest.raises(UserError, match=r"b\.jpg: no mask of that name") as error:
        open_source("folder", split="all", dir=listed, class_names=("no", "yes"))
    assert "\"--config.data.options.split_lists=(('train','train.txt'),('val','val.txt'))\"" in str(error.value)
    (listed / "train.txt").write_text("a\nphoto 1\n")
    assert list(found(listed, "train", split_lists=(("train", "train.txt"), ("val", "val.txt")))) == ["a", "photo 1"]


def test_one_example_cannot_be_divided():
    for names, there in ((["a"], "only a"), ([], "none")):
        with pytest.raises(
            UserError, match=f"^val_fraction=0.2 divides two examples or more, and there is {there}; add"
        ):
            hold_out(names, 0.2)


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("{}/images/{}{}.jpg", "{}/masks/{}{}.png", {}),
        ("{}_images/{}{}.jpg", "{}_masks/{}{}.png", {}),
        ("photos/{}/{}{}.jpg", "truth/{}_{}{}.png", {"images": "photos/{split}/*.jpg", "masks": "truth/{split}_*.png"}),
    ],
)
def test_all_takes_the_images_of_every_split(tmp_path, image, mask, options):
    for split, value in (("train", 0), ("valid", 1)):
        for index in (1, 2):
            put(tmp_path / image.format(split, "", index), tmp_path / mask.format(split, "", index), value)
    assert found(tmp_path, "all", **options) == {"train/1": 0, "train/2": 0, "val/1": 1, "val/2": 1}


def test_all_needs_masks_of_one_kind(tmp_path):
    put(tmp_path / "train/images/1.jpg", tmp_path / "train/masks/1.png")
    put(tmp_path / "val/images/1.jpg", tmp_path / "val/masks/1/b.png", 1)
    with pytest.raises(UserError, match=r"masks of different kinds \(.*\); open one of them: train, val"):
        found(tmp_path, "all")


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / f"{split}/images/1.jpg", tmp_path / f"{split}/masks/1.png")
    for options in ({}, {"val_fraction": 0.2}):
        with pytest.raises(UserError, match="no split 'test' is there; choose from train, val, all$"):
            found(tmp_path, "test", **options)
        with pytest.raises(UserError, match="no split 'valid' is there; did you mean val?"):
            found(tmp_path, "valid", **options)


def test_images_for_training_are_divided_beside_folders_for_testing(tmp_path):
    for index in range(5):
        put(tmp_path / f"images/{index}.jpg", tmp_path / f"masks/{index}.png")
    put(tmp_path / "test/images/9.jpg", tmp_path / "test/masks/9.png", 1)
    assert [len(found(tmp_path, split, val_fraction=0.2)) for split in ("train", "val", "test")] == [4, 1, 1]
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="no split 'train' is there; choose from test, all"):
        found(tmp_path, "train", val_fraction=0.2)


# Lists.

NAMED = ("photo 1", "photo 2", "a", "b")


@pytest.fixture
def listed(tmp_path):
    for index, name in enumerate(NAMED):
        put(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{name}.png", index % 2)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"photo 1\nphoto 2\n", ["photo 1", "photo 2"]),
        (b"photo 2.jpg\r\n\r\n# a comment\r\nphoto 1.jpg\r\n", ["photo 2", "photo 1"]),
        ("a\r\nb\r\n".encode("utf-8-sig"), ["a", "b"]),
        ("a\r\nphoto 1\r\n".encode("utf-16"), ["a", "photo 1"]),
        (b"\xfe\xff" + "b\n".encode("utf-16-be"), ["b"]),
        (b"images\\a.jpg\r\n.\\images\\b.jpg", ["a", "b"]),
        (b"\"photo 1.jpg\"\n'b.jpg'\n", ["photo 1", "b"]),
        (b"images/a.jpg masks/a.png\nimages/photo 1.jpg masks/photo 1.png\n", ["a", "photo 1"]),
        (b"photo 1.jpg\tphoto 1.png\n", ["photo 1"]),
        (b"images/a.jpg,masks/a.png\n\"images/photo 2.jpg\", \"masks/photo 2.png\"\n", ["a", "photo 2"]),
        (b"/JPEGImages/b.jpg /SegmentationClass/b.png\n", ["b"]),
        (b"C:\\Users\\me\\set\\images\\photo 2.jpg\n", ["photo 2"]),
        (b"a 1 1 -1\n", ["a"]),
        (b"{root}/images/a.jpg\n", ["a"]),
    ],
)  # fmt: skip
def test_lists_of_every_editor(listed, data, names):
    (listed / "x.txt").write_bytes(data.replace(b"{root}", os.fsencode(listed)))
    assert list(found(listed, "train", split_lists={"train": "x.txt"})) == names


def test_a_list_for_training_alone_is_divided(listed):
    (listed / "x.txt").write_text("a\nb\nphoto 1\n")
    names = {one: set(found(listed, one, split_lists={"train": "x.txt"}, val_fraction=0.3)) for one in ("train", "val")}
    assert len(names["val"]) == 1 and names["train"] | names["val"] == {"a", "b", "photo 1"}
    with pytest.raises(UserError, match="split_lists has no split 'val'"):
        found(listed, "val", split_lists={"train": "x.txt"})


@pytest.mark.parametrize("val", ["valid", "validation", "val2017"])
def test_a_list_may_have_any_name_of_its_split(listed, val):
    (listed / "t.txt").write_text("a\nb\nphoto 1\n")
    (listed / "v.txt").write_text("photo 2\n")
    options = {"split_lists": (("training", "t.txt"), (val, "v.txt")), "val_fraction": 0.2}
    assert list(found(listed, "train", **options)) == ["a", "b", "photo 1"]
    assert list(found(listed, "val", **options)) == ["photo 2"]
    assert len(found(listed, "all", **options)) == 4
    with pytest.raises(UserError, match=f"two lists of split 'val', val and {val}; leave one out"):
        found(listed, "val", split_lists={"val": "v.txt", val: "v.txt"})


def test_a_list_of_no_split_is_not_passed_over(listed):
    """A fifth of the training list took its place."""
    for name, text in (("t.txt", "a\nb\nphoto 1\n"), ("my v.txt", "photo 2\n")):
        (listed / name).write_text(text)
    options = {"split_lists": {"train": "t.txt", "vall": "my v.txt"}, "val_fraction": 0.2}
    assert list(found(listed, "train", **options)) == ["a", "b", "photo 1"]
    with pytest.raises(UserError, match="split_lists has no split 'val', but 'vall'; rename that: ") as error:
        found(listed, "val", **options)
    (flag,) = re.findall('"(--config.*)"$', str(error.value))
    fixed = load_config([CONFIG, flag]).data.options.split_lists
    assert fixed == (("train", "t.txt"), ("val", "my v.txt"))
    assert list(found(listed, "val", split_lists=fixed, val_fraction=0.2)) == ["photo 2"]
    with pytest.raises(UserError, match="has no split 'test', only train, val; choose one of these, or add") as error:
        found(listed, "test", split_lists=fixed)
    assert "(('train', 't.txt'), ('val', 'my v.txt'), ('test', 'test.txt'))" in str(error.value)


def test_lists_may_name_images_in_the_folders_of_splits(tmp_path):
    for split, value in (("train", 0), ("val", 1)):
        put(tmp_path / f"{split}/images/{split}1.jpg", tmp_path / f"{split}/masks/{split}1.png", value)
    (tmp_path / "fold.txt").write_text("val1\ntrain1\n")
    assert list(found(tmp_path, "fold", split_lists={"fold": "fold.txt"})) == ["val/val1", "train/train1"]


def test_a_list_may_pair_other_names(listed):
    (listed / "x.txt").write_text("images/a.jpg masks/b.png\n")
    assert found(listed, "train", split_lists={"train": "x.txt"}) == {"a": 1}


def test_a_whole_line_that_names_a_file_wins(listed, tmp_path):
    put(listed / "images/my a.jpg", listed / "masks/my a.png", 1)
    put(listed / "images/my.jpg", listed / "masks/my.png", 0)
    (listed / "x.txt").write_text(f"my a\n{listed}/images/my a.jpg\n")
    assert found(listed, "train", split_lists={"train": "x.txt"}) == {"my a": 1}


def test_lists_say_what_is_wrong_with_them(listed):
    (listed / "x.txt").write_bytes(b"a\n\nphoto 9.jpg\n")
    with pytest.raises(UserError, match=r"x\.txt, line 3: 'photo 9\.jpg' names no image here"):
        found(listed, "train", split_lists={"train": "x.txt"})
    (listed / "x.txt").write_bytes("a\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="zero bytes.*save it as UTF-8"):
        read_lines(listed / "x.txt")
    (listed / "x.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_lines(listed / "x.txt")
    (listed / "masks/a.png").unlink()
    (listed / "x.txt").write_text("a\n")
    with pytest.raises(UserError, match="names a, which has no mask here"):
        found(listed, "train", split_lists={"train": "x.txt"})


def test_images_in_two_splits_and_lines_that_repeat_a_name(listed, capsys):
    (listed / "t.txt").write_text("a\nb\nphoto 1\n")
    (listed / "v.txt").write_text("b\n# a comment\nphoto 1\nphoto 2\nphoto 2.jpg\n")
    lists = "--config.data.options.split_lists=(('train','t.txt'),('val','v.txt'))"
    words = ["check-data", "--config", "configs/folder.py", f"--config.data.dir={listed}", lists]
    words += ["--config.data.options.class_names=('x','y')"]
    main(words)
    train, _, val = capsys.readouterr().out.partition("val: found")
    assert "2 images are in train and val (b, photo 1); leave them in one" in val and "twice" not in train
    assert f"warning: {listed / 'v.txt'}, line 5: photo 2 is listed twice and counts double; remove the line" in val
    main([*words, "--split", "val"])
    alone = capsys.readouterr().out
    assert "line 5: photo 2 is listed twice" in alone and "train and val" not in alone
    (listed / "v.txt").write_text("photo 2\n")
    main(words)
    assert "images are in" not in capsys.readouterr().out


def test_a_name_in_two_folders_needs_its_folder(tmp_path):
    for folder, value in (("v1", 0), ("v2", 1)):
        put(tmp_path / f"images/{folder}/1.jpg", tmp_path / f"masks/{folder}/1.png", value)
    (tmp_path / "x.txt").write_text("v2/1.jpg\n")
    assert found(tmp_path, "train", split_lists={"train": "x.txt"}) == {"v2/1": 1}
    (tmp_path / "x.txt").write_text("1.jpg\n")
    with pytest.raises(UserError, match="line 1: '1.jpg' names no image"):
        found(tmp_path, "train", split_lists={"train": "x.txt"})


def test_lists_are_found_where_both_splits_have_one(listed):
    (listed / "train.txt").write_text("a\nb\nphoto 1\n")
    assert len(found(listed, "train", val_fraction=0.34)) == 2  # a list alone is divided
    (listed / "val.txt").write_text("photo 2\n")
    assert list(found(listed, "val", val_fraction=0.2)) == ["photo 2"]
    assert len(found(listed, "train", val_fraction=0.2)) == 3
    assert len(found(listed, "train", val_fraction=0.5, split_lists={})) == 2


@pytest.mark.parametrize(
    ("dataset", "split"), [("cityscapes", "train"), ("coco", "val"), ("coco_file", "train"), ("roboflow", "val")]
)
def test_the_layout_of_another_data_set_names_its_config(tmp_path, dataset, split, capsys):
    """The fix works in place of the config that fails."""
    LAYOUTS[dataset if dataset in LAYOUTS else "coco_file"](tmp_path)
    if dataset == "roboflow":
        (tmp_path / "images").rename(tmp_path / "valid")
        (tmp_path / "annotations.json").rename(tmp_path / "valid/_annotations.coco.json")
    words = [f"--config.data.dir={tmp_path}", "--split", split]
    assert main(["check-data", CONFIG, NAMES, *words]) == 2
    config = {"roboflow": "coco_file"}.get(dataset, dataset)
    fix = f"{tmp_path} has the layout of another config; give --config configs/{config}.py in place of this one\n"
    assert capsys.readouterr().err.endswith(f": no such folder, and no other layout is there; {fix}")
    assert main(["check-data", f"--config={ROOT}/configs/{config}.py", *words]) == 0
