"""The accounting of tensors, on state dicts that a tiny importer knows, and runs and folders of our own as sources."""

import jax
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights import convert as module
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.folder import WEIGHTS_FILE, flatten_variables, load, save
from deeplab_jax.weights.tensor_map import TORCH, TensorMap
from tests.support.tiny import run_training, tiny_config, tiny_model
from tests.weights.importers import golden

SHAPES = {
    "net.a.weight": (8, 3, 3, 3),
    "net.a_bn.weight": (8,),
    "net.a_bn.bias": (8,),
    "net.a_bn.running_mean": (8,),
    "net.a_bn.running_var": (8,),
    "net.b.weight": (16, 8, 3, 3),
    "net.b_bn.weight": (16,),
    "net.b_bn.bias": (16,),
    "net.b_bn.running_mean": (16,),
    "net.b_bn.running_var": (16,),
    "score.weight": (5, 16, 1, 1),
    "score.bias": (5,),
}
RULES = (
    (r"backbone/stem", ("net.a", "net.a_bn")),
    (r"backbone/deep", ("net.b", "net.b_bn")),
    (r"classifier", ("score", "")),
)


def recognise(shapes, *, output_stride):
    if "net.a.weight" not in shapes:
        return None
    return TensorMap(
        "cascade_tiny",
        5,
        output_stride or 16,
        RULES,
        TORCH,
        unused=(r"num_batches_tracked$",),
        notes=("small",),
        info={"class_names": list("abcde")},
    )


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tiny_networks):
    monkeypatch.setitem(module.IMPORTERS, "tiny", module.Importer(recognise))


def make_tensors(**changes):
    rng = np.random.default_rng(0)
    tensors = {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: value for name, value in {**tensors, **changes}.items() if value is not None}


def test_every_tensor_is_used_once_and_transposed() -> None:
    tensors = make_tensors(**{"net.a_bn.num_batches_tracked": np.asarray(7)})
    model, variables, info = convert(tensors)
    assert (model.num_classes, model.output_stride) == (5, 16)
    ours = flatten_variables(variables)
    np.testing.assert_array_equal(
        ours["params/backbone/deep/conv/kernel"], tensors["net.b.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(ours["batch_stats/backbone/stem/norm/batch/var"], tensors["net.a_bn.running_var"])
    np.testing.assert_array_equal(ours["params/classifier/bias"], tensors["score.bias"])
    assert info["class_names"] == list("abcde")
    assert info["source"] == {
        "kind": "tiny",
        "file": "state dict",
        "notes": ["small"],
        "tensors": len(SHAPES),
        "unused": ["net.a_bn.num_batches_tracked"],
        "random": [],
        "mismatched": [],
    }


def test_half_precision_becomes_float32_without_loss() -> None:
    tensors = {name: value.astype(np.float16) for name, value in make_tensors().items()}
    ours = flatten_variables(convert(tensors)[1])
    assert {value.dtype for value in ours.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(ours["params/classifier/bias"], tensors["score.bias"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net.b.weight": None}, "missing net.b.weight"),
        ({"net.c.weight": np.zeros(3)}, "unexpected net.c.weight"),
        ({"net.b.weight": np.zeros((16, 8, 1, 1))}, r"net.b.weight has shape \(16, 8, 1, 1\), params/backbone/deep/"),
        ({"score.bias": np.zeros((5, 1))}, r"score.bias has shape \(5, 1\)"),
        ({"net.b_bn.bias": np.full(16, np.nan)}, "values that are not finite"),
        ({"net.b_bn.running_var": np.full(16, -0.1)}, "a variance below 0"),
        ({"net.b_bn.bias": np.ones(16, np.int8)}, "net.b_bn.bias holds int8, and weights are floating-point numbers"),
        ({"net.b_bn.bias": np.ones(16, np.complex64)}, "net.b_bn.bias holds complex64"),
    ],
)
def test_what_does_not_fit_is_named(changes, message) -> None:
    with pytest.raises(UserError, match=f"state dict: .*{message}"):
        convert(make_tensors(**changes))


def test_not_strict_starts_the_rest_at_random_and_lists_it() -> None:
    tensors = make_tensors(**{"net.b.weight": None, "net.c.weight": np.zeros(3)})
    _, variables, info = convert(tensors, strict=False)
    kernel = np.asarray(variables["params"]["backbone"]["deep"]["conv"]["kernel"])
    assert kernel.shape == (3, 3, 8, 16)
    assert 0.05 < kernel.std() < 0.5  # He-normal: sqrt(2 / 72) = 0.17.
    assert info["source"]["random"] == ["params/backbone/deep/conv/kernel"]
    assert info["source"]["mismatched"] == ["missing net.b.weight", "unexpected net.c.weight"]
    assert info["source"]["unused"] == ["net.c.weight"]


def test_other_classes_only_on_request() -> None:
    with pytest.raises(UserError, match=r"has 5 classes, num_classes=3 was asked for; add reinit='head'"):
        convert(make_tensors(), num_classes=3)
    model, variables, info = convert(make_tensors(), num_classes=3, reinit="head")
    assert model.num_classes == 3
    assert variables["params"]["classifier"]["kernel"].shape == (1, 1, 16, 3)
    assert info["source"]["random"] == ["params/classifier/bias", "params/classifier/kernel"]
    assert info["source"]["unused"] == ["score.weight", "score.bias"]
    assert "class_names" not in info
    same, again, _ = convert(make_tensors(), num_classes=3, reinit="head")
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "torchvison"}, "kind='torchvison': did you mean torchvision"),
        ({"kind": "smp"}, r"its 12 tensors \(net.a.weight, .*\) belong to no network that kind='smp' knows"),
        ({"reinit": "all"}, "reinit='all': give 'head', or leave it out"),
        ({"output_stride": 3}, "output_stride=3"),
    ],
)
def test_wrong_options_are_user_errors(options, message) -> None:
    with pytest.raises(UserError, match=message):
        convert(make_tensors(), **options)


