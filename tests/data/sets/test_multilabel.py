"""A folder with one mask for each label: what is read, how it is augmented, and what is refused."""

import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.config import load_config
from deeplab_jax.data.augment import augment
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.check.dataset import check_source
from deeplab_jax.data.images import write_image, write_mask
from deeplab_jax.data.transforms import resize_pair
from deeplab_jax.errors import UserError

NAMES = ("wet", "cracked")


@pytest.fixture
def folder(tmp_path):
    """Four images of 6x8 whose labels overlap; the first has a pixel of unknown wetness."""
    rng = np.random.default_rng(0)
    for index in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_image(tmp_path / "images" / f"{index}.png", rng.integers(0, 256, (6, 8, 3), np.uint8))
        for name in NAMES:
            mask = rng.integers(0, 2, (6, 8)).astype(np.uint8)
            mask[0, 0] = 255 if (index, name) == (0, "wet") else 1
            (tmp_path / "masks" / name).mkdir(exist_ok=True, parents=True)
            write_mask(tmp_path / "masks" / name / f"{index}.png", mask, None)
    return tmp_path


def test_labels_have_an_axis_of_classes(folder) -> None:
    source = open_source("multilabel", split="all", dir=folder, class_names=NAMES)
    assert source.labels.multilabel and source.labels.names == NAMES and len(source) == 4
    example = source[0]
    assert example["label"].shape == (6, 8, 2) and example["label"].dtype == np.uint8
    assert example["label"][0, 0].tolist() == [255, 1]
    both = (example["label"] == 1).all(axis=-1)
    assert both.any()  # A softmax could not say this.
    assert not source.is_share
    assert open_source("multilabel", split="val", dir=folder, class_names=NAMES, val_fraction=0.5).is_share
    named = open_source("multilabel", split="all", dir=folder, class_names=NAMES, masks="masks/{class}")
    np.testing.assert_array_equal(named[3]["label"], source[3]["label"])


@pytest.mark.parametrize(
    ("images", "masks", "option"),
    [
        ("images", "masks", ""),
        ("JPEGImages", "labels", " --config.data.options.images='JPEGImages' --config.data.options.masks='labels'"),
        (
            "images/{split}",
            "masks/{split}",
            " --config.data.options.images='images/{split}' --config.data.options.masks='masks/{split}'",
        ),
    ],
)
def test_data_set_folder_names_the_flags_of_such_folders(folder, tmp_path, images, masks, option, capsys) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(folder / "images", data / images.format(split=split), dirs_exist_ok=True)
        shutil.copytree(folder / "masks", data / masks.format(split=split), dirs_exist_ok=True)
    words = ["check-data", "--config=configs/folder.py", f"--config.data.dir={data}", "--split=val"]
    assert main(words) == 2
    fix = f"--config.data.name=multilabel \"--config.data.options.class_names=('cracked', 'wet')\"{option}"
    said = f"{data}: {masks} has a folder of masks for each label (cracked, wet); give {fix}"
    assert capsys.readouterr().err == f"deeplab-jax: {said}\n"
    assert main([*words, *shlex.split(fix)]) == 0


def test_a_single_folder_of_masks_is_that_of_the_option(folder, capsys) -> None:
    shutil.rmtree(folder / "masks" / "wet")
    words = ["check-data", "--config=configs/folder.py", f"--config.data.dir={folder}", "--split=val"]
    words += ["--config.data.options.class_names=('sound','cracked')"]
    assert main(words) == 2
    fix = "--config.data.options.images='images' --config.data.options.masks='masks/cracked'"
    assert capsys.readouterr().err.endswith(f"(cracked); give {fix}\n")
    assert main([*words, *shlex.split(fix)]) == 0


def test_black_and_white_masks_need_a_value_map(folder, capsys) -> None:
    for file in (folder / "masks" / "wet").iterdir():
        write_mask(file, np.where(np.arange(48).reshape(6, 8) % 3, 255, 0).astype(np.uint8), None)
    words = [
        "check-data",
        "--config",
        "configs/folder.py",
        f"--config.data.dir={folder}",
        "--config.data.name=multilabel",
    ]
    words += [f"--config.data.options.class_names={NAMES}", "--split", "all"]
    assert main(words) == 2
    assert "0/255 mask of wet" in capsys.readouterr().out
    fix = "--config.data.options.value_map=((0,0),(1,1),(255,1))"
    assert main([*words, fix]) == 0
    assert "0/255" not in capsys.readouterr().out


