"""Every fault that a data set can have, made on purpose in a folder of eight good pairs."""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.check import dataset as check
from deeplab_jax.data.check import report
from deeplab_jax.data.source import Pair, PairSource, pair_by_stem
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

LABELS = LabelSet(names=("ground", "road", "car"), palette=((0, 0, 0), (128, 64, 128), (0, 0, 142)))
HEIGHT, WIDTH = 20, 30


def good_mask(index: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:] = 1
    mask[5:10, index : index + 8] = 2
    mask[0] = 255
    return mask


def save(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        save(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), tmp_path / "images" / f"{i}.jpg")
        save(good_mask(i), tmp_path / "masks" / f"{i}.png")
    return tmp_path


def run(folder: Path, labels: LabelSet = LABELS, **options: int) -> report.Report:
    found = pair_by_stem(list((folder / "images").iterdir()), list((folder / "masks").iterdir()), where=str(folder))
    return check.check_source(PairSource("folder", labels, *found, takes_map=True), **options)


def only(found: report.Report, kind: str) -> report.Finding:
    assert [finding.kind for finding in found.findings] == [kind], report.format_report(found)
    return found.findings[0]


def test_a_good_folder(folder: Path) -> None:
    found = run(folder)
    assert found.ok and not found.findings and found.checked == found.total == 8
    assert found.class_pixels == (8 * (9 * WIDTH - 40), 8 * 10 * WIDTH, 8 * 40)
    assert found.class_images == (8, 8, 8)
    assert found.ignored_pixels == 8 * WIDTH
    assert found.smallest == found.largest == (WIDTH, HEIGHT)
    assert found.value_map is None


def test_median_frequency_weights_by_hand() -> None:
    weights = report.median_frequency_weights(np.array([60, 30, 0, 10]), np.array([100, 100, 0, 50]))
    # Frequencies 0.6, 0.3 and 0.2 with median 0.3; the third class is absent.
    np.testing.assert_allclose(weights, [0.5, 1.0, 1.0, 1.5])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def grey_as_rgb(path: Path) -> None:
    save(np.repeat(good_mask(3)[..., None], 3, axis=2), path)


def in_colours(path: Path) -> None:
    save(np.array(LABELS.palette, np.uint8)[good_mask(3) % 255], path)


def as_photograph(path: Path) -> None:
    save(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), path)


def shuffle_palette(path: Path) -> None:
    image = Image.fromarray(2 - good_mask(3) % 255)
    image.putpalette([value for colour in LABELS.palette[::-1] for value in colour])
    image.save(path)


def recode(old: int, new: int) -> np.ndarray:
    mask = good_mask(3)
    return np.where(mask == old, np.uint8(new), mask)


def as_jpeg(path: Path) -> None:
    Image.open(path).copy().save(path, "JPEG")


def with_transparency(path: Path) -> None:
    colours = np.array(LABELS.palette, np.uint8)[good_mask(3) % 255]
    save(np.dstack([colours, np.uint8(255) * (good_mask(3) > 0)]), path)


def as_jpeg_in_tiff(path: Path) -> None:
    Image.open(path).copy().save(path, "TIFF", compression="jpeg")


MASK_FAULTS: list[tuple[Callable[[Path], object], str, str, str]] = [
    (lambda p: save(recode(2, 7), p), "unknown values", "error", "7 (40 pixels)"),
    (lambda p: save(good_mask(3)[:, :-1], p), "sizes differ", "error", "mask of 29x20 pixels for an image of 30x20"),
    (lambda p: save(good_mask(3).T, p), "sizes differ", "error", "turn one of them by 90 degrees"),
    (lambda p: p.write_bytes(b""), "unreadable mask", "error", "zero bytes"),
    (truncate, "unreadable mask", "error", "truncated"),
    (lambda p: p.write_bytes(b"not an image at all"), "unreadable mask", "error", "not an image"),
    (as_jpeg, "JPEG mask", "error", "PNG"),
    (as_jpeg_in_tiff, "JPEG mask", "error", "PNG"),
    (
        grey_as_rgb,
        "colour mask",
        "error",
        "(values 0, 1, 2, 255): give --config.data.options.mask_channel=0, which reads the first",
    ),
    (in_colours, "colour mask", "error", "(0, 0, 142) is 2 car"),
    (as_photograph, "colour mask", "error", "photograph"),
    (
        with_transparency,
        "colour mask",
        "error",
        "mask of mode RGBA holds colours or fractions, not class ids; save it as",
    ),
    (shuffle_palette, "palette order", "warning", "index 0 is drawn in the colour of class 2 (car)"),
    (lambda p: save(np.full((HEIGHT, WIDTH), 255, np.uint8), p), "all ignored", "warning", "stored values 255"),
    (lambda p: save(np.zeros((HEIGHT, WIDTH), np.uint8), p), "single class", "warning", "class 0 (ground)"),
    (lambda p: save((good_mask(3) == 2) * np.uint8(255), p), "0/255 mask", "warning", "value_map=((0,0),(255,1))"),
]


