"""Networks of others with one logit: they predict what `sigmoid(logit) > 0.5` says there, and go on as such."""

import io
import json
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from deeplab_jax.cli import main
from deeplab_jax.data.images import read_mask, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.labels import VOC
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.decision import decide, to_probabilities
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.export import METADATA_FILE, STABLEHLO_FILE, Signature, export_stablehlo
from deeplab_jax.weights.export_state_dict import export_state_dict
from deeplab_jax.weights.folder import MODEL_FILE, flatten_variables, load, save
from deeplab_jax.weights.importers import smp, torchvision
from deeplab_jax.weights.tensor_map import TORCH, their_name
from tests.support.params import first_fast
from tests.support.tiny import MadeUp, make_variables, tiny_models
from tests.weights.importers import golden

PHOTO = MadeUp(((40, 50),))[0]["image"]
NAMES = ["background", "object"]
GOLDEN = [
    ("vainf_deeplabv3plus_mobilenet_separable", "classifier.classifier.3", 8, (97, 131)),
    ("jfzhang95_mobilenet", "decoder.last_conv.8", 8, (97, 131)),
]


@pytest.fixture
def made():
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=1)
        yield model, make_variables(model)


@pytest.mark.parametrize(("name", "classifier", "stride", "size"), first_fast(GOLDEN))
def test_predictions_are_the_peers(name, classifier, stride, size) -> None:
    """The logit of one class of the peer's own network is that of a network whose classifier has only this row."""
    row = 7
    tensors = golden.generate(golden.read_shapes(name))
    for key in (f"{classifier}.weight", f"{classifier}.bias"):
        tensors[key] = tensors[key][row : row + 1]
    model, variables, info = convert(tensors, output_stride=stride)
    assert (model.num_classes, model.activation) == (1, "sigmoid") and info["class_names"] == NAMES
    logits = jax.jit(lambda v, x: model.apply(v, x))(variables, golden.images(*size))
    with np.load(golden.FOLDER / f"{name}.npz") as file:
        theirs = file[f"os{stride}_{size[0]}x{size[1]}"]
    scale, theirs = np.abs(theirs).max(), theirs[..., row]
    assert np.abs(golden.sample(np.asarray(logits))[..., 0] - theirs).max() <= golden.LOGITS * scale
    classes = golden.sample(np.asarray(decide(model, to_probabilities(model, logits), 0.5))[..., None])[..., 0]
    sure = np.abs(theirs) > golden.LOGITS * scale
    assert 0 < classes[sure].mean() < 1  # Both occur.
    np.testing.assert_array_equal(classes[sure], (1 / (1 + np.exp(-theirs)) > 0.5)[sure])


def state_dict_of(tensor_map):
    """Random tensors of a foreign network."""
    theirs = {}
    for name, variable in flatten_variables(abstract_variables(tensor_map.model())).items():
        key, leaf = their_name(name, rules=tensor_map.rules, layout=TORCH)
        theirs[key] = leaf.their_shape(variable.shape)
    return golden.generate(theirs)


@pytest.mark.parametrize("aux_classes", [None, 1, 21])
def test_an_exchanged_head_of_torchvision(aux_classes) -> None:
    """`model.classifier = DeepLabHead(960, 1)`: the auxiliary head stays that of 21 classes, and is left out."""
    name = "deeplabv3_mobilenet_v3_large"
    tensors = state_dict_of(torchvision.network(name, num_classes=1, aux_head=aux_classes is not None))
    if aux_classes == 21:
        tensors["aux_classifier.4.weight"] = np.zeros((21, 10, 1, 1), np.float32)
        tensors["aux_classifier.4.bias"] = np.zeros(21, np.float32)
    model, variables, info = convert(tensors)
    assert (model.num_classes, model.activation) == (1, "sigmoid") and info["class_names"] == NAMES
    assert ("aux_head" in variables["params"]) == (aux_classes == 1)
    left_out = aux_classes == 21
    assert any("auxiliary head, which has 21 classes" in note for note in info["source"]["notes"]) == left_out
    assert any(key.startswith("aux_classifier.") for key in info["source"]["unused"]) == left_out
    back = export_state_dict(model, variables, kind="torchvision")
    kept = [key for key in tensors if not (left_out and key.startswith("aux_classifier."))]
    assert {key for key in back if not key.endswith("num_batches_tracked")} == set(kept)
    for key in kept:
        np.testing.assert_array_equal(back[key], tensors[key])


def test_smp_with_classes_1() -> None:
    shapes = {
        "encoder.features.0.0.weight": (32, 3, 3, 3),
        "encoder.features.18.0.weight": (1280, 320, 1, 1),
        "decoder.aspp.0.convs.0.0.weight": (256, 1280, 1, 1),
        "decoder.aspp.0.convs.1.0.0.weight": (1280, 1, 3, 3),
        "segmentation_head.0.weight": (1, 256, 1, 1),
        "segmentation_head.0.bias": (1,),
    }
    tensor_map = smp.recognise(shapes, output_stride=None)
    tensors = state_dict_of(tensor_map)
    model, variables, info = convert(tensors)
    assert (info["source"]["kind"], model.num_classes, model.activation) == ("smp", 1, "sigmoid")
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["segmentation_head.0.weight"].transpose(2, 3, 1, 0))


