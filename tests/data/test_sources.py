"""The data sets, each in the layout in which it is published, a few pixels large."""

import json
import os
import pickle
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from pycocotools import mask

from deeplab_jax.cli import main
from deeplab_jax.data import images
from deeplab_jax.data.catalog import SOURCES, open_source
from deeplab_jax.data.holdout import held_out
from deeplab_jax.data.sets.coco import CATEGORIES, CATEGORY_NAMES, decode_counts, fill_polygons, fill_runs
from deeplab_jax.data.source import list_images, walk_files
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.image_list import find_images

CAMVID_DIR = Path(os.environ.get("CAMVID_DIR", Path(__file__).parents[2] / "../shared/data/camvid"))


def put(root, *, image=None, mask=None, value=0, size=(4, 6)):
    """Write a black image and a mask full of `value`."""
    for path in (image, mask):
        if path is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
    if image is not None:
        images.write_image(root / image, np.zeros((*size, 3), np.uint8))
    if mask is not None:
        Image.fromarray(np.full(size, value, np.uint8)).save(root / mask)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def values(source):
    """The one class id of each example, by name."""
    found = {}
    for index in range(len(source)):
        example = source[index]
        assert example["image"].dtype == example["label"].dtype == np.uint8
        assert example["image"].shape == (*example["label"].shape, 3)
        (found[example["name"]],) = np.unique(example["label"]).tolist()
    return found


# What is found.


@pytest.mark.parametrize(
    "suffix",
    [
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pcx", "png"),
        *("ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
    ],
)
def test_every_format_that_is_read_is_found_by_its_name(tmp_path, suffix):
    """In upper case, too."""
    put(tmp_path, mask="masks/a.png", value=1)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / f"images/a.{suffix.upper()}")
    assert values(open_source("folder", split="all", dir=tmp_path, class_names=("a", "b"))) == {"a": 1}
    assert [found.name for found in find_images([tmp_path / "images"])] == ["a"]


def test_no_other_file_is_an_image(tmp_path):
    for name in ("a.eps", "a.pdf", "a.mpo", "a.txt", ".a.png", "png"):
        (tmp_path / name).touch()
    (tmp_path / "tiles.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "tiles.png")
    assert walk_files(tmp_path) == list_images(tmp_path) == []


# What open_source refuses.


def test_unknown_names_splits_and_options_name_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean cityscapes"):
        open_source("cityscape", split="train", dir=tmp_path)
    with pytest.raises(UserError, match="no option 'class_name'; did you mean class_names"):
        open_source("folder", split="train", dir=tmp_path, class_name=("a",))
    with pytest.raises(UserError, match="no option 'size'; it takes none"):
        open_source("camvid", split="train", dir=tmp_path, size=3)
    with pytest.raises(UserError, match=r"set --config\.data\.dir"):
        open_source("camvid", split="train")


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"scenes", "folder", "coco_file", "multilabel", "tfds"}))
def test_missing_folders_and_splits_are_user_errors(tmp_path, name):
    with pytest.raises(UserError, match="gone: no such folder"):
        open_source(name, split="val", dir=tmp_path / "gone")
    with pytest.raises(UserError, match=r"data\.dir|laid out as"):
        open_source(name, split="trainval" if name == "pet" else "val", dir=tmp_path)
    with pytest.raises(UserError, match=r"no split 'vall'; did you mean .*val"):
        open_source(name, split="vall", dir=tmp_path)


def test_scenes_are_a_source_like_any_other():
    source = open_source("scenes", split="val", size=(64, 96), count=2)
    assert len(source) == 2
    assert source[0]["image"].shape == (64, 96, 3)
    assert isinstance(source.describe(0), str)


# What reading an example refuses.


@pytest.fixture
def camvid(tmp_path):
    for index, value in enumerate((0, 10, 11)):
        put(tmp_path, image=f"train/{index}.png", mask=f"trainannot/{index}.png", value=value)
    return tmp_path


