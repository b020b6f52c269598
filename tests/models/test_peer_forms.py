"""What backbones of PyTorch code bases do otherwise: forms of Xception, padding of MobileNetV2, rates; by hand."""

from typing import Any

import jax.numpy as jnp
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones.dilation import Stage, dilate_stages
from deeplab_jax.models.backbones.inverted_residual import InvertedResidual, PaddedFirst
from deeplab_jax.models.backbones.xception_variants import VariantUnit, crop
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.layers import LayerSettings

BARE = LayerSettings(norm="none")


def conv(kernel: Any, bias: float) -> dict[str, Any]:
    return {"conv": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray([bias])}}


@pytest.mark.parametrize(("shortcut", "expected"), [("identity", [0.0, 38.0]), ("none", [0.0, 33.0])])
def test_activations_of_a_rectified_unit(shortcut: Any, expected: list[float]) -> None:
    """Each depthwise convolution computes 1 - y and is not rectified, each pointwise one 1 - 2 y.

    With a shortcut, -3 becomes 0 -> 1 -> -1, three times; the sum -4 is rectified. 5 becomes -4 -> 9, -8 -> 17, -16 ->
    33. Without one, -3 becomes 4 -> 0, 1 -> 0, 1 -> 0.
    """
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    separable = {"depthwise": conv(-centre, 1.0), "pointwise": conv([[[[-2.0]]]], 1.0)}
    unit = VariantUnit((1, 1, 1), shortcut, 1, (1, 1, 1), False, BARE, form="rectified")
    params = {f"separable{i}": separable for i in (1, 2, 3)}
    y = unit.apply({"params": params}, jnp.asarray([-3.0, 5.0]).reshape(1, 1, 2, 1), train=False)
    assert y.ravel().tolist() == expected


def test_the_original_form_pools_instead_of_striding() -> None:
    """Identities all the way: a 3x3 maximum at every second of 1, 5, 2, 3, plus every second of them."""
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    separable = {"depthwise": {"kernel": centre}, "pointwise": conv([[[[1.0]]]], 0.0)}
    unit = VariantUnit((1, 1), "projection", 2, (1, 1), False, BARE, form="original")
    params = {"separable1": separable, "separable2": separable, "shortcut": conv([[[[1.0]]]], 0.0)}
    y = unit.apply({"params": params}, jnp.asarray([1.0, 5.0, 2.0, 3.0]).reshape(1, 1, 4, 1), train=False)
    assert y.ravel().tolist() == [5 + 1, 5 + 2]


@pytest.mark.parametrize(("pixels", "rows"), [(0, (0, 5)), (1, (1, 4)), (2, (2, 3)), (9, (2, 3))])
def test_crop_leaves_at_least_the_centre(pixels: int, rows: tuple[int, int]) -> None:
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    assert crop(x, pixels).ravel().tolist() == list(range(*rows))


def test_a_rate_that_begins_with_the_next_stage() -> None:
    """Of the strides 2, 1, 2, 1 from 8 at output stride 16, the third is removed, and the fourth stage dilated."""
    stages = dilate_stages((2, 1, 2, 1), start=8, output_stride=16, first_unit_rate="next_stage")
    assert stages == [Stage(2, 1, 1, 16), Stage(1, 1, 1, 16), Stage(1, 1, 1, 16), Stage(1, 2, 2, 16)]


@pytest.mark.parametrize(("pad_input", "corner"), [(False, 4.0), (True, 4.0 + 5 * 3.0)])
def test_zeros_padded_before_the_expansion_become_its_bias(pad_input: bool, corner: float) -> None:
    """A 2x2 map of -2, expanded to y + 3 = 1, summed over 3x3: four pixels in the map, five zeros beside it."""
    kind = PaddedFirst if pad_input else InvertedResidual
    unit = kind(3, expanded=2, channels=1, activation="relu6", stride=1, residual=False, settings=BARE)
    params = {
        "expand": {"conv": {"kernel": jnp.ones((1, 1, 1, 2)), "bias": jnp.full(2, 3.0)}},
        "depthwise": {"conv": {"kernel": jnp.full((3, 3, 1, 2), 0.1), "bias": jnp.zeros(2)}},
        "project": {"conv": {"kernel": jnp.full((1, 1, 2, 1), 5.0), "bias": jnp.zeros(1)}},
    }
    y, _ = unit.apply({"params": params}, jnp.full((1, 2, 2, 1), -2.0), train=False)
    assert y.shape == (1, 2, 2, 1)
    assert float(y[0, 0, 0, 0]) == pytest.approx(corner)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("deeplabv3_xception41", {"form": "modified"}, "form='modified'"),
        ("deeplabv3_xception41", {"form": "original", "multi_grid": (1, 2, 4)}, "multi_grid"),
        ("deeplabv3_xception41", {"form": "original", "depthwise_activation": True}, "depthwise_activation"),
        ("deeplabv3_mobilenet_v2", {"stem_padding": "none"}, "stem_padding='none'"),
    ],
)
def test_options_without_meaning_are_refused(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        create_model(name, **options)
