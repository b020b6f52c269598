"""The protocol: what it refuses, what it makes of its values, and what it does to images and examples."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.protocol import Protocol, check_used, padded_size, split_section
from deeplab_jax.evaluate.windows import OVERLAP
from deeplab_jax.models.decision import THRESHOLD
from deeplab_jax.ops.crf import DenseCRF
from tests.support.tiny import MadeUp, tiny_model, tiny_models

# Values.


def test_values_are_settled_so_that_equal_protocols_are_equal() -> None:
    """What a config, JSON and numpy hold; a protocol is a key of compiled programs, so it has a hash."""
    loose = Protocol(
        pad_to=[[65, 97]],
        scales=[1, np.float32(0.5)],
        flip=1,
        window=np.array([40, 48]),
        crf=True,
        trimap=[np.int64(2)],
    )
    exact = Protocol(pad_to=((65, 97),), scales=(1.0, 0.5), flip=True, window=(40, 48), crf=DenseCRF(), trimap=(2,))
    assert loose == exact and hash(loose) == hash(exact) and Protocol(window=None, crf=None) == Protocol()
    assert type(loose.scales[0]) is float and type(loose.window[0]) is int and loose.flip is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "paded"}, "mode='paded': did you mean padded"),
        ({"pad_to": ((65,),)}, "pad_to=((65,),): give heights and widths"),
        ({"pad_to": (65, 65)}, "pad_to=(65, 65)"),
        ({"pad_to": ((65, 2**15 + 1),)}, "1 to 32768"),
        ({"output_stride": 8.5}, "output_stride=8.5: give a whole number"),
        ({"scales": ()}, "scales=(): give one or more positive factors"),
        ({"scales": (-1.0,)}, "scales=(-1.0,)"),
        ({"scales": (0.0,)}, "scales=(0.0,)"),
        ({"scales": (1.0, -1.0)}, "scales=(1.0, -1.0)"),
        ({"scales": (float("nan"),)}, "scales=(nan,)"),
        ({"scales": (17.0,)}, "from 0.01 to 16"),
        ({"scales": (1.0,) * 33}, "at most 32"),
        ({"scales": "all"}, "scales='all'"),
        ({"scales": (10**400,)}, "scales=(1000000"),
        ({"flip": "false"}, "flip='false': give true or false"),
        ({"scales": 1.0}, "scales=1.0"),
        ({"window": (65,)}, "window=(65,): give a height and a width of at least 33 pixels, such as 513,513"),
        ({"window": (65, 0)}, "window=(65, 0)"),
        ({"window": (32, 65)}, "window=(32, 65): give a height and a width of at least 33 pixels"),
        ({"window": (65.5, 65)}, "window=(65.5, 65)"),
        ({"window": (1, 2, 3)}, "window=(1, 2, 3)"),
        ({"crf": "fast"}, "crf='fast'"),
        ({"output_stride": True}, "output_stride=True: give a whole number such as 8 or 16"),
        ({"bootstrap": True}, "bootstrap=True: give a number of resamples"),
        ({"crop": (True, True)}, "crop=(True, True): give a height and a width"),
        ({"trimap": (True,)}, "trimap=(True,)"),
        ({"resize": -1}, "resize=-1: give the pixels of the shorter side"),
        ({"resize": 2**15 + 1}, "resize=32769"),
        ({"crop": (3,)}, "crop=(3,): give a height and a width"),
        ({"crop": (0, 3)}, "crop=(0, 3)"),
        ({"trimap": (0, 1)}, "trimap=(0, 1)"),
        ({"trimap": (2, 2)}, "each once"),
        ({"trimap": tuple(range(1, 34))}, "up to 32 widths"),
        ({"trimap": (1,), "trimap_around": "voids"}, "trimap_around='voids': did you mean void"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(UserError) as refused:
        Protocol(**options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_defaults_are_those_of_the_functions_without_a_config() -> None:
    assert (Protocol().overlap, Protocol().threshold) == (OVERLAP, THRESHOLD)


def test_options_of_a_window_need_one() -> None:
    check_used(Protocol(window=(65, 65), overlap=0.5), {"overlap"})
    check_used(Protocol(overlap=0.5), {"scales"})  # A configuration may hold it for the day when there is a window.
    for key, value in (("overlap", 0.5), ("blend", "gaussian")):
        with pytest.raises(UserError, match=f"^{key}=.*: no window slides; give --window 513,513 too"):
            check_used(Protocol(**{key: value}), {key})


def test_what_concerns_labels_is_of_no_use_without_them() -> None:
    """An evaluation reads labels; a prediction has none."""
    given = {"resize": 50, "crop": (10, 10), "trimap": (1,), "trimap_around": "void", "bootstrap": 99}
    given |= dict.fromkeys(("boundary", "calibration", "per_image"), True)
    used = {"mode": "exact", "pad_to": (), "output_stride": 8, "scales": (0.5,), "flip": True, "threshold": 0.5}
    used |= {"window": (65, 65), "overlap": 0.5, "blend": "uniform", "crf": False}
    assert {*given, *used} == {field.name for field in dataclasses.fields(Protocol)}
    check_used(Protocol(**given), given)
    check_used(Protocol(**used), used, labelled=False)
    for key in given:
        with pytest.raises(UserError, match=f"^{key}=.*: it concerns labels, which only evaluate reads; leave it out"):
            check_used(Protocol(**given), {key}, labelled=False)


def test_a_section_is_a_protocol_and_how_it_is_run() -> None:
    """What neither knows is left to `evaluate`, which takes no such argument."""
    section = {"mode": "exact", "scales": (0.5, 1.0), "batch_size": 4, "devices": 0, "strid": 8}
    protocol, how = split_section(section)
    assert protocol == Protocol(mode="exact", scales=(0.5, 1.0))
    assert how == {"batch_size": 4, "devices": 0, "strid": 8}


def test_views_are_scales_and_their_mirror_images() -> None:
    assert Protocol(scales=(0.5, 1.0)).views == ((0.5, False), (1.0, False))
    assert Protocol(scales=(0.5, 1.0), flip=True).views == ((0.5, False), (0.5, True), (1.0, False), (1.0, True))


def test_json_says_what_was_asked() -> None:
    said = Protocol(scales=(0.5,), window=(40, 48), crf=DenseCRF(iterations=2), crop=(33, 34), resize=50).to_json()
    assert said == {
        "scales": [0.5],
        "flip": False,
        "window": [40, 48],
        "overlap": 1 / 3,
        "blend": "uniform",
        "crf": dataclasses.asdict(DenseCRF(iterations=2)),
        "mode": "padded",
        "pad_to": [],
        "view": "centre crop 33x34, sliding window",
        "label_resolution": "shorter side 50",
        "ignore_label": 255,
    }


# Sizes.


def test_the_smallest_size_that_holds_the_image_is_taken() -> None:
    sizes = ((513, 513), (65, 129), (129, 65))
    assert padded_size((60, 100), sizes) == (65, 129)
    assert padded_size((100, 60), sizes) == (129, 65)
    assert padded_size((66, 66), sizes) == (513, 513)
    assert padded_size((600, 100), sizes) == (641, 129)


@given(height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_sizes_are_few_and_hold_the_image(height, width) -> None:
    padded = padded_size((height, width), ())
    for side, result in zip((height, width), padded, strict=True):
        assert (result >= side and (result - 1) % 128 == 0 and result - side <= 128) or result == 129
    assert Protocol().run_size((height, width)) == padded
    assert Protocol(mode="exact").run_size((height, width)) == (max(33, height), max(33, width))


def test_the_protocol_says_what_was_seen() -> None:
    source = MadeUp(((49, 65), (60, 60)))
    with tiny_models():
        results = evaluate(*tiny_model(), source, Protocol(resize=40, crop=(40, 40), trimap=(1, 3)))
    assert results["protocol"]["view"] == "centre crop 40x40"
    assert results["protocol"]["label_resolution"] == "shorter side 40"
    assert sum(map(sum, results["confusion_matrix"])) <= 2 * 40 * 40
    one, three = results["trimap"]["bands"]
    assert (one["width"], three["width"]) == (1, 3) and one["pixels"] <= three["pixels"]
    # Labels of single random pixels: all of them are beside another label.
    assert three["miou"] == pytest.approx(results["miou"])
