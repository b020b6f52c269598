"""Images drawn by their classes: probabilities by hand, what is counted, and what the cache keeps."""

import dataclasses
import functools
import os
import threading

import numpy as np
import pytest

from deeplab_jax.data import sampling
from deeplab_jax.data.faults import Skipped
from deeplab_jax.data.images import read_mask, write_image, write_mask
from deeplab_jax.data.loader import skipped_examples
from deeplab_jax.data.mask_formats import PalettesDifferError
from deeplab_jax.data.sampling import class_counts, class_probabilities, count_classes, sampling_by_class, sampling_of
from deeplab_jax.data.sets.folder import open_folder
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet, colormap
from tests.support.batches import batches_of

SIZE = (40, 50)


@dataclasses.dataclass(frozen=True)
class Rare:
    """Class 1 is everywhere; class 2 is in image 3 alone, in its lower right corner, and class 3 nowhere."""

    count: int = 20
    name: str = "rare"
    labels = LabelSet(("a", "b", "c", "d"), colormap(4))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = np.ones(SIZE, np.uint8)
        label[:5] = 255
        if index == 3:
            label[30:, 40:] = 2
        image = np.repeat(np.where(label == 255, 0, label)[..., None], 3, axis=2).astype(np.uint8)
        image[..., 2] = index
        return {"image": image, "label": label, "name": str(index)}

    def describe(self, index):
        return str(index)


def drawn(source, *, steps=100, start=0, seed=0, temperature=0.01, pixels=40, **how):
    """The batches of two images under rare class sampling."""
    by_class = sampling_of(source, class_temperature=temperature, class_pixels=pixels) if temperature else None
    how = {"crop_size": (20, 25), "scale_range": (1.0, 1.0), "fill": (0, 0, 0), "threads": 2, **how}
    return list(batches_of(source, batch_size=2, steps=steps, start=start, seed=seed, sampling=by_class, **how))


def test_probabilities_by_hand() -> None:
    """Frequencies 0.9 and 0.1 at T = 0.5: exp(0.2) and exp(1.8), whose sum is 7.2711."""
    np.testing.assert_allclose(class_probabilities(np.array([90, 10]), 0.5), [0.16798, 0.83202], atol=1e-5)
    np.testing.assert_allclose(class_probabilities(np.array([90, 0, 10]), 0.5), [0.16798, 0, 0.83202], atol=1e-5)
    np.testing.assert_allclose(class_probabilities(np.array([5, 5, 5]), 0.01), [1 / 3] * 3)
    # A difference of 0.1 at T = 0.01 is a factor of exp(10), and no small T overflows.
    few = class_probabilities(np.array([45, 55]), 0.01)
    np.testing.assert_allclose(few[0] / few[1], np.exp(10))
    np.testing.assert_allclose(class_probabilities(np.array([45, 55]), 1e-9), [1, 0])
    np.testing.assert_allclose(class_probabilities(np.array([45, 55]), 1e9), [0.5, 0.5])


def test_preferred_classes_by_hand() -> None:
    """At T = 0.5, frequencies 0.6, 0.1, 0.3 become exp(-1.2), exp(-0.2), exp(-0.6): 0.18, 0.49, 0.33 of their sum."""
    counts = np.array([[60, 10, 0, 30]])
    assert sampling_by_class(counts, temperature=0.5, pixels=1).preferred == (1,)
    # At a large one their deviation from a third is that of their frequency, -0.27, 0.23 and 0.03.
    assert sampling_by_class(counts, temperature=100.0, pixels=1).preferred == (1, 3)
    assert sampling_by_class(np.array([[7, 7, 7]]), temperature=0.1, pixels=1).preferred == ()


def test_pixels_are_counted_by_hand() -> None:
    label = np.array([[0, 1, 1], [255, 2, 1]], np.uint8)
    counts = count_classes(label)
    assert counts[:4].tolist() == [1, 3, 1, 0] and counts.sum() == 5
    several = np.stack([label == 0, label == 1, label != 7], axis=-1).astype(np.uint8)
    several[1, 0] = 255
    assert count_classes(several).tolist() == [1, 3, 5]


def test_images_show_a_class_if_they_have_enough_of_it() -> None:
    counts = np.array([[10, 900, 0, 0], [50, 80, 4, 0], [41, 900, 3, 0]])
    by_class = sampling_by_class(counts, temperature=0.5, pixels=40)
    assert by_class.images == ((1, 2), (0, 1, 2), (1, 2), ())  # No image has 40 of class 2; these have any.
    assert by_class.probabilities[3] == 0
    rng = np.random.default_rng(0)
    found = [by_class.draw(rng) for _ in range(2000)]
    assert all(one.example in by_class.images[one.class_id] for one in found)
    shares = np.bincount([one.class_id for one in found], minlength=4) / 2000
    np.testing.assert_allclose(shares, by_class.probabilities, atol=0.04)
    assert by_class.wanted(found[0]) == (found[0].class_id, 20)
    with pytest.raises(UserError, match=r"class_temperature: no pixel of the masks has a class; set it to 0"):
        sampling_by_class(np.zeros((3, 2), np.int64), temperature=1.0, pixels=3)


def test_a_rare_class_is_seen_often_and_in_the_crop() -> None:
    """Class 2 has 100 of 36,000 pixels, in one image of 20; a random crop would hold 50 of them in a few cases."""
    pairs = [(image, label) for b in drawn(Rare()) for image, label in zip(b["image"], b["label"], strict=True)]
    of_rare = [(image[0, 0, 2] == 3, np.sum(label == 2)) for image, label in pairs]
    assert np.mean([is_rare for is_rare, _ in of_rare]) > 0.95  # P(2) / P(1) is exp(99).
    assert np.mean([pixels > 20 for is_rare, pixels in of_rare if is_rare]) > 0.5
    alike = np.concatenate([batch["image"][:, 0, 0, 2] for batch in drawn(Rare(), temperature=0.0)])
    assert np.sum(alike == 3) == 10  # Of 200.


