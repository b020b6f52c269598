"""What check-data says about the images themselves: their values, and files that are unlike the others."""

import json

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.check import dataset as check
from deeplab_jax.data.check.bands import Tally
from deeplab_jax.data.check.report import Report, format_report
from deeplab_jax.data.levels import suggest_range
from deeplab_jax.data.source import Pair, PairSource
from deeplab_jax.labels import LabelSet

LABELS = LabelSet(("ground", "road", "car"), ((0, 0, 0), (128, 64, 128), (0, 0, 142)))
MASK = np.array([[0, 1], [2, 0]], np.uint8)


@pytest.fixture
def run(tmp_path):
    """Check pairs of images and masks: arrays, or palette masks as (indices, colours)."""

    def run(images, masks=None, suffix="png", **reading) -> Report:
        pairs = []
        for i, image in enumerate(images):
            pair = Pair(str(tmp_path / f"{i}.{suffix}"), str(tmp_path / f"{i}_mask.png"), str(i))
            Image.fromarray(image).save(pair.image)
            mask, colours = masks[i] if masks else (MASK, None)
            made = Image.fromarray(mask)
            if colours:
                made.putpalette(np.array(colours, np.uint8).tobytes())
            made.save(pair.mask)
            pairs.append(pair)
        return check.check_source(PairSource("mine", LABELS, tuple(pairs), **reading))

    return run


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int32"])
def test_statistics_by_hand(dtype):
    tally = Tally()
    values = np.concatenate([np.full(98, 100), [4, 200]]).astype(dtype)
    tally.add(values[:60].reshape(6, 10, 1))
    tally.add(values[60:].reshape(4, 10, 1))
    (band,) = tally.statistics()
    assert (band.kind, band.band, band.images, band.minimum, band.maximum) == (dtype, 0, 2, 4, 200)
    assert band.mean == pytest.approx((98 * 100 + 204) / 100)
    assert band.std == pytest.approx(np.std(values.astype(float)))
    assert band.p1 == pytest.approx(4, rel=0.01) and band.p99 == pytest.approx(100, rel=0.01)


def test_percentiles_of_negative_floats():
    tally = Tally()
    tally.add(np.linspace(-3, 1, 40_001, dtype=np.float32).reshape(-1, 1, 1))
    (band,) = tally.statistics()
    assert band.p1 == pytest.approx(-2.96, rel=0.01) and band.p99 == pytest.approx(0.96, rel=0.01)


def test_bands_are_reported(run):
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 1], rgb[0, 0, 2] = 100, 200
    report = run([rgb, rgb])
    assert report.ok and [band.mean for band in report.bands] == [0, 100, 50] and report.value_range is None
    text = format_report(report)
    assert "   2    uint8         0       200        50    86.603         0       200       2" in text
    assert json.loads(json.dumps(report.to_json()))["bands"][1]["maximum"] == 100


def test_deep_images_get_a_range(run):
    deep = np.array([[0, 1000], [2000, 4000]], np.uint16)
    report = run([deep, deep // 2])
    assert report.value_range == (0, 4095)
    assert "--config.data.value_range=0,4095" in format_report(report)
    narrow = run([deep // 2])
    (finding,) = narrow.findings
    assert finding.kind == "narrow range" and finding.severity == "warning"
    assert "values from 0 to 2000, 3.1% of the range of 65535" in finding.message
    assert finding.message.endswith("--config.data.value_range=0,2047")
    stated = run([deep], value_range=(0.0, 4095.0))
    assert not stated.findings and stated.value_range is None


def test_only_values_of_files_get_a_range():
    class Levels(list):
        name, labels = "levels", LABELS

        def describe(self, index):
            return self[index]["name"]

    image = np.float32([[[3], [4]], [[5], [90]]])
    report = check.check_source(Levels([{"image": image, "label": MASK, "name": "one"}]))
    assert report.value_range is None and report.bands[0].maximum == 90


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [
        (0, 4095, "uint16", (0, 4095)),
        (5, 4000, "uint16", (0, 4095)),
        (100, 800, "uint16", (100, 800)),
        (0, 65535, "uint16", (0, 65535)),
        (-50, 100, "int16", (-50, 100)),
        (0, 0, "uint16", (0, 1)),
        (0.01, 0.98, "float32", (0, 1)),
        (-0.2, 0.98, "float32", (-0.2, 0.98)),
    ],
)
def test_suggested_ranges(low, high, dtype, expected):
    assert suggest_range(low, high, np.dtype(dtype)) == expected


def test_unlike_images_are_named(run):
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    report = run([rgb, rgb, rgb[..., 0], rgb[..., 0].astype(np.uint16) * 257])
    (finding,) = report.findings
    assert finding.kind == "images of different kinds" and finding.file.endswith("3.png")
    assert "has 1 bands of 16 bits, and most images have 3 bands of 8 bits" in finding.message


def test_palettes_that_differ_name_two_files(run):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    usual, unused = [*LABELS.palette, (9, 9, 9)], [*LABELS.palette, (7, 7, 7)]
    other = [LABELS.palette[i] for i in (0, 2, 1)]
    good = run([image] * 2, [(MASK, usual), (MASK, unused)])
    assert good.ok and "palettes differ" not in good.counts
    report = run([image] * 2, [(MASK, usual), (MASK, other)])
    finding = next(found for found in report.findings if found.kind == "palettes differ")
    assert finding.severity == "error" and finding.file.endswith("1_mask.png") and "0_mask.png" in finding.message
    assert "palette index 1 is drawn (0, 0, 142), and (128, 64, 128)" in finding.message


def test_grey_palettes_are_values_and_do_not_differ(run):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    greys = [[(i, i, i) for i in order] for order in ((0, 1, 2), (2, 0, 1))]
    report = run([image] * 2, [(MASK, greys[0]), (np.array([[1, 2], [0, 1]], np.uint8), greys[1])])
    assert report.ok and not report.findings and report.class_pixels == (4, 2, 2)


def test_masks_in_which_0_is_white(tmp_path, run):
    run([np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20])
    Image.fromarray(255 - MASK).save(tmp_path / "0_mask.tif", tiffinfo={262: 0})
    pair = Pair(str(tmp_path / "0.png"), str(tmp_path / "0_mask.tif"), "0")
    report = check.check_source(PairSource("mine", LABELS, (pair,)))
    assert [found.kind for found in report.findings] == ["0 is white"]
