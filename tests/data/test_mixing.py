"""Crops made of several: pixels worked out by hand, image and label together, and the same crops at every start."""

import dataclasses
import time
from functools import partial

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.config_keys import Augment
from deeplab_jax.data.augment import NONE
from deeplab_jax.data.loader import skipped_examples
from deeplab_jax.data.mixing import AWAY, make_plan, mixed, mosaic, name_classes, paste
from deeplab_jax.data.sampling import sampling_by_class
from deeplab_jax.errors import StuckError, UserError
from deeplab_jax.labels import LabelSet, colormap
from tests.support.batches import batches_of

SIZE = (40, 50)
FILL = (9, 9, 9)
BOTH = Augment(mosaic=0.4, copy_paste=0.5, copy_paste_classes=(1, 2))


@dataclasses.dataclass(frozen=True)
class Lights:
    """Class k shines in channel k alone: half of the image is of class 0, and a square of class 1 or 2."""

    count: int = 7
    bad: int = -1
    hangs: bool = False
    name: str = "lights"
    labels = LabelSet(("a", "b", "c"), colormap(3))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.bad:
            raise UserError(f"{index}.png: truncated")
        if self.hangs:
            time.sleep(1)
        label = np.zeros(SIZE, np.uint8)
        label[8 : 14 + 2 * index, 12 : 30 + 2 * index] = 1 + index % 2
        return {"image": 255 * np.eye(3, dtype=np.uint8)[label], "label": label, "name": str(index)}

    def describe(self, index):
        return f"{index}.png"


def batches(more=NONE, source=None, **options):
    how = {
        "batch_size": 2,
        "steps": 12,
        "crop_size": (36, 36),
        "scale_step": 0.0,
        "fill": FILL,
        "threads": 2,
        **options,
    }
    mix = partial(mixed, seed=how.get("seed", 0), crop_size=how["crop_size"], more=more)
    return list(batches_of(source or Lights(), more=more, mix=None if more == NONE else mix, **how))


def crops(found):
    return [pair for batch in found for pair in zip(batch["image"], batch["label"], strict=True)]


