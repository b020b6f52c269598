"""The importers take the tensors of every published file exactly: each is used once or known to be of no use."""

import numpy as np
import pytest

from deeplab_jax.models.catalog import describe
from deeplab_jax.weights import fill_variables
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.published import PUBLISHED
from tests.weights.published_tensors import entries, shapes_of

# One name of each list; the others say nothing about the tensors.
NAMES = list({number: name for name, number in entries().items()}.values())
# What a classifier's file holds beyond the backbone.
CLASSIFIERS = ("fc.", "classifier.", "features.18.", "pre_logits.", "head.", "mobilenet_v2.conv_1x1.")


class Nothing:
    """In place of `jax.numpy` and of random values: no memory for a gigabyte of them."""

    asarray = staticmethod(np.asarray)


@pytest.fixture
def without_values(monkeypatch):
    monkeypatch.setattr(fill_variables, "jnp", Nothing)
    monkeypatch.setattr(fill_variables, "_check_finite", lambda variables, source: None)
    monkeypatch.setattr(
        fill_variables,
        "_random",
        lambda model, names, seed: dict.fromkeys(names, np.float32(np.nan)),
    )


def hollow(shapes):
    """Arrays of these shapes that take no memory."""
    return {
        name: np.broadcast_to(np.float32(1) if len(shape) else np.int64(0), shape) for name, shape in shapes.items()
    }


def check(name, shapes):
    entry = PUBLISHED[name]
    model, variables, info = convert(hollow(shapes))
    source = info["source"]
    assert describe(model)["name"] == entry.network
    assert source["mismatched"] == []
    # A whole network has no variable that starts at random; of a classifier, no variable of the backbone does.
    assert bool(source["random"]) == (entry.labels is None and "mmsegmentation" not in name)
    assert not [path for path in source["random"] if "/backbone/" in path]
    counters = [key for key in shapes if key.endswith("num_batches_tracked")]
    rest = sorted(set(source["unused"]) - set(counters))
    assert all(key.startswith(CLASSIFIERS) or "/logits/" in key for key in rest), rest
    biases = 13 if "vgg16_bn" in name else 0  # They move into the running means.
    assert source["tensors"] + len(rest) + len(counters) + biases == len(shapes)
    taken = {
        path: leaf.size
        for path, leaf in flatten_variables(variables).items()
        if path.startswith("params/") and path not in source["random"]
    }
    assert sum(taken.values()) / 1e6 == pytest.approx(entry.parameters, abs=0.0051)
    if entry.labels is not None:
        assert model.num_classes == entry.labels.num_classes
    return variables


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_a_published_file_has_its_place(name, without_values):
    check(name, shapes_of(name))


def test_every_entry_has_a_list():
    assert list(entries()) == list(PUBLISHED)


@pytest.mark.parametrize("name", ["torchvision/resnet18.imagenet_v1"])
def test_older_files_have_no_counters(name, without_values):
    """PyTorch before 0.4.1 wrote none."""
    shapes = {key: shape for key, shape in shapes_of(name).items() if not key.endswith("num_batches_tracked")}
    assert len(shapes) < len(shapes_of(name))
    check(name, shapes)