@pytest.mark.parametrize("fault, kind, severity, text", MASK_FAULTS)
def test_one_bad_mask(folder: Path, fault: Callable[[Path], object], kind: str, severity: str, text: str) -> None:
    mask = folder / "masks" / "3.png"
    fault(mask)
    found = run(folder)
    finding = only(found, kind)
    assert finding.severity == severity and finding.file == str(mask) and finding.value and text in finding.message
    assert "\n" not in str(finding) and str(finding).count(str(mask)) == 1
    assert found.checked == 8 and found.ok == (severity == "warning")


def test_one_bad_image_and_what_its_mask_says_still_counts(folder: Path) -> None:
    (folder / "images" / "5.jpg").write_bytes(b"")
    found = run(folder)
    finding = only(found, "unreadable image")
    assert finding.file.endswith("5.jpg") and "zero bytes" in finding.message
    assert found.class_images == (8, 8, 8)


def test_unpaired_files(folder: Path) -> None:
    (folder / "masks" / "3.png").rename(folder / "masks" / "3_mask.png")
    (folder / "masks" / "6.png").unlink()
    found = run(folder)
    assert found.counts == {"image without mask": 2, "mask without image": 1}
    by_file = {os.path.basename(finding.file): finding.message for finding in found.findings}
    assert "3_mask.png" in by_file["3.jpg"] and "globs" in by_file["3.jpg"]
    assert "add the mask" in by_file["6.jpg"]
    assert "remove the mask" in by_file["3_mask.png"]
    assert found.checked == 6


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_checks_nothing(folder: Path, limit: int) -> None:
    with pytest.raises(UserError, match=f"limit={limit}: .* at least 1"):
        run(folder, limit=limit)


def test_binary_masks_get_a_value_map(folder: Path) -> None:
    for i in range(8):
        save(np.where(good_mask(i) == 2, 255, 0).astype(np.uint8), folder / "masks" / f"{i}.png")
    two = LabelSet(names=("other", "thing"), palette=LABELS.palette[:2])
    found = run(folder, two)
    assert found.counts["0/255 mask"] == 8 and not found.ok
    assert found.value_map == {0: 0, 255: 1}
    fixed = run(folder, LabelSet(two.names, two.palette, ((0, 0), (255, 1))))
    assert fixed.ok and not fixed.findings and fixed.class_pixels[1] == 8 * 40


def test_masks_that_count_from_one(folder: Path) -> None:
    for i in range(8):
        mask = good_mask(i)
        save(np.where(mask == 255, 255, mask + 1).astype(np.uint8), folder / "masks" / f"{i}.png")
    found = run(folder)
    assert found.value_map == {1: 0, 2: 1, 3: 2, 255: 255}
    assert found.counts["unknown values"] == 8


def test_unknown_values_are_suggested_as_ignored(folder: Path) -> None:
    mask = good_mask(3)
    mask[15:] = 200
    save(mask, folder / "masks" / "3.png")
    assert run(folder).value_map == {0: 0, 1: 1, 2: 2, 200: 255, 255: 255}


@pytest.mark.parametrize(
    ("values", "value_map", "text"),
    [
        ((0, 1, 2, 3), {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}, '(255,255))" if 0 is no label; else give 4 class_names'),
        ((1, 2, 3), {1: 0, 2: 1, 3: 2, 255: 255}, '(255,255))"\n'),
        ((1000, 2000, 3000), {1000: 0, 2000: 1, 3000: 2, 255: 255}, '(3000,2))"\n'),
        ((0, 100, 200), {0: 0, 100: 1, 200: 2, 255: 255}, '(255,255))"\n'),
        ((0, 1, 2, 7), {0: 0, 1: 1, 2: 2, 7: 255, 255: 255}, '(255,255))"\n'),
        ((1000,), None, "8 errors"),
    ],
)
def test_the_suggested_map_keeps_every_class(
    folder: Path, values: tuple[int, ...], value_map: dict[int, int] | None, text: str
) -> None:
    for i in range(8):
        mask = np.resize(np.array(values, np.uint16), WIDTH)[None].repeat(HEIGHT, axis=0)
        save(mask, folder / "masks" / f"{i}.png")
    found = run(folder)
    assert found.value_map == value_map and text in report.format_report(found)
    pair = str(folder / "images" / "0.jpg"), str(folder / "masks" / "0.png"), "0"
    with pytest.raises(UserError, match="mask values") as error:
        PairSource("folder", LABELS, (Pair(*pair),))[0]
    assert ("value_map" in str(error.value)) == (value_map is not None)


