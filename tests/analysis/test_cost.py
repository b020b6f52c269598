"""Multiply-adds: the literature's worked numbers, counts by hand, and what may not change a count."""

from math import prod
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import multiply_adds
from deeplab_jax.analysis.cost import count, products, record
from deeplab_jax.analysis.summary import WHOLE_IMAGE, summarize
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.ops.atrous import Lowering, conv2d
from deeplab_jax.ops.geometry import Window
from deeplab_jax.ops.observe import Convolution, observe_convolutions
from deeplab_jax.ops.transposed import conv_transpose2d
from tests.support.tiny import tiny_models

COUNTINGS = ("exact", "valid", "space_to_batch")


def observed(function, *shapes) -> list[Convolution]:
    """The convolutions that a function of arrays of these shapes traces."""
    found: list[Convolution] = []
    with observe_convolutions(found.append):
        jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return found


def counts(function, *shapes) -> tuple[int, ...]:
    """Multiply-adds of a function in the three countings."""
    found = observed(function, *shapes)
    return tuple(sum(products(c, counting=counting) for c in found) for counting in COUNTINGS)


def test_worked_example_of_the_literature() -> None:
    """A 5x5 convolution of 12x12x3 without padding: 8x8 outputs."""
    dense = counts(lambda x, k: conv2d(x, k, padding="VALID"), (1, 12, 12, 3), (5, 5, 3, 256))
    assert dense == (1_228_800,) * 3

    def separable(x, depthwise, pointwise):
        return conv2d(conv2d(x, depthwise, padding="VALID", feature_group_count=3), pointwise)

    split = counts(separable, (1, 12, 12, 3), (5, 5, 1, 3), (1, 1, 3, 256))
    assert split == (53_952,) * 3
    assert 3 * 5 * 5 * 8 * 8 + 256 * 3 * 8 * 8 == 53_952


@pytest.mark.parametrize(
    ("size", "kernel", "options", "expected"),
    [
        # 3 taps per axis on 5 pixels: the two border pixels see 2, so 13 of 15 pairs are on the map.
        ((5, 5), (3, 3, 1, 1), {}, (225, 169, 225)),
        # Rate 2: pixels see 2, 2, 3, 2, 2 taps. Space-to-batch computes 6 x 6 outputs.
        ((5, 5), (3, 3, 1, 1), {"rate": 2}, (225, 121, 324)),
        # Rate 5 on 5 pixels: only the centre. 5 is its own multiple.
        ((5, 5), (3, 3, 1, 1), {"rate": 5}, (225, 25, 225)),
        # Rate 7 > 5: 7 x 7 outputs.
        ((5, 5), (3, 3, 1, 1), {"rate": 7}, (225, 25, 441)),
        # 4 x 7 at rate 3: rows see 2, 1, 1, 2 taps, columns 2, 2, 2, 3, 2, 2, 2; space-to-batch computes 6 x 9.
        ((4, 7), (3, 3, 2, 5), {"rate": 3}, (10 * 9 * 28, 10 * 6 * 15, 10 * 9 * 54)),
        # Stride 2 on 6: outputs at 0, 2, 4 see 2, 3, 3.
        ((6, 6), (3, 3, 1, 1), {"stride": 2}, (81, 64, 81)),
        # TensorFlow's SAME pads 6 at the end only: outputs at 0, 2, 4 see 3, 3, 2.
        ((6, 6), (3, 3, 1, 1), {"stride": 2, "padding": "SAME"}, (81, 64, 81)),
        # Two zeros above, none below, one on the left: 4 x 3 outputs, rows see 1, 2, 3, 3 taps, columns 2, 3, 3.
        ((4, 4), (3, 3, 1, 1), {"padding": ((2, 0), (1, 0))}, (9 * 12, 9 * 8, 9 * 12)),
        # Stride and rate: outputs at 0, 2, 4 of 5 see {0, 2}, {0, 2, 4}, {2, 4}. No space-to-batch with a stride.
        ((5, 5), (3, 3, 1, 1), {"rate": 2, "stride": 2}, (81, 49, 81)),
        # Depthwise: one product per channel and tap, with the same padding of space-to-batch.
        ((5, 5), (3, 3, 1, 4), {"rate": 2, "feature_group_count": 4}, (900, 484, 1296)),
        # Two groups: each output sees half of the four input channels.
        ((5, 5), (3, 3, 2, 6), {"feature_group_count": 2}, (225 * 12, 169 * 12, 225 * 12)),
    ],
)
def test_counts_by_hand(size, kernel, options, expected) -> None:
    channels = kernel[2] * options.get("feature_group_count", 1)
    assert counts(lambda x, k: conv2d(x, k, **options), (1, *size, channels), kernel) == expected


