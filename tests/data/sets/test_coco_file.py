"""COCO files with categories of their own."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from deeplab_jax.cli import main
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.check.dataset import check_source
from deeplab_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CONFIG = f"--config={ROOT}/configs/coco_file.py:debug"
HEIGHT, WIDTH = 6, 10
# In the order of ids the classes are background, crack, rust, corrosion.
CATEGORIES = [{"id": 8, "name": "corrosion"}, {"id": 1, "name": "crack"}, {"id": 2, "name": "rust"}]


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def inside(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[top:bottom, left:right] = 1
    return label


def write(
    file: Path, images: dict[str, list[tuple[Any, ...]]], *, at: Path, categories: list[dict[str, Any]] = CATEGORIES
) -> None:
    """Write images below a folder, and their (category, segmentation, is crowd) into a file."""
    listed, annotations = [], []
    for number, (name, regions) in enumerate(images.items()):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(at / name)
        listed.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for category, segmentation, *crowd in regions:
            one = {"category_id": category, "segmentation": segmentation, "iscrowd": int(bool(crowd)), "area": 1}
            annotations.append({"id": len(annotations), "image_id": number, **one})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))


def labels(root: Path, split: str = "all", **options: Any) -> dict[str, np.ndarray]:
    source = pickle.loads(pickle.dumps(open_source("coco_file", split=split, dir=root, **options)))
    return {example["name"]: example["label"] for example in (source[i] for i in range(len(source)))}


def test_outlines_and_both_run_length_codes(tmp_path):
    crack, rust, corrosion = inside(0, 0, 4, 2), inside(5, 0, 9, 3), inside(0, 3, 4, 6)
    packed = coco_masks.encode(np.asfortranarray(rust))["counts"].decode()
    counts = [3, 3, 3, 3, 3, 3, 3, 3, 36]  # down four columns, each half outside and half inside
    regions = [
        (1, box(0, 0, 4, 2)),
        (2, {"size": [HEIGHT, WIDTH], "counts": packed}),
        (8, {"size": [HEIGHT, WIDTH], "counts": counts}),
    ]
    write(tmp_path / "annotations/instances_default.json", {"a/1.png": regions, "b/1.png": []}, at=tmp_path / "images")
    source = open_source("coco_file", split="all", dir=tmp_path)
    assert source.labels.names == ("background", "crack", "rust", "corrosion")
    found = labels(tmp_path)
    assert found.keys() == {"a/1", "b/1"} and not found["b/1"].any()
    np.testing.assert_array_equal(found["a/1"], crack + 2 * rust + 3 * corrosion)
    # Some of the categories, in an order of one's own; the others are background.
    np.testing.assert_array_equal(labels(tmp_path, class_names=("rust", "crack"))["a/1"], 2 * crack + rust)
    with pytest.raises(UserError, match=r"'crak', which is no category; did you mean crack\?"):
        labels(tmp_path, class_names=("crak",))


def test_splits_of_other_categories_can_have_the_same_classes(tmp_path):
    """The names of all can be given, as the message says."""
    for split, names in (("train", ("crack", "rust")), ("valid", ("rust",))):
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 4, "height": 4}],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": len(names), "segmentation": [[0, 0, 2, 0, 2, 2]], "iscrowd": 0}
            ],
        }
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        Image.new("RGB", (4, 4)).save(tmp_path / split / "1.jpg")
    options = {"dir": tmp_path, "class_names": ("crack", "rust")}
    for split in ("train", "val"):
        source = open_source("coco_file", split=split, **options)
        assert source.labels.names == ("background", "crack", "rust") and source[0]["label"].max() == 2
    with pytest.raises(UserError, match="class_names has 'crak', which is no category; did you mean crack"):
        open_source("coco_file", split="val", dir=tmp_path, class_names=("crak", "rust"))


def test_crowds_and_overlaps(tmp_path):
    regions = [(1, box(0, 0, 4, 2)), (2, box(2, 0, 6, 2)), (8, box(0, 0, 10, 3), True)]
    write(tmp_path / "annotations.json", {"1.png": regions}, at=tmp_path)
    expected = {"ignore": [1, 1, 255, 255, 2, 2, 255], "last": [1, 1, 2, 2, 2, 2, 255]}
    for overlap, row in expected.items():
        label = labels(tmp_path, overlap=overlap)["1"]
        assert label[0, :7].tolist() == row and (label[2] == 255).all() and not label[3:].any()
    with pytest.raises(UserError, match=r"annotations\.json#image_id=0: two classes claim 4 pixels"):
        labels(tmp_path, overlap="refuse")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("{split}/_annotations.coco.json", "{split}"),
        ("annotations/instances_{split}2017.json", "{split}2017"),
        ("annotations/{split}.json", "images/{split}"),
        ("{split}.json", "somewhere/else"),
    ],
)
def test_where_the_files_may_be(tmp_path, file, images):
    for split, name in (("train", "t.png"), ("valid", "v.png")):
        at = tmp_path / images.format(split=split)
        write(tmp_path / file.format(split=split), {name: [(1, box(0, 0, 4, 2))]}, at=at)
    assert list(labels(tmp_path, "train")) == ["t"] and list(labels(tmp_path, "val", val_fraction=0.2)) == ["v"]


def test_roboflows_category_of_all_is_no_class(tmp_path):
    categories = [
        {"id": 0, "name": "cracks", "supercategory": "none"},
        {"id": 1, "name": "crack", "supercategory": "cracks"},
    ]
    file = tmp_path / "train/_annotations.coco.json"
    write(file, {"1.png": [(1, box(0, 0, 4, 2))]}, at=tmp_path / "train", categories=categories)
    assert open_source("coco_file", split="train", dir=tmp_path).labels.names == ("background", "crack")


def test_check_data_reports_categories_and_images_without_annotations(tmp_path, capsys):
    images = {f"{i}.png": [(c, box(3 * c % 8, 0, 3 * c % 8 + 2, 4)) for c in (1, 2, 8)] for i in range(4)}
    write(tmp_path / "annotations.json", {**images, "e.png": []}, at=tmp_path)
    words = [CONFIG, f"--config.data.dir={tmp_path}"]
    assert main(["check-data", *words, "--split=all"]) == 0
    printed = capsys.readouterr().out
    assert "classes background, crack (4 instances), rust (4 instances), corrosion (4 instances)" in printed
    assert "1 of 5 images without annotations" in printed
    assert len(labels(tmp_path, "val", val_fraction=0.2)) == 1
    shares = [open_source("coco_file", dir=tmp_path, split=s, val_fraction=0.2).is_share for s in ("val", "all")]
    assert shares == [True, False]


def test_categories_of_ones_own_are_never_taken_for_cocos(tmp_path, capsys):
    for split in ("train", "val"):
        write(
            tmp_path / f"annotations/instances_{split}2017.json",
            {f"{split}.png": [(1, box(0, 0, 9, 5))]},
            at=tmp_path / f"{split}2017",
        )
    dir = f"--config.data.dir={tmp_path}"
    assert main(["check-data", f"--config={ROOT}/configs/coco.py:debug", dir]) == 2
    message = capsys.readouterr().err
    assert "its categories (corrosion, crack, rust) are not COCO's own" in message
    assert "--config configs/coco_file.py" in message
    assert main(["check-data", CONFIG, dir]) == 0
    assert "1  crack" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two categories have one id or name"),
        ({"categories": [{"id": 3, "name": "a"}]}, "annotations are of category 1, which it does not list"),
        (
            {"images": [{"id": i, "file_name": f"{i}x.png", "height": 6, "width": 10} for i in range(2)]},
            r"x\.png: no such image, but .*annotations\.json lists it",
        ),
        ({"images": [{"id": 0, "file_name": "1.png", "height": 6}]}, "not COCO annotations"),
        ({"images": []}, "annotation 0 is of image 0, which the file does not list"),
        ({"images": [], "annotations": []}, "lists no image; export it again"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path, change, complaint):
    write(tmp_path / "annotations.json", {"1.png": [(1, box(0, 0, 4, 2))]}, at=tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "annotations.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=complaint):
        labels(tmp_path)
    with pytest.raises(UserError, match=complaint):
        labels(tmp_path, "train", val_fraction=0.2)


def test_a_missing_image_is_a_finding_of_its_split(tmp_path, capsys):
    images = {f"{i}.png": [(c, box(3 * c % 8, 0, 3 * c % 8 + 2, 4)) for c in (1, 2, 8)] for i in range(5)}
    write(tmp_path / "annotations.json", images, at=tmp_path)
    (held_out,) = labels(tmp_path, "val", val_fraction=0.2)
    gone = min(set("01234") - {held_out})
    (tmp_path / f"{gone}.png").unlink()
    assert main(["check-data", CONFIG, f"--config.data.dir={tmp_path}"]) == 2
    train, val = capsys.readouterr().out.split("val: found")
    place = f"{tmp_path / 'annotations.json'}#image_id={gone}"
    assert "train: coco_file: 3 of 3 examples checked" in train and "val: coco_file: 1 of 1 examples checked" in val
    assert f"error: {place}: no image is called '{gone}.png'; add the image or remove the mask\n" in train
    assert "no image" not in val and list(labels(tmp_path, "val", val_fraction=0.2)) == [held_out]


def test_a_damaged_run_length_code_is_named(tmp_path):
    write(tmp_path / "annotations.json", {"1.png": [(1, {"size": [HEIGHT, WIDTH], "counts": [3, 4]})]}, at=tmp_path)
    with pytest.raises(UserError, match=r"annotations\.json#image_id=0: a run-length code of 7 pixels for an image"):
        labels(tmp_path)


def test_what_selects_the_images_has_to_be_said(tmp_path):
    with pytest.raises(UserError, match="no annotations of 'val'"):
        labels(tmp_path, "val")
    write(tmp_path / "annotations.json", {"1.png": []}, at=tmp_path)
    with pytest.raises(UserError, match=r"set --config\.data\.options\.val_fraction=0\.2"):
        labels(tmp_path, "val")
    with pytest.raises(UserError, match="val_fraction makes no split 'test'; choose from train, val, all"):
        labels(tmp_path, "test", val_fraction=0.2)
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        labels(tmp_path, annotations="gone.json")


def test_annotations_that_cannot_be_drawn_are_named(tmp_path):
    """A box alone, as programs for detection write it, and an annotation whose image was deleted."""
    file = tmp_path / "annotations.json"
    for segmentation in ([], None):
        write(file, {"1.png": [(1, box(0, 0, 4, 2)), (1, segmentation)]}, at=tmp_path)
        with pytest.raises(UserError) as error:
            labels(tmp_path)
        assert str(error.value) == f"{file}: annotation 1 has a box and no outline; draw its outline, or delete it"
    write(file, {"1.png": [(1, box(0, 0, 4, 2)), (1, box(0, 0, 4, 2))]}, at=tmp_path)
    content = json.loads(file.read_text())
    content["annotations"][1]["image_id"] = 9
    file.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"annotation 1 is of image 9, which the file does not list; delete it, or add the"
    ):
        labels(tmp_path)


def test_dark_images_of_16_bits_get_a_range(tmp_path):
    write(tmp_path / "annotations.json", {"1.png": [(1, box(0, 0, 4, 2))]}, at=tmp_path)
    dark = np.linspace(0, 1000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "1.png")
    report = check_source(open_source("coco_file", split="all", dir=tmp_path))
    (finding,) = [one for one in report.findings if one.kind.startswith("narrow")]
    assert (finding.kind, finding.file) == ("narrow range", str(tmp_path / "1.png"))
    assert finding.message.endswith("--config.data.value_range=0,1023") and report.value_range == (0, 1023)
