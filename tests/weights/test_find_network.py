"""The network among what training scripts save: found by the names of its tensors, whatever stands around them."""

import shlex
import tracemalloc

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.weights.convert import IMPORTERS, Importer, convert
from deeplab_jax.weights.find_network import DEEPEST, flatten, plain_names
from deeplab_jax.weights.folder import flatten_variables, load
from tests.weights.formats.torch_writer import archive
from tests.weights.test_convert import make_tensors, recognise

NETWORK = make_tensors()
EMA = {name: value + 1 for name, value in NETWORK.items()}
OPTIMIZER = {"state": {index: {"exp_avg": np.zeros(8), "exp_avg_sq": np.zeros(8)} for index in range(30)}}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tiny_networks):
    monkeypatch.setitem(IMPORTERS, "tiny", Importer(recognise))


def under(prefix, tensors=NETWORK):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def inside(prefix, part, tensors=NETWORK):
    """Put a wrapper around an inner module."""
    return {name.replace(part, f"{part}.{prefix}", 1): value for name, value in tensors.items()}


def bias(variables):
    return flatten_variables(variables)["params/classifier/bias"]


SOURCES = {
    "plain": NETWORK,
    "training script": {"epoch": 3, "state_dict": NETWORK, "optimizer": OPTIMIZER, "best": 0.7, "args": None},
    "any key": {"epoch": 1, "weights of mine": NETWORK},
    "deep": {"checkpoint": {"run": {"weights": {"ema": NETWORK}}}},
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "both": under("module._orig_mod."),
    "averaged": {"n_averaged": np.array(3), **under("module.")},
    "Lightning": {"state_dict": {**under("model."), "std": np.ones(3), "loss.weight": np.ones(5)}, "callbacks": {}},
    "other attribute": {"state_dict": under("net.student.")},
    "compiled inside": inside("_orig_mod", "net"),
    "parallel inside": inside("module", "net"),
    "wrapped twice": {"state": under("net.", inside("_orig_mod", "net"))},
    "nested by module": {"net": {name.removeprefix("net."): v for name, v in NETWORK.items() if name[:4] == "net."}}
    | {"score": {"weight": NETWORK["score.weight"], "bias": NETWORK["score.bias"]}},
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_wraps_a_network_is_taken_off(name):
    _, variables, info = convert(SOURCES[name])
    expected = flatten_variables(convert(NETWORK)[1])
    for key, value in flatten_variables(variables).items():
        np.testing.assert_array_equal(value, expected[key])
    assert info["source"]["unused"] == []


def test_what_was_taken_off_is_said():
    notes = convert(SOURCES["Lightning"])[2]["source"]["notes"]
    assert (
        notes[0]
        == "its tensors are those of state_dict.model; 2 others are left out (state_dict.std, state_dict.loss.weight)"
    )
    assert convert(NETWORK)[2]["source"]["notes"] == ["small"]


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"model": NETWORK, "model_ema": EMA, "epoch": 3}, ("model", "model_ema")),
        (
            {"model": NETWORK, "model_ema": {"n_averaged": np.array(3), **under("module.", EMA)}},
            ("model", "model_ema.module"),
        ),
        ({**under("encoder_q."), **under("encoder_k.", EMA), "queue": np.zeros((3, 4))}, ("encoder_q", "encoder_k")),
        ({"student": under("module."), "teacher": EMA}, ("student.module", "teacher")),
        (
            {
                **under("module.student.", inside("_orig_mod", "net")),
                **under("module.teacher.", inside("_orig_mod", "net", EMA)),
            },
            ("student", "teacher"),
        ),
    ],
)
def test_of_two_networks_a_choice_is_asked_for(tree, names):
    with pytest.raises(UserError) as caught:
        convert(tree)
    message = str(caught.value)
    assert "holds 2 networks" in message
    assert all(f"{name} (tiny's cascade_tiny, 5 classes)" in message for name in names)
    first, second = sorted(names, key=lambda name: "ema" in name or "_k" in name or "teacher" in name)
    np.testing.assert_array_equal(bias(convert(tree, select=first)[1]), NETWORK["score.bias"])
    np.testing.assert_array_equal(bias(convert(tree, select=second)[1]), EMA["score.bias"])