def assert_same(left, right) -> None:
    for one, other in zip(crops(left), crops(right), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


# By hand.


def test_a_paste_by_hand() -> None:
    label = np.array([[0, 0, 255, 255], [0, 3, 3, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.uint8)
    other = np.array([[2, 0, 2, 0], [0, 2, 0, 0], [255, 255, 3, 3], [0, 4, 0, 255]], np.uint8)
    images = np.arange(16).reshape(4, 4, 1), 100 + np.arange(16).reshape(4, 4, 1)
    before = label.copy()
    image, pasted = paste(images[0], label, images[1], other, classes=(2, 4))
    assert pasted.tolist() == [[2, 0, 2, 255], [0, 2, 3, 0], [1, 1, 1, 1], [0, 4, 0, 0]]
    assert image[..., 0].tolist() == [[100, 1, 102, 3], [4, 105, 6, 7], [8, 9, 10, 11], [12, 113, 14, 15]]
    assert pasted.dtype == np.uint8
    np.testing.assert_array_equal(label, before)
    np.testing.assert_array_equal(paste(images[0], label, images[1], other, classes=())[0], images[0])


def test_a_paste_of_several_labels_by_hand() -> None:
    """A pixel with label 1 comes with its other labels, known or not; one of which it is not known does not come."""
    label = np.zeros((1, 4, 3), np.uint8)
    other = np.array([[[1, 1, 0], [1, 0, 1], [0, 255, 0], [0, 1, 255]]], np.uint8)
    image, pasted = paste(np.zeros((1, 4, 5)), label, np.ones((1, 4, 5)), other, classes=(1,))
    assert pasted.tolist() == [[[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 255]]]
    assert image[0, :, 4].tolist() == [1, 0, 0, 1]


def test_a_mosaic_by_hand() -> None:
    four = [np.full((4, 4), value) for value in (1, 2, 3, 4)]
    assert mosaic(four, (1, 3)).tolist() == [[1, 1, 1, 2], [3, 3, 3, 4], [3, 3, 3, 4], [3, 3, 3, 4]]
    numbered = np.arange(16).reshape(4, 4)
    np.testing.assert_array_equal(mosaic([numbered] * 4, (2, 1)), numbered)  # Nothing is moved.


def test_floats_and_many_bands_are_mixed_as_they_are() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.uniform(0, 255, (6, 6, 7)).astype(np.float32) for _ in range(2))
    labels = np.zeros((6, 6), np.uint8), np.eye(6, dtype=np.uint8)
    image, label = paste(one, labels[0], other, labels[1], classes=(1,))
    assert image.dtype == np.float32 and label.sum() == 6
    np.testing.assert_array_equal(image, np.where(np.eye(6)[..., None] == 1, other, one))
    np.testing.assert_array_equal(mosaic([one, other, other, other], (6, 6)), one)


def test_plans_have_their_probabilities_and_centres() -> None:
    more = dataclasses.replace(BOTH, mosaic=0.3, copy_paste=0.6)
    plans = [make_plan(np.random.default_rng((0, k)), k, crop_size=(8, 100), more=more) for k in range(2000)]
    joins, pastes = np.array([(one.centre is not None, one.pastes) for one in plans]).T
    assert abs(joins.mean() - 0.3) < 0.04 and abs(pastes.mean() - 0.6) < 0.04
    assert abs((joins & pastes).mean() - 0.18) < 0.04
    assert {one.centre[0] for one in plans if one.centre} == set(range(2, 7))
    assert {one.centre[1] for one in plans if one.centre} == set(range(25, 76))
    assert all(len(one.positions) == 1 + 3 * bool(one.centre) + one.pastes for one in plans)
    read = [position for one in plans for position in one.positions]
    assert len(set(read)) == len(read) and [one.positions[0] for one in plans] == [*range(2000)]
    assert all(position >= AWAY for one in plans for position in one.positions[1:])
    smallest = make_plan(np.random.default_rng(0), 0, crop_size=(1, 2), more=Augment(mosaic=1.0))
    assert smallest.centre == (1, 1)


# In batches.


def test_every_pixel_keeps_its_label() -> None:
    """A pixel in which one channel alone shines was mixed with no other: its class is that channel's."""
    more = dataclasses.replace(BOTH, mosaic=0.5, copy_paste=0.9, rotation=90.0, probability=1.0)
    pure_share, classes = [], set()
    for image, label in crops(batches(more, steps=20)):
        shining = (image == 255).sum(axis=-1) == 1
        pure = shining & (image.sum(axis=-1, dtype=int) == 255)
        np.testing.assert_array_equal(label[pure], image[pure].argmax(axis=-1))
        np.testing.assert_array_equal(image[label == 255], np.broadcast_to(FILL, image.shape)[label == 255])
        pure_share.append(pure.sum() / max(1, (label != 255).sum()))
        classes |= set(np.unique(label))
    assert np.mean(pure_share) > 0.8 and classes == {0, 1, 2, 255}


def test_crops_that_stay_alone_are_those_without_mixing() -> None:
    """And the mixed ones have pixels of their own where nothing of another crop lies."""
    plain, found = crops(batches(steps=30)), crops(batches(dataclasses.replace(BOTH, mosaic=0.0), steps=30))
    changed = [(one[1] != other[1]).any() for one, other in zip(plain, found, strict=True)]
    assert 12 < sum(changed) < 40  # Of 60, half are pasted into; some of those get nothing that shows.
    for one, other in zip(plain, found, strict=True):
        kept = ~np.isin(other[1], BOTH.copy_paste_classes)
        np.testing.assert_array_equal(one[0][kept], other[0][kept])
        np.testing.assert_array_equal(one[1][kept], other[1][kept])


def test_a_mosaic_is_of_crops_as_training_has_them() -> None:
    source, how = Numbered(), {"scale_range": (1.0, 1.0), "crop_size": SIZE, "steps": 20}
    plain, found = (crops(batches(more, source, **how)) for more in (NONE, Augment(mosaic=1.0)))
    others = []
    for (_, alone), (image, label) in zip(plain, found, strict=True):
        np.testing.assert_array_equal(image[..., 0], label)
        corners = label[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners[0] == alone[0, 0]
        others += corners[1:].tolist()
        rows, columns = (np.flatnonzero(np.diff(line.astype(int))) for line in (label[:, 0], label[0]))
        assert all(9 <= row < 30 for row in rows) and all(11 <= column < 38 for column in columns)
    assert set(others) == set(range(7)) and min(np.bincount(others)) > 4  # Of 120, each of 7 about 17 times.


@dataclasses.dataclass(frozen=True)
class Numbered(Lights):
    """Image and label hold the example's number everywhere."""

    def __getitem__(self, index):
        label = np.full(SIZE, index, np.uint8)
        return {**super().__getitem__(index), "image": np.repeat(label[..., None], 3, axis=2), "label": label}


def test_what_is_mixed_depends_on_seed_and_position_alone() -> None:
    whole = batches(BOTH)
    assert_same(batches(BOTH, start=5, threads=7), whole[5:])
    assert_same(batches(BOTH, steps=4), whole[:4])
    second = batches(BOTH, rows=[1])
    for part, full in zip(second, whole, strict=True):
        np.testing.assert_array_equal(part["image"][0], full["image"][1])
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, batches(BOTH, seed=1), strict=True))
    one, other = (make_plan(np.random.default_rng((seed, 0)), 0, crop_size=SIZE, more=BOTH) for seed in (0, 1))
    assert one != other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_worker_processes_mix_the_same() -> None:
    assert_same(batches(BOTH, workers=2), batches(BOTH))


def test_several_labels_a_pixel_are_mixed_in_batches() -> None:
    found = crops(batches(Augment(copy_paste=1.0, copy_paste_classes=(1,)), Several(), steps=20))
    for image, label in found:
        assert label.shape == (36, 36, 3)
        pure = (image == 255).sum(axis=-1) == 1
        np.testing.assert_array_equal(label[pure] == 1, image[pure] == 255)


@dataclasses.dataclass(frozen=True)
class Several(Lights):
    """The same with one label map for each class."""

    labels = LabelSet(("a", "b", "c"), colormap(3), multilabel=True)

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return {**example, "label": np.eye(3, dtype=np.uint8)[example["label"]]}


# Faults of the other crops.


def test_another_crop_that_cannot_be_read_is_replaced_or_stops() -> None:
    """The first crop of eight seeds; the four numbers in it are those of what was read."""
    more, how = Augment(mosaic=1.0), {"batch_size": 1, "steps": 1, "scale_range": (1.0, 1.0), "crop_size": SIZE}
    hit = []
    for seed in range(8):
        ((_, healthy),) = crops(batches(more, Numbered(), seed=seed, **how))
        source = Numbered(bad=3)
        skipped = skipped_examples(source, on_error="skip", max_skipped=0.5)
        ((_, label),) = crops(batches(more, source, seed=seed, skipped=skipped, **how))
        np.testing.assert_array_equal(label, np.where(healthy == 3, 4, healthy))
        assert skipped.lines() == (["3.png: truncated"] if (healthy == 3).any() else [])
        hit.append(bool((healthy == 3).any() and healthy[0, 0] != 3))
        if hit[-1]:
            with pytest.raises(UserError) as error:
                batches(more, source, seed=seed, **how)
            assert str(error.value) == "3.png: truncated"
    assert any(hit)


def test_a_hanging_reader_is_told_with_all_files() -> None:
    with pytest.raises(StuckError, match=r"reading (\d\.png, ){3}\d\.png \(step 1\)"):
        batches(Augment(mosaic=1.0), Lights(hangs=True), batch_size=1, timeout=0.1)


# The classes.


def test_classes_are_named_or_those_that_sampling_prefers() -> None:
    source = Lights()
    counts = np.array([[900, 60, 40]])  # Of these, 1 and 2 are below the mean at any temperature.
    rare = sampling_by_class(counts, temperature=1.0, pixels=1)
    given = Augment(copy_paste=0.5, copy_paste_classes=(0,))
    assert name_classes(given, source, None) == given == name_classes(given, source, rare)
    assert name_classes(Augment(copy_paste=0.5), source, rare).copy_paste_classes == (1, 2)
    assert name_classes(Augment(mosaic=0.5), source, None).copy_paste_classes == ()


@pytest.mark.parametrize(
    ("more", "equal", "message"),
    [
        ({}, False, "which classes are rare is not known; name the ids of those to paste, such as "
                    "--config.data.augment.copy_paste_classes=2; or draw images by their classes: "
                    "--config.data.class_temperature=0.01"),
        ({}, True, "all classes are equally frequent; name the ids of those to paste, such as "
                   "--config.data.augment.copy_paste_classes=2"),
        ({"copy_paste_classes": (1, 3, 9)}, False, "lights has no class 3, 9; give class ids from 0 to 2"),
        ({"copy_paste": 0.0, "copy_paste_classes": (1,)}, False, "nothing is pasted; add "
                    "--config.data.augment.copy_paste=0.5, or leave the classes out"),
    ],
)  # fmt: skip
def test_classes_that_are_not_known_are_told_in_one_line(more, equal, message) -> None:
    sampling = sampling_by_class(np.array([[5, 5, 5]]), temperature=0.3, pixels=1) if equal else None
    with pytest.raises(UserError) as error:
        name_classes(Augment(**{"copy_paste": 0.5, **more}), Lights(), sampling)
    assert str(error.value).endswith(message) and "\n" not in str(error.value)


def test_the_command_shows_them_and_its_fixes_work(tmp_path, capsys) -> None:
    words = ["check-data", "--config", "configs/scenes.py:debug", "--limit=1", f"--show={tmp_path / 'shown'}"]
    words += ["--config.data.crop_size=33,33", "--config.data.options.count=4"]
    words += ["--config.data.augment.copy_paste=0.5", "--config.data.augment.mosaic=1"]
    assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    fixes = [word.rstrip(";") for word in line.split() if word.startswith("--config.")]
    assert len(fixes) == 2
    for fix in fixes:
        assert main([*words, fix]) == 0, fix
    assert len([*(tmp_path / "shown").rglob("*.png")]) == 4  # The labels of two steps of two images.