def test_names_of_the_source_stay(made, tmp_path) -> None:
    save(tmp_path / "own", *made, {"class_names": ["wall", "crack"]})
    assert convert(tmp_path / "own")[2]["class_names"] == ["wall", "crack"]
    model, _, info = convert(tmp_path / "own", num_classes=2, reinit="head")
    assert (model.num_classes, model.activation) == (2, "softmax") and "class_names" not in info


def test_a_stated_sigmoid_of_one_logit_says_nothing_of_several_classes(made, tmp_path) -> None:
    with tiny_models():
        model = create_model("cascade_tiny", num_classes=1, activation="sigmoid")
    save(tmp_path / "own", model, made[1], {})
    assert convert(tmp_path / "own", num_classes=5, reinit="head")[0].activation == "softmax"
    assert convert(tmp_path / "own", num_classes=5, reinit="head", activation="sigmoid")[0].multilabel
    with pytest.raises(UserError, match="one logit has a sigmoid; leave out --activation"):
        convert(tmp_path / "own", activation="softmax")


def test_a_folder_that_names_the_object_alone_still_loads(made, tmp_path) -> None:
    """It was written when one logit meant one class."""
    save(tmp_path, *made, {"class_names": ["wall", "crack"], "palette": [[0, 0, 0], [1, 2, 3]]})
    content = json.loads((tmp_path / MODEL_FILE).read_text())
    content["info"] |= {"class_names": ["crack"], "palette": [[1, 2, 3]]}
    (tmp_path / MODEL_FILE).write_text(json.dumps(content))
    model, _, info = load(tmp_path)
    assert model.activation == "sigmoid"
    assert info["class_names"] == ["background", "crack"] and info["palette"] == [[0, 0, 0], [1, 2, 3]]
    content["info"]["class_names"] = list(VOC.names)
    (tmp_path / MODEL_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="give 2 names, or leave it out"):
        load(tmp_path)


def open_export(content):
    archive = zipfile.ZipFile(io.BytesIO(content))
    exported = jax.export.deserialize(bytearray(archive.read(STABLEHLO_FILE)))
    return exported, json.loads(archive.read(METADATA_FILE))


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_stablehlo_returns_classes_at_a_threshold(made, threshold) -> None:
    content = export_stablehlo(*made, Signature(size=(40, 50), preprocess=True, argmax=True, threshold=threshold))
    exported, metadata = open_export(content)
    classes = exported.call(PHOTO[None])
    assert classes.shape == (1, 40, 50) and classes.dtype == np.uint8
    expected = segment(*made, PHOTO, threshold=threshold)
    assert expected.any() and np.mean(np.asarray(classes[0]) != expected) < 1e-3
    assert metadata["output"]["meaning"] == f"class ids: 1 where the object's probability is above {threshold}, else 0"
    assert metadata["num_classes"] == 1


def test_stablehlo_says_what_the_logit_means(made) -> None:
    _, metadata = open_export(export_stablehlo(*made, Signature(size=(40, 50))))
    assert metadata["output"]["shape"] == ["b", 40, 50, 1]
    assert metadata["output"]["meaning"] == "the object's logit; its sigmoid is the object's probability"
    with pytest.raises(UserError, match=r"threshold=0.3: it is for class ids; add --argmax, or leave it out"):
        export_stablehlo(*made, Signature(size=(40, 50), threshold=0.3))


def test_the_command_line_exports_at_a_threshold(made, tmp_path, capsys) -> None:
    save(tmp_path / "own", *made, {})
    words = ["export", "--model", tmp_path / "own", "--format", "stablehlo", "--out", tmp_path / "own.zip"]
    words = [str(word) for word in [*words, "--size", "40x50", "--argmax", "--threshold", "0.3"]]
    assert main(words) == 0
    assert "cascade_tiny, one logit for two classes, output stride 16" in capsys.readouterr().out
    _, metadata = open_export((tmp_path / "own.zip").read_bytes())
    assert "above 0.3" in metadata["output"]["meaning"]


def test_predict_writes_both_classes(made, tmp_path) -> None:
    save(tmp_path / "own", *made, {})
    write_image(tmp_path / "photo.png", PHOTO)
    words = [
        "predict",
        "--model",
        tmp_path / "own",
        "--mode",
        "exact",
        "--out",
        tmp_path / "out",
        tmp_path / "photo.png",
    ]
    for more in ([], ["--threshold", "0.3"]):
        assert main([str(word) for word in [*words, *more]]) == 0
        ids = read_mask(tmp_path / "out" / "photo.png")
        np.testing.assert_array_equal(ids, segment(*made, PHOTO, threshold=float(more[1]) if more else 0.5))
        assert set(np.unique(ids)) == {0, 1}


def test_several_logits_with_a_sigmoid_each(tmp_path, capsys) -> None:
    """A file does not say how it was trained, so the user does."""
    shapes = golden.read_shapes("vainf_deeplabv3plus_mobilenet_separable")
    file = tmp_path / "theirs.safetensors"
    save_file(golden.generate(shapes), str(file))
    assert main(["convert", str(file), "--activation", "sigmoid", "--out", str(tmp_path / "ours")]) == 0
    model, _, _ = load(tmp_path / "ours")
    assert model.multilabel and model.num_classes == 21
    one = {**shapes, "classifier.classifier.3.weight": (1, 256, 1, 1), "classifier.classifier.3.bias": (1,)}
    with pytest.raises(UserError, match="one logit has a sigmoid; leave out --activation"):
        convert(golden.generate(one), activation="softmax")
