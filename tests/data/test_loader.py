"""Input pipelines: what a step sees depends on the seed and the step alone, and labels stay with their images."""

import dataclasses
import itertools

import numpy as np
import pytest

from deeplab_jax.config_keys import Augment
from deeplab_jax.data.augment import NONE
from deeplab_jax.data.loader import examples_in_order
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet, colormap
from tests.support.batches import batches_of

SIZE = (33, 40)
OPTIONS = {"crop_size": SIZE, "scale_range": (1.0, 1.0), "fill": (0, 0, 0), "threads": 2}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Each image says in its pixels which example it is, and its label says the same."""

    count: int
    bad: int = -1
    name: str = "encoded"
    labels = LabelSet(tuple(map(str, range(100))), colormap(100))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.bad:
            raise UserError(f"example {index}: is bad")
        image = np.full((*SIZE, 3), index, np.uint8)
        image[:, 20:] += 100
        label = np.full(SIZE, index, np.uint8)
        label[:, 20:] += 100
        return {"image": image, "label": label, "name": str(index)}

    def describe(self, index):
        return str(index)


def batches(count=5, *, batch_size=2, steps=10, **options):
    return list(batches_of(Encoded(count), batch_size=batch_size, steps=steps, **{**OPTIONS, **options}))


def seen(found):
    """The examples of each batch."""
    return [batch["label"].min(axis=(1, 2)).tolist() for batch in found]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


AUGMENTED = {"scale_range": (0.5, 2.0), "color_jitter": 0.3, "crop_size": (33, 33)}


def test_batches_have_their_shapes_and_number() -> None:
    found = batches(steps=7, batch_size=3, crop_size=(33, 35))
    assert len(found) == 7
    for batch in found:
        assert batch["image"].shape == (3, 33, 35, 3) and batch["label"].shape == (3, 33, 35)
        assert batch["image"].dtype == batch["label"].dtype == np.uint8


@pytest.mark.parametrize("start", [1, 3, 9])
def test_a_start_in_the_middle_sees_what_it_would_have_seen(start) -> None:
    whole = batches(**AUGMENTED)
    assert_same(batches(start=start, **AUGMENTED), whole[start:])


def test_nothing_depends_on_threads_or_on_the_number_of_steps() -> None:
    whole = batches(**AUGMENTED)
    assert_same(batches(threads=7, **AUGMENTED), whole)
    assert_same(batches(threads=0, **AUGMENTED), whole)
    assert_same(batches(steps=4, **AUGMENTED), whole[:4])


MORE = Augment(quarter_turns=True, rotation=45.0, elastic=3.0, noise=9.0, jpeg=40, cutout=2, cat_max_ratio=0.7)


def test_further_augmentation_depends_on_seed_and_position_alone() -> None:
    whole = batches(more=MORE, **AUGMENTED)
    assert_same(batches(more=MORE, start=3, threads=5, **AUGMENTED), whole[3:])
    assert_same(batches(more=Augment(probability=0.1), **AUGMENTED), batches(**AUGMENTED))
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, batches(**AUGMENTED), strict=True))
    assert seen(batches(more=MORE, seed=1, **AUGMENTED)) != seen(whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("more", [NONE, MORE])
def test_nothing_depends_on_worker_processes(more) -> None:
    assert_same(batches(workers=2, more=more, **AUGMENTED), batches(more=more, **AUGMENTED))


def test_seeds_differ_and_repeat() -> None:
    assert_same(batches(seed=3, **AUGMENTED), batches(seed=3, **AUGMENTED))
    assert seen(batches(count=50, seed=3)) != seen(batches(count=50, seed=4))


def test_every_epoch_sees_every_example_once_in_another_order() -> None:
    order = list(itertools.chain(*seen(batches(count=10, batch_size=2, steps=15))))
    epochs = [order[:10], order[10:20], order[20:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]


def test_augmentation_differs_from_epoch_to_epoch() -> None:
    found = batches(count=1, batch_size=1, steps=6, scale_range=(0.5, 2.0), scale_step=0.0)
    images = {batch["image"].tobytes() for batch in found}
    assert len(images) == 6


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (3, 4), (5, 3)])
def test_sources_smaller_than_a_batch_and_remainders_go_round(count, batch_size) -> None:
    order = list(itertools.chain(*seen(batches(count=count, batch_size=batch_size, steps=2 * count))))
    assert len(order) == 2 * count * batch_size
    assert all(order.count(example) == 2 * batch_size for example in range(count))


def test_labels_stay_with_their_images() -> None:
    """Scaling, cropping, flipping: the value of a pixel away from the edge inside the image is that of its label."""
    for batch in batches(steps=20, scale_range=(0.5, 2.0), scale_step=0.0, crop_size=(33, 33), fill=(255, 255, 255)):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            inside = label != 255
            np.testing.assert_array_equal(image[~inside], 255)
            pure = np.isin(image[..., 0], label[inside]) & inside  # interpolation mixes along the one edge
            np.testing.assert_array_equal(image[..., 0][pure], label[pure])
            assert pure.sum() > 0.8 * inside.sum()


def test_flips_happen_half_of_the_time_or_never() -> None:
    flipped = [bool(batch["label"][0, 0, 0] >= 100) for batch in batches(batch_size=1, steps=60)]
    assert 15 < sum(flipped) < 45
    assert not any(batch["label"][0, 0, 0] >= 100 for batch in batches(batch_size=1, steps=20, flip=False))


def test_what_an_example_raises_arrives_as_it_is() -> None:
    source = Encoded(3, bad=1)
    with pytest.raises(UserError) as caught:
        list(batches_of(source, batch_size=1, steps=6, **OPTIONS))
    assert str(caught.value) == "example 1: is bad"
    with pytest.raises(UserError) as caught:
        list(examples_in_order(source))
    assert str(caught.value) == "example 1: is bad"
    with pytest.raises(UserError, match="crop_size"):
        list(batches_of(Encoded(3), batch_size=1, steps=6, **{**OPTIONS, "crop_size": (0, 5)}))


def test_examples_in_order_are_read_once() -> None:
    names = [example["name"] for example in examples_in_order(Encoded(7))]
    assert names == [str(index) for index in range(7)]
    assert [example["name"] for example in examples_in_order(Encoded(7), range(3))] == ["0", "1", "2"]
    assert [example["name"] for example in examples_in_order(Encoded(7), range(1, 7, 2))] == ["1", "3", "5"]