def test_images_of_a_batch_add_up() -> None:
    one, three = (counts(conv2d, (n, 7, 7, 2), (3, 3, 2, 4)) for n in (1, 3))
    assert three == tuple(3 * number for number in one)


def test_every_product_of_a_transposed_convolution_is_on_the_map() -> None:
    assert counts(lambda x, k: conv_transpose2d(x, k, stride=2), (1, 5, 7, 3), (4, 4, 3, 2)) == (5 * 7 * 16 * 6,) * 3


@pytest.mark.parametrize("rate", [1, 6, 12, 18, 40, 64])
def test_valid_share_is_that_of_figure_4(rate) -> None:
    exact, valid, _ = counts(lambda x, k: conv2d(x, k, rate=rate), (1, 65, 65, 8), (3, 3, 8, 16))
    window = Window(rate, 1, ((rate, rate), (rate, rate)), 1)
    assert valid / exact == pytest.approx(prod(window.shares_on_map((65, 65), (3, 3))), rel=1e-12)


@pytest.mark.parametrize("options", [{"rate": 3}, {"rate": 3, "feature_group_count": 6}, {"stride": 2}])
def test_valid_products_are_those_with_a_pixel(options) -> None:
    """A convolution of ones with ones counts the taps on the map."""
    groups = options.get("feature_group_count", 1)
    x, kernel = jnp.ones((1, 8, 11, 6)), jnp.ones((3, 3, 6 // groups, 6))
    found: list[Convolution] = []
    with observe_convolutions(found.append):
        total = conv2d(x, kernel, **options).sum()
    assert products(found[0], counting="valid") == int(total)


def test_no_lowering_changes_a_count() -> None:
    found = []
    for lowering in get_args(Lowering):
        with tiny_models():
            model = create_model("deeplabv3plus_tiny", lowering=lowering, separable=True, output_stride=8)
        calls = record(model, 65, 97).calls
        found.append([count(calls, counting=counting) for counting in COUNTINGS])
    assert len(found) == 4
    assert all(each == found[0] for each in found[1:])
    exact, valid, padded = (each.total for each in found[0])
    assert valid < exact < padded


def test_names_and_counts_of_the_layers() -> None:
    result = multiply_adds(create_model("deeplabv3plus_resnet50"), 65, 65)
    layers = dict(result.layers)
    assert len(layers) == len(result.layers)
    assert sum(layers.values()) == result.total
    assert next(iter(layers)) == "backbone/conv1"
    assert layers["backbone/conv1"] == 33 * 33 * 49 * 3 * 64
    assert layers["backbone/conv4_unit3/conv2"] == 5 * 5 * 9 * 256 * 256
    assert layers["context/image_pooling"] == 2048 * 256
    assert layers["context/branch_atrous3"] == 5 * 5 * 9 * 2048 * 256
    assert layers["decoder/conv2_conv1"] == 17 * 17 * 9 * 304 * 256
    assert layers["classifier"] == 17 * 17 * 256 * 21


@pytest.mark.parametrize(
    ("name", "options", "billions"),
    [
        ("deeplabv3_resnet50", {"output_stride": 8, "multi_grid": (1, 1, 1), "head_convs": ((3, 256),)}, 178.722),
        ("deeplabv3_mobilenet_v3_large", {"head_convs": ((3, 256),)}, 10.452),
        ("fcn_resnet50", {}, 152.717),
    ],
)
def test_torchvision_counts_the_same(name, options, billions) -> None:
    """The operations that torchvision states with its weights, for 520x520 and with the auxiliary head."""
    total = multiply_adds(create_model(name, aux_head=True, lowering="direct", **options), 520, 520).total
    assert round(total / 1e9, 3) == billions


def test_shared_weights_add_up() -> None:
    """The scales of an image pyramid are one layer each, called once per scale."""
    sizes = [(65, 65), (49, 49), (33, 33)]
    single = create_model("deeplabv3_resnet18")
    pyramid = create_model("deeplabv3_resnet18", image_pyramid=(1.0, 0.75, 0.5))
    expected = [dict(multiply_adds(single, *size).layers) for size in sizes]
    assert dict(multiply_adds(pyramid, 65, 65).layers) == {
        name: sum(each[name] for each in expected) for name in expected[0]
    }


def test_what_cannot_be_counted_is_refused() -> None:
    with tiny_models():
        model = create_model("cascade_tiny")
    with pytest.raises(UserError, match="size 32x65: this network does not take it; 33x65 would fit"):
        multiply_adds(model, 32, 65)
    with pytest.raises(UserError, match="counting='exactly': did you mean exact"):
        multiply_adds(model, 65, 65, counting="exactly")
    with pytest.raises(UserError, match="size 187x300: this network does not take it; 188x300 would fit"):
        multiply_adds(create_model("unet", padding="valid"), 187, 300)


def test_no_observer_is_left_behind() -> None:
    with tiny_models():
        calls = record(create_model("cascade_tiny"), 33, 33).calls
    before = count(calls)
    jax.eval_shape(conv2d, jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)))
    assert count(calls) == before