def test_labels_in_two_forms_keep_both(folder, capsys) -> None:
    """The masks of one label hold 0 and 1, those of the other 0 and 255."""
    for file in (folder / "masks" / "cracked").iterdir():
        write_mask(file, np.where(np.arange(48).reshape(6, 8) % 3, 255, 0).astype(np.uint8), None)
    words = ["check-data", "--config", "configs/folder.py", f"--config.data.dir={folder}", "--split", "all"]
    words += ["--config.data.name=multilabel", f"--config.data.options.class_names={NAMES}"]
    fix = "--config.data.options.value_map=((0,0),(1,1),(255,1))"
    assert main(words) == 2
    printed = capsys.readouterr().out
    assert f"{folder / 'masks' / 'cracked' / '0.png'}: 0/255 mask of cracked" in printed and fix in printed
    assert main([*words, "--config.data.options.value_map=((0,0),(255,1))"]) == 2
    printed = capsys.readouterr().out
    assert f"error: {folder / 'masks' / 'wet' / '1.png'}: mask values 1 are none" in printed and fix in printed
    assert main([*words, fix]) == 0


def test_every_label_is_augmented_as_if_it_were_alone(folder) -> None:
    example = open_source("multilabel", split="all", dir=folder, class_names=NAMES)[0]
    image, label = example["image"], example["label"]
    for seed in range(5):
        crop, found = augment(image, label, np.random.default_rng(seed), crop_size=(9, 7), fill=(7, 8, 9))
        for k in range(2):
            alone, expected = augment(
                image, label[..., k], np.random.default_rng(seed), crop_size=(9, 7), fill=(7, 8, 9)
            )
            np.testing.assert_array_equal(crop, alone)
            np.testing.assert_array_equal(found[..., k], expected)
    assert resize_pair(image, label, (6, 8))[1].shape == (6, 8, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ()}, r"class_names is \(\); give 2 to 253 different names"),
        ({"class_names": ("wet", "wet")}, "different names of labels"),
        (
            {"class_names": ("wet", "dry")},
            "masks/dry: no such folder; correct the label in class_names: choose from cracked, wet",
        ),
        ({"class_names": ("wet", "craked")}, "masks/craked: no such folder; .*: did you mean cracked?"),
        ({"class_names": NAMES, "palette": [[0, 0, 0]]}, "palette does not fit 2 labels"),
        ({"class_names": NAMES, "palette": [[0, 0], [1, 1]]}, "palette is"),
        ({"class_names": NAMES, "mask": "masks"}, "has no option 'mask'; did you mean masks"),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, message) -> None:
    with pytest.raises(UserError, match=message):
        open_source("multilabel", split="all", dir=folder, **options)


def test_an_image_without_the_mask_of_a_label_is_named(folder) -> None:
    (folder / "masks" / "cracked" / "2.png").unlink()
    with pytest.raises(
        UserError, match=re.escape(f"{folder / 'images' / '2.png'}: no mask of that name in masks/cracked;")
    ):
        open_source("multilabel", split="all", dir=folder, class_names=NAMES)


def test_check_data_names_every_missing_mask_with_its_folder(folder, capsys) -> None:
    for missing in ("wet/1.png", "cracked/2.png"):
        (folder / "masks" / missing).unlink()
    write_mask(folder / "masks/wet/9.png", np.zeros((6, 8), np.uint8), None)
    names = f"--config.data.options.class_names={NAMES}"
    words = ["check-data", "--config=configs/folder.py", f"--config.data.dir={folder}", names, "--split=all"]
    assert main([*words, "--config.data.name=multilabel"]) == 2
    printed = capsys.readouterr().out
    assert f"{folder}/images/1.png: no mask is called '1' in masks/wet; add the mask" in printed
    assert f"{folder}/images/2.png: no mask is called '2' in masks/cracked; add the mask" in printed
    assert f"{folder}/masks/wet/9.png: no image is called '9'" in printed and "2 of 2 examples" in printed
    source = open_source("multilabel", split="all", dir=folder, class_names=NAMES, strict=False)
    assert [source[index]["name"] for index in range(2)] == ["0", "3"]
    assert [source.mask_files(1)[k] for k in (0, 1)] == [f"{folder}/masks/{name}/3.png" for name in NAMES]