def test_nothing_known_is_a_user_error() -> None:
    with pytest.raises(UserError, match="state dict: its 1 tensors .* that this package converts; it knows .*smp"):
        convert({"weight": np.zeros(3)})


def test_a_run_becomes_a_model_folder(tmp_path) -> None:
    run_training(tmp_path / "run", tiny_config(**{"train.steps": 2}))
    model, variables, info = convert(tmp_path / "run", output_stride=8)
    expected_model, expected, _ = load(tmp_path / "run")
    assert model == expected_model.clone(output_stride=8, recipe=model.recipe)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert (info["source"]["kind"], info["step"]) == ("run", 2)
    saved = save(tmp_path / "folder", model, variables, info)
    jax.tree.map(np.testing.assert_array_equal, load(saved)[1], expected)


def test_a_model_folder_takes_other_classes(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny", num_classes=5)
    save(tmp_path, model, variables, {"class_names": list("abcde")})
    other, changed, info = convert(tmp_path, num_classes=2, reinit="head")
    assert other.num_classes == 2
    assert "class_names" not in info
    jax.tree.map(np.testing.assert_array_equal, changed["params"]["backbone"], variables["params"]["backbone"])


def test_the_weights_of_a_model_folder_stand_for_it(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny")
    save(tmp_path / "ours", model, variables, {"step": 3})
    for kind in ("auto", "run"):
        found, same, info = convert(tmp_path / "ours" / WEIGHTS_FILE, kind=kind)
        assert found == model and (info["step"], info["source"]["file"]) == (3, "ours")
        jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_the_metrics_of_other_logits_are_left_out(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny")
    save(tmp_path, model, variables, {"metrics": {"miou": 0.8}, "step": 100})
    for options in ({"reinit": "head"}, {"in_channels": 4}, {"output_stride": 8}):
        info = convert(tmp_path, **options)[2]
        assert "metrics" not in info and info["step"] == 100, options
    for options in ({}, {"output_stride": 16}, {"in_channels": 3}):
        assert convert(tmp_path, **options)[2]["metrics"] == {"miou": 0.8}, options


def test_kind_decides_even_where_a_folder_is_ours(tmp_path) -> None:
    save(tmp_path, *tiny_model("cascade_tiny"), {})
    assert convert(tmp_path, kind="run")[2]["source"]["kind"] == "run"
    with pytest.raises(UserError):
        convert(tmp_path, kind="torchvision")


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("jfzhang95_mobilenet", "decoder.last_conv.8.weight"),
        ("mmseg_pspnet_resnet18_v1c", "decode_head.conv_seg.weight"),
        ("slim_mobilenet_v2_035", "MobilenetV2/Conv/weights"),
        ("slim_mobilenet_v2_decoder", "decoder/feature_projection0/weights"),
    ],
)
def test_a_kernel_without_axes_is_one_line(network: str, name: str) -> None:
    shapes = golden.read_shapes(network)
    assert name in shapes
    tensors = {key: np.zeros(() if key == name else shape, np.float32) for key, shape in shapes.items()}

    with pytest.raises(UserError, match="tensors are missing or have other shapes than there; fetch it again"):
        convert(tensors)