def test_summary_of_a_network() -> None:
    model = create_model("deeplabv3plus_resnet18", aux_head=True, image_pooling=False, num_classes=5)
    summary = summarize(model, 65, 97)
    stages = {stage.name: stage for stage in summary.stages}
    assert list(stages) == [
        *("stem", "conv2", "conv3", "conv4", "conv5"),
        *("context", "aux_head", "decoder", "classifier"),
    ]
    assert {name: (stage.output_stride, stage.output_shape) for name, stage in stages.items()} == {
        "stem": (2, (1, 33, 49, 64)),
        "conv2": (4, (1, 17, 25, 64)),
        "conv3": (8, (1, 9, 13, 128)),
        "conv4": (16, (1, 5, 7, 256)),
        "conv5": (16, (1, 5, 7, 512)),
        "context": (16, (1, 5, 7, 256)),
        "aux_head": (16, (1, 5, 7, 5)),
        "decoder": (4, (1, 17, 25, 256)),
        "classifier": (4, (1, 17, 25, 5)),
    }
    leaves = jax.tree.leaves(abstract_variables(model)["params"])
    assert summary.total.parameters == sum(prod(leaf.shape) for leaf in leaves)
    for counting, field in (("exact", "multiply_adds"), ("valid", "multiply_adds_valid")):
        assert getattr(summary.total, field) == multiply_adds(model, 65, 97, counting=counting).total
    for field in ("parameters", "multiply_adds", "multiply_adds_valid", "activation_bytes"):
        assert getattr(summary.total, field) == sum(getattr(stage, field) for stage in summary.stages)
    assert summary.total.largest_pair_bytes == max(stage.largest_pair_bytes for stage in summary.stages)
    assert (summary.total.output_stride, summary.total.output_shape) == (16, (1, 65, 97, 5))
    # 7x7 of 3 channels, and a scale and an offset per channel.
    assert stages["stem"].parameters == 49 * 3 * 64 + 2 * 64
    assert stages["stem"].activation_bytes == 4 * 33 * 49 * 64
    assert stages["stem"].largest_pair_bytes == 4 * (65 * 97 * 3 + 33 * 49 * 64)
    assert stages["stem"].receptive_field == 7
    assert stages["classifier"].multiply_adds == 17 * 25 * 256 * 5


def test_memory_is_that_of_the_dtype() -> None:
    with tiny_models():
        single, half = (summarize(create_model("cascade_tiny", dtype=d), 65, 65) for d in ("float32", "bfloat16"))
    assert single.total.activation_bytes == 2 * half.total.activation_bytes
    assert (single.dtype, half.dtype) == ("float32", "bfloat16")


def test_image_pooling_sees_the_whole_image() -> None:
    summary = summarize(create_model("deeplabv3_resnet18"), 33, 33)
    fields = {stage.name: stage.receptive_field for stage in (*summary.stages, summary.total)}
    assert fields["context"] == fields["classifier"] == fields["total"] == WHOLE_IMAGE
    assert isinstance(fields["conv5"], int)


@pytest.mark.parametrize("name", ["xception", "vgg"])
def test_stages_of_other_backbones(name) -> None:
    """Every parameter belongs to a stage, whatever the backbone calls its parts."""
    model = create_model({"xception": "deeplabv3_xception41", "vgg": "segnet_vgg16"}[name])
    summary = summarize(model, 65, 65)
    assert summary.total.parameters == sum(stage.parameters for stage in summary.stages)
    assert summary.total.multiply_adds == sum(stage.multiply_adds for stage in summary.stages)
    assert all(stage.output_shape is not None for stage in summary.stages)
    assert np.all([stage.multiply_adds > 0 for stage in summary.stages])