def test_camvid_layout(camvid):
    source = open_source("camvid", split="train", dir=camvid)
    assert values(source) == {"0": 0, "1": 10, "2": 255}
    assert source.describe(1) == (str(camvid / "train/1.png"), str(camvid / "trainannot/1.png"))
    with pytest.raises(UserError, match="no split 'test'"):
        open_source("camvid", split="test", dir=camvid)


def test_sources_can_be_pickled_and_read_from_threads(camvid):
    source = pickle.loads(pickle.dumps(open_source("camvid", split="train", dir=camvid)))
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda index: source[index % 3]["name"], range(24)))
    assert names == ["0", "1", "2"] * 8


def test_reading_an_example_lists_no_folder(camvid, monkeypatch):
    source = open_source("camvid", split="train", dir=camvid)
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("a folder was listed"))
    assert source[2]["name"] == "2"


def test_values_outside_the_classes_and_other_sizes_are_user_errors(camvid):
    put(camvid, mask="trainannot/1.png", value=12)
    source = open_source("camvid", split="train", dir=camvid)
    with pytest.raises(UserError, match=r"trainannot/1\.png: mask values 12 are none of those expected \(0 to 11\)"):
        source[1]
    put(camvid, mask="trainannot/2.png", size=(4, 5))
    with pytest.raises(UserError, match=r"trainannot/2\.png: mask of 5x4 pixels for an image of 6x4"):
        source[2]


def test_unpaired_files_are_named(camvid):
    put(camvid, image="train/7.png")
    with pytest.raises(UserError, match=r"train/7\.png: no mask"):
        open_source("camvid", split="train", dir=camvid)
    put(camvid, mask="trainannot/7.png")
    put(camvid, mask="trainannot/8.png")
    with pytest.raises(UserError, match=r"trainannot/8\.png: no image"):
        open_source("camvid", split="train", dir=camvid)
    put(camvid, image="train/8.png")
    put(camvid, image="train/8.jpg")
    with pytest.raises(UserError, match=r"8\.jpg: another file has the same name"):
        open_source("camvid", split="train", dir=camvid)