def test_the_printed_choice_can_be_typed(tmp_path, capsys):
    file = tmp_path / "both.pth"
    file.write_bytes(archive({"my model": NETWORK, "model_ema": EMA}))
    command = ["convert", str(file), "--out", str(tmp_path / "model")]
    assert main(command) == 2
    flag = shlex.split(capsys.readouterr().err.strip().rpartition("such as ")[2])
    assert flag == ["--select", "my model"]
    assert main([*command, *flag]) == 0
    np.testing.assert_array_equal(bias(load(tmp_path / "model")[1]), NETWORK["score.bias"])


def test_a_choice_that_is_not_there_shows_what_is():
    with pytest.raises(UserError, match="select='ema': no tensor begins so; there are model, model_ema"):
        convert({"model": NETWORK, "model_ema": EMA}, select="ema")


def test_a_backbone_in_an_unknown_network_is_not_taken_for_the_whole():
    head = {f"decode_head.{index}.weight": np.zeros(3) for index in range(9)}
    tree = {"state_dict": {**under("backbone."), **head}, "meta": {}}
    with pytest.raises(UserError) as caught:
        convert(tree)
    assert str(caught.value) == (
        "state dict: state_dict.backbone is tiny's cascade_tiny, 5 classes, but beside it are 9 tensors that belong to "
        "no network that this package converts (state_dict.decode_head.0.weight, state_dict.decode_head.1.weight, "
        "state_dict.decode_head.2.weight and 6 more); for that part alone, give --select state_dict.backbone"
    )
    np.testing.assert_array_equal(bias(convert(tree, select="state_dict.backbone")[1]), NETWORK["score.bias"])


def test_no_network_is_refused_by_the_names_that_are_there():
    with pytest.raises(UserError, match=r"its 12 tensors \(x.net.a.weights, .*belong to no network"):
        convert({f"x.{name}s": value for name, value in NETWORK.items()})


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07\nerror: all is well", "x" * 600])
@pytest.mark.parametrize("count", [1, 100])
def test_no_raw_name_is_in_a_message_or_a_note(name, count):
    """Of a tensor beside the network, which the note would name, or of many, which the message would."""
    tree = {**under("net."), **{f"{name}{index}": np.zeros(1) for index in range(count)}}
    with pytest.raises(
        UserError, match="state dict: a tensor's name is '.*, no name that a framework writes"
    ) as caught:
        convert(tree)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    with pytest.raises(UserError, match="no name that a framework writes"):
        convert(tree, select="net")


def test_mappings_that_hold_themselves_end():
    itself = {"a": np.zeros(3)}
    itself["b"] = itself
    tensors, starts = flatten(itself, source="x")
    assert list(tensors)[:2] == ["a", "b.a"]
    assert len(tensors) == DEEPEST
    assert "b.b." in starts


def test_a_mapping_that_stands_in_many_others_takes_no_more_than_its_share():
    """In a file it is written once; so 4000 keys lead to 4000 times 4000 mappings, in 125 kB."""
    inner = {str(index): {} for index in range(4000)}
    wide = {"weight": np.zeros(3), **{str(index): inner for index in range(4000)}}
    named = {"x" * 10**6: {"weight": np.zeros(3)}}
    far = {"weight": np.zeros(3), **{str(index): named for index in range(1000)}}
    tracemalloc.start()
    for tree in (wide, far):
        assert list(flatten(tree, source="x")[0]) == ["weight"]
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_names_without_wrappers_stay_apart():
    assert plain_names(["a._orig_mod.b", "c.module.d", "module"]) == {
        "a.b": "a._orig_mod.b",
        "c.d": "c.module.d",
        "module": "module",
    }
    for names in (["a._orig_mod.b", "a.b"], ["a.b", "a._orig_mod.b"]):
        assert plain_names(names) == {"a.b": "a.b", "a._orig_mod.b": "a._orig_mod.b"}