def test_one_label_is_read_as_the_message_says(folder) -> None:
    with pytest.raises(UserError, match=r"class_names is \('wet',\): one label, which data set 'folder'") as error:
        open_source("multilabel", split="all", dir=folder, class_names=("wet",))
    words = [word for word in shlex.split(str(error.value)) if word.startswith("--config")]
    data = load_config(["--config=configs/folder.py", f"--config.data.dir={folder}", *words]).data
    source = open_source(data.name, dir=data.dir, split="all", **data.options)
    assert source.labels.names == ("background", "wet") and source[0]["label"][0, 0] == 255


def test_a_label_may_end_another(tmp_path) -> None:
    """`*_crack.png` also matches the masks of `wet_crack`."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        write_image(tmp_path / f"images/{name}.png", np.zeros((4, 4, 3), np.uint8))
        (tmp_path / "masks").mkdir(exist_ok=True)
        for label, value in (("crack", 0), ("wet_crack", 1)):
            write_mask(tmp_path / f"masks/{name}_{label}.png", np.full((4, 4), value, np.uint8), None)
    options = {"dir": tmp_path, "class_names": ("crack", "wet_crack"), "masks": "masks/*_{class}.png"}
    for more in ({}, {"val_fraction": 0.5}):
        source = open_source("multilabel", split="train" if more else "all", **options, **more)
        assert source[0]["label"][0, 0].tolist() == [0, 1]
    write_mask(tmp_path / "masks/c_wet_crack.png", np.zeros((4, 4), np.uint8), None)
    with pytest.raises(UserError, match=r"c_wet_crack\.png: no image of that name"):
        open_source("multilabel", split="all", **options)


def test_shares_are_those_of_the_pixels_that_are_known(tmp_path) -> None:
    """Wet everywhere, and a crack in the upper half, of which one row is not known."""
    crack = np.zeros((4, 4), np.uint8)
    crack[:2], crack[3] = 1, 255
    for folder in ("images", "masks/wet", "masks/crack"):
        (tmp_path / folder).mkdir(parents=True)
    write_image(tmp_path / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    write_mask(tmp_path / "masks/wet/a.png", np.ones((4, 4), np.uint8), None)
    write_mask(tmp_path / "masks/crack/a.png", crack, None)
    report = check_source(open_source("multilabel", split="all", dir=tmp_path, class_names=("wet", "crack")))
    assert report.class_shares == (1.0, 8 / 12) and report.class_pixels == (16, 8)
    assert report.class_weights == ((1 + 8 / 12) / 2, (1 + 8 / 12) / 2 / (8 / 12))


def test_prepare_refuses_it(folder, tmp_path, capsys) -> None:
    words = ["--config", "configs/folder.py", f"--config.data.dir={folder}", "--config.data.name=multilabel"]
    splits = ["--config.data.train_split=all", "--config.data.val_split=all"]
    names = f"--config.data.options.class_names={NAMES}"
    assert main(["prepare", *words, *splits, names, "--out", str(tmp_path / "out")]) == 2
    assert "has several labels a pixel; prepare writes one" in capsys.readouterr().err


def test_dark_images_of_16_bits_get_a_range(folder) -> None:
    """What the files store is checked, as in a folder of one mask an image."""
    for file in (folder / "images").iterdir():
        Image.fromarray(np.linspace(0, 1000, 48).reshape(6, 8).astype(np.uint16)).save(file)
    report = check_source(open_source("multilabel", split="all", dir=folder, class_names=NAMES))
    assert report.value_range == (0, 1023)
    assert {(one.kind, one.file.rsplit("/")[-1]) for one in report.findings} == {
        ("narrow range", f"{index}.png") for index in range(4)
    }
    assert all(one.message.endswith("--config.data.value_range=0,1023") for one in report.findings)
    (folder / "images" / "2.png").write_bytes(b"no image")
    damaged = check_source(open_source("multilabel", split="all", dir=folder, class_names=NAMES))
    assert [one.kind for one in damaged.findings if one.severity == "error"] == ["unreadable image"]
