"""The importers take the tensors of every published file exactly: each is used once or known to be of no use.

`tests/peers` compares the logits of the names whose peers install; here are the others. The real code's logits, or a
classifier's features, are kept for exactly these tensors (`importers/golden`).
"""

import dataclasses
import re

import jax
import numpy as np
import pytest

from deeplab_jax.models.catalog import describe
from deeplab_jax.weights import download, fill_variables
from deeplab_jax.weights.by_name import load
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.export_state_dict import write_state_dict
from deeplab_jax.weights.folder import flatten_variables
from deeplab_jax.weights.published import PUBLISHED
from tests.peers.backbones import zeros
from tests.weights.importers import golden, test_keras_hub, test_mmsegmentation, test_slim
from tests.weights.published_tensors import entries, shapes_of

# One name of each list; the others say nothing about the tensors.
NAMES = list({number: name for name, number in entries().items()}.values())
# One name of each source and network, of whatever depth.
FAST = {(name.split("/")[0], re.sub(r"\d+", "", PUBLISHED[name].network)): name for name in NAMES}.values()
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
        lambda model, names: dict.fromkeys(names, np.float32(np.nan)),
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
    # Biases move into the running means; KerasHub's classifier gets one of zeros.
    biases = 13 if "vgg16_bn" in name else -1 if name.startswith("keras/") else 0
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


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES])
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


# Name to the golden file and the output stride at which the peer runs. The logits depend on the tensors' names and
# shapes alone, so names with the same list share a file.
GOLDEN = {
    "mmsegmentation/deeplabv3plus_r18b_cityscapes": ("mmseg_deeplabv3plus_resnet18_b", 8),
    "mmsegmentation/deeplabv3plus_r50b_cityscapes": ("mmseg_deeplabv3plus_resnet50_b_19", 8),
    "mmsegmentation/deeplabv3plus_r101b_cityscapes": ("mmseg_deeplabv3plus_resnet101_b", 8),
    "mmsegmentation/deeplabv3plus_r101_voc": ("mmseg_deeplabv3plus_resnet101_v1c_21", 8),
    "mmsegmentation/deeplabv3plus_r101_ade20k": ("mmseg_deeplabv3plus_resnet101_v1c_150", 8),
    "mmsegmentation/deeplabv3plus_r50_loveda": ("mmseg_deeplabv3plus_resnet50_v1c", 8),
    "mmsegmentation/deeplabv3plus_r50_potsdam": ("mmseg_deeplabv3plus_resnet50_v1c_6", 8),
    "mmsegmentation/deeplabv3plus_r50_vaihingen": ("mmseg_deeplabv3plus_resnet50_v1c_6", 8),
    "mmsegmentation/deeplabv3plus_r50_isaid": ("mmseg_deeplabv3plus_resnet50_v1c_16", 8),
    "keras/deeplab_v3_plus_resnet50_pascalvoc": ("keras_hub_resnet50_p5", 32),
    "tensorflow/deeplabv3_mnv2_dm05_pascal_trainaug": ("slim_mobilenet_v2_050", 16),
    "tensorflow/deeplabv3_mnv2_dm05_pascal_trainval": ("slim_mobilenet_v2_050", 16),
    "tensorflow/deeplabv3_mnv2_pascal_train_aug": ("slim_mobilenet_v2", 16),
    "tensorflow/deeplabv3_mnv2_pascal_trainval": ("slim_mobilenet_v2", 16),
    "tensorflow/deeplabv3_pascal_train_aug": ("slim_xception65", 16),
    "tensorflow/deeplabv3_pascal_trainval": ("slim_xception65", 16),
    "tensorflow/deeplabv3_mnv2_cityscapes_train": ("slim_mobilenet_v2_19", 16),
    "tensorflow/deeplabv3_cityscapes_train": ("slim_xception65_19", 16),
    "tensorflow/deeplabv3_xception_ade20k_train": ("slim_xception65_151", 16),
    "tensorflow/deeplabv3_mnv2_ade20k_train": ("slim_mobilenet_v2_decoder", 16),
    "tensorflow/xception_41.imagenet": ("slim_xception41_features", 16),
    "tensorflow/xception_65.imagenet": ("slim_xception65_features", 16),
    "tensorflow/xception_65.coco": ("slim_xception65_features", 16),
    "tensorflow/xception_71.imagenet": ("slim_xception71_features", 16),
    "tensorflow/resnet_v1_50_beta.imagenet": ("slim_resnet50_beta_features", 16),
    "tensorflow/resnet_v1_101_beta.imagenet": ("slim_resnet101_beta_features", 16),
}
# Others compare these with the peer itself, where it is installed.
ELSEWHERE = {
    "tests/peers/test_published.py": ("torchvision/", "timm/", "smp/", "google/"),
    "tests/peers/test_tflite.py": ("tensorflow/deeplabv3_257_mv_gpu",),
}


def test_every_name_is_compared_with_what_its_peer_computes():
    elsewhere = tuple(start for starts in ELSEWHERE.values() for start in starts)
    assert {*GOLDEN} == {name for name in PUBLISHED if not name.startswith(elsewhere)}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_a_name_gives_what_the_real_code_computed(name, monkeypatch, tmp_path):
    """Logits, or of a classifier the backbone's features."""
    file, output_stride = GOLDEN[name]
    entry, mirror = PUBLISHED[name], tmp_path / "mirror"
    mirror.mkdir()
    if name.startswith("mmsegmentation/"):
        write_state_dict(mirror / entry.file, test_mmsegmentation.generate_tensors(shapes_of(name)))
    else:  # Nothing here writes checkpoints of TensorFlow or Keras; the tests in `formats` read some.
        (mirror / entry.file).write_bytes(b"a checkpoint")
        module = test_keras_hub if name.startswith("keras/") else test_slim
        tensors = module.generate_tensors(shapes_of(name))
        monkeypatch.setattr("deeplab_jax.weights.convert.read_tree", lambda path: (tensors, None))
    monkeypatch.setenv(download.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv(download.MIRRORS, mirror.as_uri())
    monkeypatch.setenv(download.OFFLINE, "1")
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(entry, sha256=""))
    monkeypatch.setattr("deeplab_jax.weights.fill_variables._random", zeros)

    model, variables, info = load(name)

    assert model.output_stride == output_stride
    assert info.get("class_names") == (list(entry.labels.names) if entry.labels else None)
    size = (96, 160) if name.startswith("keras/") else (97, 131)
    images, call = golden.images(*size), f"os{output_stride}_{size[0]}x{size[1]}"
    if file.endswith("_features"):
        features = jax.jit(lambda v, x: model.apply(v, x, train=False, method="features")["conv5"][0])
        golden.assert_same_features(np.asarray(features(variables, images)), file, call)
    else:
        logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
        golden.assert_golden(np.asarray(logits), file, call)