@pytest.mark.skipif(not CAMVID_DIR.is_dir(), reason="set CAMVID_DIR to the folder of CamVid")
def test_camvid_itself():
    train, val = (open_source("camvid", split=split, dir=CAMVID_DIR) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    for source in (train, val):
        for index in range(0, len(source), 40):
            example = source[index]
            assert example["image"].shape == (360, 480, 3)
            assert set(np.unique(example["label"])) <= {*range(11), 255}
    assert not {train[i]["name"] for i in range(3)} & {val[i]["name"] for i in range(3)}


# The other layouts.


@pytest.mark.parametrize("nested", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, nested):
    root = tmp_path / nested
    for name, value in (("2007_000001", 0), ("2007_000002", 20), ("2008_000003", 255)):
        put(root, image=f"JPEGImages/{name}.jpg", mask=f"SegmentationClass/{name}.png", value=value)
    put(root, image="JPEGImages/2009_000004.jpg", mask="SegmentationClassAug/2009_000004.png", value=5)
    put(root, mask="SegmentationClassAug/2007_000001.png", value=6)
    lists = root / "ImageSets/Segmentation"
    write(lists / "train.txt", "2007_000001\n2007_000002\n")
    write(lists / "val.txt", "2008_000003\n")
    write(lists / "trainval.txt", "2007_000001\n2007_000002\n2008_000003\n")
    with pytest.raises(UserError, match=r"trainaug\.txt: cannot read"):
        open_source("voc", split="trainaug", dir=tmp_path)
    write(
        root / "ImageSets/SegmentationAug/trainaug.txt", "/JPEGImages/2009_000004.jpg /x/2009_000004.png\n2007_000001\n"
    )
    assert values(open_source("voc", split="train", dir=tmp_path)) == {"2007_000001": 0, "2007_000002": 20}
    assert values(open_source("voc", split="val", dir=tmp_path)) == {"2008_000003": 255}
    assert values(open_source("voc", split="val", dir=tmp_path, border="background")) == {"2008_000003": 0}
    with pytest.raises(UserError, match="border='backgroud': did you mean background"):
        open_source("voc", split="val", dir=tmp_path, border="backgroud")
    assert len(open_source("voc", split="trainval", dir=tmp_path)) == 3
    assert values(open_source("voc", split="trainaug", dir=tmp_path)) == {"2009_000004": 5, "2007_000001": 6}
    write(lists / "val.txt", "2008_000003\nlost\n")
    with pytest.raises(UserError, match=r"val\.txt: no image for lost"):
        open_source("voc", split="val", dir=tmp_path)


def test_cityscapes(tmp_path):
    for city, frame, value in (("ulm", "ulm_000000_000019", 7), ("bonn", "bonn_000001_000019", 4)):
        image = f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png"
        put(tmp_path, image=image, mask=f"gtFine/train/{city}/{frame}_gtFine_labelIds.png", value=value)
        put(tmp_path, mask=f"gtFine/train/{city}/{frame}_gtFine_instanceIds.png")
    found = values(open_source("cityscapes", split="train", dir=tmp_path))
    assert found == {"bonn_000001_000019": 255, "ulm_000000_000019": 0}


@pytest.mark.parametrize("nested", ["", "ADEChallengeData2016"])
def test_ade20k(tmp_path, nested):
    for index, value in enumerate((0, 1, 150)):
        name = f"ADE_val_{index}"
        put(
            tmp_path / nested,
            image=f"images/validation/{name}.jpg",
            mask=f"annotations/validation/{name}.png",
            value=value,
        )
    found = values(open_source("ade20k", split="val", dir=tmp_path))
    assert found == {"ADE_val_0": 255, "ADE_val_1": 0, "ADE_val_2": 149}


def test_pet(tmp_path):
    names = [f"Beagle_{index}" for index in range(60)]
    for index, name in enumerate(names):
        put(tmp_path, image=f"images/{name}.jpg", mask=f"annotations/trimaps/{name}.png", value=1 + index % 3)
        write(tmp_path / f"annotations/trimaps/._{name}.png", "resource forks, which the archive really holds")
    Image.new("CMYK", (6, 4)).save(tmp_path / "images/Beagle_0.jpg")
    Image.new("P", (6, 4)).save(tmp_path / "images/Beagle_1.jpg", format="GIF")
    lines = [f"{name} 1 1 1\n" for name in names]
    write(tmp_path / "annotations/trainval.txt", "".join(["#Image CLASS-ID SPECIES BREED ID\n", *lines[:50]]))
    write(tmp_path / "annotations/test.txt", "".join(lines[50:]))
    found = values(open_source("pet", split="trainval", dir=tmp_path))
    assert [found[name] for name in names[:3]] == [1, 0, 255]
    assert len(open_source("pet", split="test", dir=tmp_path)) == 10
    train, val = (set(values(open_source("pet", split=split, dir=tmp_path))) for split in ("train", "val"))
    assert train | val == set(names[:50]) and not train & val and 0 < len(val) < 15
    three = open_source("pet", split="trainval", dir=tmp_path, border="class")
    assert three.labels.names[2] == "border" and three[2]["label"][0, 0] == 2


def test_packed_pet_archives_say_how_to_unpack(tmp_path):
    for name in ("images", "annotations"):
        (tmp_path / f"{name}.tar.gz").touch()
    with pytest.raises(UserError, match=r"tar -xzf .*images\.tar\.gz -C .*; tar -xzf .*annotations\.tar\.gz"):
        open_source("pet", split="trainval", dir=tmp_path)
    root = tmp_path / "my pets"  # A shell would split this name.
    for name in ("images", "annotations"):
        (root / name).mkdir(parents=True)
        (root / name / "list.txt").touch()
        shutil.make_archive(str(root / name), "gztar", root, name)
        shutil.rmtree(root / name)
    with pytest.raises(UserError) as error:
        open_source("pet", split="trainval", dir=root)
    subprocess.run(str(error.value).partition("run: ")[2], shell=True, check=True)
    assert (root / "images/list.txt").is_file() and (root / "annotations/list.txt").is_file()


# COCO: outlines and run-length codes become masks.


def square(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.fixture
def coco(tmp_path):
    size = {"height": 40, "width": 60}
    regions = [
        (1, 18, [square(0, 0, 40, 30)], 1200, 0),  # dog
        (1, 1, [square(30, 0, 60, 30)], 900, 0),  # person, which overlaps the dog
        (1, 3, {"size": [40, 60], "counts": [2390, 10]}, 10, 1),  # a crowd of cars: the lower end of the last column
        (1, 25, [square(0, 30, 60, 40)], 600, 0),  # a giraffe is no VOC class
        (2, 18, [square(0, 0, 40, 25)], 1000, 0),  # not over 1000
        (3, 3, {"size": [40, 60], "counts": "0P[2"}, 2400, 1),  # only a crowd
        (4, 5, [square(0, 0, 60, 10), square(0, 20, 60, 30)], 1200, 0),  # one aeroplane in two parts
    ]
    keys = ("image_id", "category_id", "segmentation", "area", "iscrowd")
    content = {
        "categories": [{"id": i, "name": name} for i, name in zip(CATEGORIES, CATEGORY_NAMES, strict=True)],
        "images": [{"id": index, "file_name": f"{index:012}.jpg", **size} for index in (4, 3, 2, 1)],
        "annotations": [dict(zip(keys, region, strict=True)) for region in regions],
    }
    write(tmp_path / "annotations/instances_val2017.json", json.dumps(content))
    for index in range(1, 5):
        put(tmp_path, image=f"val2017/{index:012}.jpg", size=(40, 60))
    return tmp_path


def test_coco(coco):
    source = pickle.loads(pickle.dumps(open_source("coco", split="val", dir=coco)))
    assert [source[index]["name"] for index in range(len(source))] == ["000000000001", "000000000004"]
    expected = np.zeros((40, 60), np.uint8)
    expected[:30, :40] = 12
    expected[:30, 30:] = 15
    expected[:30, 30:40] = 255  # dog and person both claim it
    expected[30:, 59] = 255  # crowd
    np.testing.assert_array_equal(source[0]["label"], expected)
    assert np.flatnonzero(source[1]["label"][:, 7] == 1).tolist() == [*range(10), *range(20, 30)]
    assert source.describe(1)[1].endswith("instances_val2017.json#image_id=4")


def test_coco_says_what_is_wrong_with_its_files(coco, capsys):
    (coco / "val2017/000000000001.jpg").unlink()
    file = coco / "annotations/instances_val2017.json"
    with pytest.raises(UserError, match=rf"000000000001\.jpg: no such image, but {file} lists it; add the images"):
        open_source("coco", split="val", dir=coco)
    assert main(["check-data", "--config=configs/coco.py", f"--config.data.dir={coco}", "--split=val"]) == 2
    printed = capsys.readouterr().out
    finding = "no image is called '000000000001.jpg'; add the image or remove the mask"
    assert printed.startswith(
        f"val: coco: 1 of 1 examples checked, images from 60x40 to 60x40\nerror: {file}#image_id=1: {finding}\n"
    )
    assert "1 error, " in printed
    for text, complaint in (("{", "not JSON"), ('{"info": 1}', "not COCO instance annotations")):
        write(coco / "annotations/instances_val2017.json", text)
        with pytest.raises(UserError, match=complaint):
            open_source("coco", split="val", dir=coco)


def test_polygons_are_filled_by_pixel_centres():
    inside = fill_polygons([np.array([[1.0, 1.0], [4.0, 1.0], [1.0, 4.0]])], 5, 6)
    np.testing.assert_array_equal(
        inside.astype(int),
        [[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    )
    beyond = fill_polygons([np.array([[-9.0, -9.0], [99.0, -9.0], [99.0, 2.0], [-9.0, 2.0]])], 3, 4)
    np.testing.assert_array_equal(beyond, [[True] * 4, [True] * 4, [False] * 4])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_outlines_are_filled_as_by_cocos_own_api():
    """Its decision on pixels whose centre lies within a tenth of the outline is not that of the centre."""
    first, second = [2.0, 1.3, 7.7, 3.0, 4.1, 8.9, 0.2, 6.6], [9.0, 0.4, 11.6, 0.5, 10.1, 9.7]
    codes = mask.frPyObjects([first, second], 10, 12)
    expected = np.maximum.reduce(mask.decode(codes), axis=-1)
    inside = fill_polygons([np.reshape(first, (-1, 2)), np.reshape(second, (-1, 2))], 10, 12)
    np.testing.assert_array_equal(inside, expected == 1)
    assert not fill_polygons([], 3, 4).any()


def test_run_lengths_go_down_the_columns():
    np.testing.assert_array_equal(fill_runs(np.array([1, 2, 3]), 2, 3).astype(int), [[0, 1, 0], [1, 0, 0]])
    with pytest.raises(ValueError, match="6 pixels for an image of 4x2"):
        fill_runs(np.array([1, 2, 3]), 2, 4)


def test_compressed_run_lengths():
    """Strings made by the reference implementation (pycocotools 2.0.11)."""
    assert decode_counts("0P[2").tolist() == [0, 2400]
    assert decode_counts("e<d0d000:Qe0SOb?").tolist() == [405, 20, 20, 20, 20, 30, 693, 1, 1191]


# Any folder.


@pytest.fixture
def folder(tmp_path):
    for index in range(40):
        put(tmp_path, image=f"images/{index}.png", mask=f"masks/{index}.png", value=(0, 1, 255)[index % 3])
    return tmp_path


def test_folder_splits_by_fraction(folder):
    options = {"dir": folder, "class_names": ("a", "b"), "val_fraction": 0.25}
    train, val = (set(values(open_source("folder", split=split, **options))) for split in ("train", "val"))
    assert not train & val and len(train | val) == 40 and len(val) == 10
    put(folder, image="images/more.png", mask="masks/more.png")
    after = set(values(open_source("folder", split="val", **options)))
    assert len(after) == 10 and len(after ^ val) in (0, 2)  # of 41 images still 10: `more` or nobody moved in
    by_hash = set(values(open_source("folder", split="val", val_rule="hash", **options)))
    assert by_hash == {name for name in (*train, *val, "more") if held_out(name, 0.25)}
    with pytest.raises(UserError, match="between 0 and 1"):
        open_source("folder", split="val", **{**options, "val_fraction": 20})


def test_folder_splits_by_lists(folder):
    write(folder / "lists/train.txt", "7\n3.png\n")
    options = {"dir": folder, "class_names": ("a", "b"), "split_lists": {"train": "lists/train.txt"}}
    source = open_source("folder", split="train", **options)
    assert [source[index]["name"] for index in range(2)] == ["7", "3"]
    with pytest.raises(UserError, match="split_lists has no split 'val'"):
        open_source("folder", split="val", **options)
    write(folder / "lists/train.txt", "7\n77\n")
    with pytest.raises(UserError, match=r"train\.txt, line 2: '77' names no image here"):
        open_source("folder", split="train", **options)


def test_folder_splits_by_subfolder_or_not_at_all(folder):
    assert len(open_source("folder", split="all", dir=folder, class_names=("a", "b"))) == 40
    with pytest.raises(UserError, match="nothing says which examples are 'val'; set --config.data.opt"):
        open_source("folder", split="val", dir=folder, class_names=("a", "b"))
    put(folder, image="images/val/x.png", mask="masks/val/x.png")
    assert values(open_source("folder", split="val", dir=folder, class_names=("a", "b"))) == {"x": 0}


def test_folder_globs(tmp_path):
    for day in ("mon", "tue"):
        put(tmp_path, image=f"photos/{day}/{day}1.jpg", mask=f"truth/{day}/{day}1_mask.png", value=1)
    options = {"dir": tmp_path, "class_names": ("a", "b"), "split": "all"}
    source = open_source("folder", images="photos/*/*.jpg", masks="truth/*/*_mask.png", **options)
    assert values(source) == {"mon1": 1, "tue1": 1}
    by_split = {**options, "split": "mon"}
    assert len(open_source("folder", images="photos/{split}/*", masks="truth/{split}/*_mask.png", **by_split)) == 1
    with pytest.raises(UserError, match="no image found"):
        open_source("folder", images="photos/*.gif", masks="truth/*/*_mask.png", **options)
    put(tmp_path, image="photos/wed/mon1.jpg")
    with pytest.raises(UserError, match="also called 'mon1'"):
        open_source("folder", images="photos/*/*.jpg", masks="truth/*/*_mask.png", **options)


def test_folder_maps_stored_values(folder):
    options = {"dir": folder, "split": "all", "class_names": ("a", "b")}
    text = {"0": 0, "255": 1, "1": 255}
    for value_map in ({0: 0, 255: 1, 1: 255}, text, ConfigDict(text), [(0, 0), (255, 1), (1, 255)]):
        found = values(open_source("folder", value_map=value_map, **options))
        assert (found["0"], found["1"], found["2"]) == (0, 255, 1)
    strict = open_source("folder", value_map={0: 0}, **options)
    with pytest.raises(UserError, match=r"1\.png: mask values 1 are none of those expected \(0, 255\)"):
        values(strict)
    none_ignored = open_source("folder", ignore_label=None, **options)
    with pytest.raises(UserError, match="mask values 255"):
        values(none_ignored)
    put(folder, mask="masks/2.png", value=9)
    assert open_source("folder", ignore_label=9, **options).labels.stored_values == (0, 1, 9)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"class_names": ()}, "class_names is"),
        ({"class_names": "road"}, "class_names is 'road'"),
        ({"class_names": ("a", "b", "a")}, "two classes are called 'a'; rename one"),
        ({"palette": ((0, 0, 0),)}, "palette does not fit 2 classes"),
        ({"palette": ((0, 0), (1, 1))}, r"palette is \(\(0, 0\), \(1, 1\)\); give one \(red, green, blue\)"),
        ({"palette": (("red", 0, 0), (0, 0, 0))}, "palette is"),
        ({"palette": ((0, 0, 0), (256, 0, 0))}, "palette is"),
        ({"split_lists": ("train", "a.txt")}, r"split_lists is \('train', 'a\.txt'\); give pairs"),
        ({"ignore_label": 1}, "the id of class 'b' too"),
        ({"ignore_label": 2.0}, r"ignore_label is 2\.0; give a whole number"),
        ({"value_map": {0: 2}}, "value_map sends 0 to 2"),
        ({"value_map": ((0, 0), (0, 1), (1, 1))}, "value_map sends 0 to 0 and to 1; give it once"),
        ({"value_map": {"x": 2}}, "not pairs of integers"),
        ({"images": "pictures"}, "pictures: no such folder"),
    ],
)
def test_folder_refuses_what_makes_no_sense(folder, options, complaint):
    with pytest.raises(UserError, match=complaint):
        open_source("folder", split="all", dir=folder, **{"class_names": ("a", "b"), **options})