def test_what_is_drawn_depends_on_seed_and_step_alone() -> None:
    how = {"temperature": 1.0, "steps": 12}
    whole = drawn(Rare(), **how)
    for other in (drawn(Rare(), start=5, **how), drawn(Rare(), threads=5, **how)):
        for found, expected in zip(other, whole[-len(other) :], strict=True):
            np.testing.assert_array_equal(found["image"], expected["image"])
            np.testing.assert_array_equal(found["label"], expected["label"])
    another = drawn(Rare(), seed=1, **how)
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, another, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_worker_processes_draw_the_same() -> None:
    for found, expected in zip(drawn(Rare(), steps=6, workers=2), drawn(Rare(), steps=6), strict=True):
        np.testing.assert_array_equal(found["image"], expected["image"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of four images of 10 x 12 whose mask i has i pixels of class 1, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for index in range(4):
        write_image(tmp_path / "images" / "train" / f"{index}.png", np.zeros((10, 12, 3), np.uint8))
        write(tmp_path, index, index)
    return tmp_path


def write(folder, index, pixels) -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[0, :pixels], mask[-1] = 1, 255
    write_mask(folder / "masks" / "train" / f"{index}.png", mask, colormap(2))


def open_train(folder):
    return open_folder(folder, split="train", class_names=("no", "yes"))


def test_counts_are_kept_until_a_mask_changes(folder, monkeypatch) -> None:
    expected = [[108 - k, k] for k in range(4)]
    steps = []
    assert class_counts(open_train(folder), progress=lambda *done: steps.append(done)).tolist() == expected
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (file,) = (folder / "cache" / "deeplab_jax" / "classes").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "_read_label", None)
        assert class_counts(open_train(folder)).tolist() == expected
    write(folder, 2, 9)
    os.utime(folder / "masks" / "train" / "2.png", (1, 1))  # However coarse the clock of the file system is.
    assert class_counts(open_train(folder))[:, 1].tolist() == [0, 1, 9, 3]
    assert len([*file.parent.iterdir()]) == 2
    for content in (b"", b"\x93NUMPY damaged", np.zeros(3).tobytes()):
        for each in file.parent.iterdir():
            each.write_bytes(content)
        assert class_counts(open_train(folder))[:, 1].tolist() == [0, 1, 9, 3]


def test_a_cache_that_cannot_be_written_does_no_harm(folder, monkeypatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    assert class_counts(open_train(folder))[:, 1].tolist() == [0, 1, 2, 3]


def test_counts_of_a_reader_without_a_name_are_not_kept(folder) -> None:
    """A function inside a function, or an object that nothing can store, is no part of a file's name."""
    lock = threading.Lock()
    for read in (lambda path: read_mask(path), functools.partial(lambda held, path: read_mask(path), lock)):
        source = dataclasses.replace(open_train(folder), read_mask=read)
        assert class_counts(source)[:, 1].tolist() == [0, 1, 2, 3]
    assert not (folder / "cache").exists()


def test_masks_that_cannot_be_read_stop_or_are_left_out(folder) -> None:
    (folder / "masks" / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png"):
        class_counts(open_train(folder))
    skipped = Skipped(open_train(folder), 0.25)
    counts = class_counts(open_train(folder), skipped=skipped)
    assert counts.tolist() == [[108, 0], [0, 0], [106, 2], [105, 3]] and "1.png" in skipped.lines()[0]
    assert not (folder / "cache").exists()  # The next run looks again.
    with pytest.raises(UserError, match=r"1 of 4 examples of folder cannot be read, more than .*=0\.2 allows"):
        class_counts(open_train(folder), skipped=Skipped(open_train(folder), 0.2))


def test_palettes_that_differ_stop_where_others_are_skipped(folder) -> None:
    for index, colours in enumerate((((0, 0, 0), (9, 9, 9)), ((9, 9, 9), (0, 0, 0)))):
        write_mask(folder / "masks" / "train" / f"{index}.png", np.eye(9, 12, dtype=np.uint8), colours)
    with pytest.raises(PalettesDifferError):
        class_counts(open_train(folder), skipped=Skipped(open_train(folder), 1.0))


def test_each_set_has_a_sampling_of_its_own(folder) -> None:
    by_class = sampling_of(open_train(folder), class_temperature=0.1, class_pixels=1)
    assert by_class.images == ((0, 1, 2, 3), (2, 3))
    # Of 4 x 108 labelled pixels, 0 + 1 + 2 + 3 are of class 1.
    yes, no = np.exp(-6 / 432 / 0.1), np.exp(-426 / 432 / 0.1)
    np.testing.assert_allclose(by_class.probabilities, [no / (yes + no), yes / (yes + no)])


def test_an_image_that_cannot_be_read_is_replaced_as_without_sampling(folder) -> None:
    (folder / "images" / "train" / "3.png").write_bytes(b"no image")  # Its mask can be read.
    source = open_train(folder)
    skipped = skipped_examples(source, on_error="skip", max_skipped=0.5)
    found = drawn(source, steps=20, temperature=1.0, pixels=2, skipped=skipped)
    assert len(found) == 20 and len(skipped.lines()) == 1 and "3.png" in skipped.lines()[0]
    with pytest.raises(UserError, match=r"3\.png"):
        drawn(source, steps=20, temperature=1.0, pixels=2)
