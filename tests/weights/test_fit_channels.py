"""Weights for RGB on other numbers of channels: smp's rule by hand, in every backbone, and in foreign files."""

from functools import cache

import jax
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.fit_channels import fit_channels, fit_kernel
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.importers.torchvision import network
from deeplab_jax.weights.tensor_map import TORCH, their_name


def random_variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), abstract_variables(model))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (1, [6.0]),  # The sum of 1, 2 and 3.
        (2, [1.5, 3.0]),
        (4, [0.75, 1.5, 2.25, 0.75]),
        (5, [0.6, 1.2, 1.8, 0.6, 1.2]),
        (6, [0.5, 1.0, 1.5, 0.5, 1.0, 1.5]),
    ],
)
def test_the_rule_by_hand(new, expected) -> None:
    kernel = np.asarray([1, 2, 3], np.float32).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(fit_kernel(kernel, old=3, new=new).ravel(), expected, rtol=1e-6)
    # In a decoder, the channels of the image come after those of a map, which stay.
    beside = np.concatenate([np.full((1, 1, 2, 1), 9, np.float32), kernel], axis=2)
    np.testing.assert_allclose(fit_kernel(beside, old=3, new=new).ravel(), [9, 9, *expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "seeing"),
    [
        ("deeplabv3_resnet18", {"width": 0.125}, ["conv1"]),
        ("deeplabv3_resnet50_beta", {"width": 0.125}, ["stem_conv1"]),
        ("deeplabv3_xception41", {"width": 0.125}, ["stem_conv1"]),
        ("deeplabv3_mobilenet_v2", {"width": 0.25}, ["stem"]),
        ("deeplabv3_mobilenet_v3_large", {}, ["stem"]),
        ("segnet_vgg16", {"width": 0.125}, ["conv1_1"]),
        ("unet", {"width": 0.125}, ["conv1_1"]),
    ],
)
def test_every_backbone_and_only_its_first_convolution(name, options, seeing) -> None:
    model = create_model(name, **options)
    before = random_variables(model)
    fitted, variables = fit_channels(model, before, 2)
    assert fitted.in_channels == 2
    old, new = flatten_variables(before), flatten_variables(variables)
    shapes = {key: leaf.shape for key, leaf in flatten_variables(abstract_variables(fitted)).items()}
    assert {key: value.shape for key, value in new.items()} == shapes
    changed = [key for key in old if old[key].shape != new[key].shape]
    assert [key.split("/")[2] for key in changed] == seeing
    for key in changed:
        np.testing.assert_allclose(new[key], 1.5 * old[key][:, :, :2], rtol=1e-6)


@cache
def state_dict_of_four(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A state dict of one of torchvision's networks whose first convolution takes four channels, and our variables."""
    described = network(name, num_classes=5)
    model = create_model(name, num_classes=5, output_stride=described.output_stride, in_channels=4, **described.options)
    ours = flatten_variables(random_variables(model))
    theirs = {}
    for path, value in ours.items():
        key, leaf = their_name(path, rules=described.rules, layout=TORCH)
        theirs[key] = leaf.to_theirs(value)
    return theirs, ours


def test_a_foreign_network_of_four_channels_is_one_here() -> None:
    tensors, ours = state_dict_of_four("lraspp_mobilenet_v3_large")
    model, variables, _ = convert(tensors)
    assert model.in_channels == 4
    assert model.preprocessing.bands == (0, 1, 2, 3)
    found = flatten_variables(variables)
    for path, value in ours.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    # And to three channels, where convert is asked for them.
    model, variables, info = convert(tensors, in_channels=3)
    assert model.in_channels == 3
    assert (
        "the first convolution took 4 channels; for 3 it starts from its kernels in turn, times 4/3"
        in (info["source"]["notes"])
    )
    kernel = ours["params/backbone/stem/conv/kernel"]
    np.testing.assert_allclose(
        variables["params"]["backbone"]["stem"]["conv"]["kernel"], kernel[:, :, :3] * 4 / 3, rtol=1e-6
    )


def test_impossible_numbers_are_refused() -> None:
    tensors, _ = state_dict_of_four("lraspp_mobilenet_v3_large")
    with pytest.raises(UserError, match="in_channels=0: give a whole number from 1 to 1024"):
        convert(tensors, in_channels=0)