def test_absent_and_rare_classes(folder: Path) -> None:
    for i in range(8):
        mask = np.where(good_mask(i) == 2, 0, good_mask(i))
        save(mask.astype(np.uint8), folder / "masks" / f"{i}.png")
    finding = only(run(folder), "absent class")
    assert finding.value == "car" and finding.severity == "warning" and run(folder).class_weights[2] == 1
    mask = good_mask(0)
    mask[mask == 2] = 0
    mask[5, :3] = 2
    save(mask, folder / "masks" / "0.png")
    assert only(run(folder), "rare class").message.endswith(
        "times fewer than the most frequent class; consider the class weights below"
    )
    message = only(run(folder, for_training=False), "rare class").message
    assert message.endswith("; its results are those of few pixels")


def test_findings_of_one_kind_are_capped(folder: Path) -> None:
    for i in range(8, 8 + 3 * report.MAX_PER_KIND):
        (folder / "images" / f"{i}.jpg").write_bytes(b"")
        (folder / "masks" / f"{i}.png").write_bytes((folder / "masks" / "0.png").read_bytes())
    found = run(folder)
    assert len(found.findings) == report.MAX_PER_KIND
    assert found.counts == {"unreadable image": 3 * report.MAX_PER_KIND}
    assert f"and {2 * report.MAX_PER_KIND} more: unreadable image" in report.format_report(found)


def test_limit_and_progress(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    pairs = tuple(
        Pair(str(folder / "images" / f"{i}.jpg"), str(folder / "masks" / f"{i}.png"), str(i)) for i in range(8)
    )
    found = check.check_source(
        PairSource("mine", LABELS, pairs), limit=3, progress=lambda done, total: calls.append((done, total))
    )
    assert (found.name, found.checked, found.total) == ("mine", 3, 8)
    assert calls == [(1, 3), (2, 3), (3, 3)]


class Arrays:
    """A source without files; one example is bad, one cannot be read."""

    name = "arrays"
    labels = LABELS

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        if index == 2:
            raise UserError("number 2: broken; write it again")
        label = good_mask(index)
        if index == 1:
            label[0, 0] = 9
        return {"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "label": label, "name": f"number {index}"}

    def describe(self, index: int) -> str:
        return f"number {index}"


def test_a_source_without_files() -> None:
    found = check.check_source(Arrays())  # type: ignore[arg-type]
    assert {(finding.file, finding.kind) for finding in found.findings} == {
        ("number 1", "unknown values"),
        ("number 2", "unreadable example"),
    }
    assert found.checked == 4 and found.class_images == (3, 3, 3)


def test_a_data_set_without_the_option_gets_no_value_map(folder: Path) -> None:
    """Crowds of COCO are ignored, beside a background: masks of 0 and 255."""
    for i in range(8):
        save(np.where(good_mask(i) == 2, 255, 0).astype(np.uint8), folder / "masks" / f"{i}.png")
    pairs = pair_by_stem(list((folder / "images").iterdir()), list((folder / "masks").iterdir()), where="")
    found = check.check_source(PairSource("coco_file", LABELS, *pairs))
    assert found.ok and found.value_map is None and "value_map" not in report.format_report(found)
    assert found.counts == {"absent class": 2}


def test_report_as_text_and_json(folder: Path) -> None:
    truncate(folder / "images" / "1.jpg")
    found = run(folder)
    text = report.format_report(found)
    assert text.count("\n") < 20 and "1.jpg" in text and "car" in text and "1 error" in text
    data = json.loads(json.dumps(found.to_json()))
    assert data["ok"] is False and data["findings"][0]["kind"] == "unreadable image"
    assert data["class_names"] == list(LABELS.names) and len(data["class_weights"]) == 3
    assert pickle.loads(pickle.dumps(found)) == found


def test_class_weights_are_for_training(folder: Path) -> None:
    weighed, other = run(folder), run(folder, for_training=False)
    assert len(weighed.class_weights) == 3 and "weight   sqrt\n" in report.format_report(weighed)
    text = report.format_report(other)
    assert other.class_weights == () and "weight" not in text
    assert text.split("\n")[-4].split() == ["2", "car", "320", "7.018%", "8"]
    assert dataclasses.replace(weighed, class_weights=()) == other


def test_check_labels() -> None:
    label = np.zeros((2, 4, 4), np.uint8)
    label[0, 0] = 255
    label[1, 1] = 2
    check.check_labels(label, 3, name="batch 0")
    label[1, 2, :3] = 3
    with pytest.raises(UserError, match=r"batch 0: label values 3 in 3 pixels .* 0 to 2 .*value_map"):
        check.check_labels(label, 3, name="batch 0")
    with pytest.raises(UserError, match="-1"):
        check.check_labels(np.full((2, 2), -1, np.int32), 3, name="batch 0")
