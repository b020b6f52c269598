"""PyTorch's files: their tensors are read as they are, and nothing else in the file stands in the way."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deeplab_jax.weights.formats.inert_pickle import Placeholder
from deeplab_jax.weights.formats.torch_file import read_torch
from tests.support.tensors import read_tensors
from tests.weights.formats.reading import refusal, saved
from tests.weights.formats.torch_writer import STORAGES, Opcodes, archive, legacy, tensor

DATA = Path(__file__).parent / "data"
WRITERS = {"archive": archive, "legacy": legacy}
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
both = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_checkpoint_of_a_training_script_by_pytorch_2_13(layout: str) -> None:
    """Data parallel; with the optimizer, the scheduler, a numpy score and the program's arguments."""
    path = DATA / f"torch_2_13_{layout}.bin"
    tensors = read_tensors(path, within="model_state.module.")
    shapes = {
        "conv.weight": (2, 3, 3, 3),
        "conv.bias": (2,),
        "norm.weight": (2,),
        "norm.bias": (2,),
        "norm.running_mean": (2,),
        "norm.running_var": (2,),
        "norm.num_batches_tracked": (),
    }
    assert {name: value.shape for name, value in tensors.items()} == shapes
    for index, (name, value) in enumerate(tensors.items()):
        counter = name == "norm.num_batches_tracked"
        expected = np.arange(value.size).reshape(value.shape) / 8 + index
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == (np.int64 if counter else np.float32)
        assert value.flags.writeable
    tree = read_torch(path)
    assert tree["cur_itrs"] == 7
    assert tree["optimizer_state"]["param_groups"][0]["lr"] == 0.1
    assert {name: tree[name].name for name in ("best_score", "args")} == {
        "best_score": "numpy._core.multiarray.scalar",
        "args": "argparse.Namespace",
    }


@pytest.mark.parametrize("dtype", STORAGES)
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    value = np.array([[0, 1, 1], [1, 0, 0]]).astype(kind)
    read = read_tensors(saved(tmp_path, archive({"a": value, "scalar": np.array(value[0, 1]), "none": value[:0]})))
    assert {name: array.shape for name, array in read.items()} == {"a": (2, 3), "scalar": (), "none": (0, 3)}
    assert all(array.dtype == kind for array in read.values())
    np.testing.assert_array_equal(read["a"].astype(np.float32), value.astype(np.float32))
    assert read["scalar"] == 1


@both
def test_views_share_a_storage(tmp_path: Path, write: Callable[..., bytes]) -> None:
    tree = {
        "all": WEIGHT,
        "transposed": tensor("0", "FloatStorage", 6, 0, (3, 2), (1, 3)),
        "column": tensor("0", "FloatStorage", 6, 1, (2,), (3,)),
        "repeated": tensor("0", "FloatStorage", 6, 5, (4, 1), (0, 99)),
    }
    read = read_tensors(saved(tmp_path, write(tree)))
    np.testing.assert_array_equal(read["all"], WEIGHT)
    np.testing.assert_array_equal(read["transposed"], WEIGHT.T)
    np.testing.assert_array_equal(read["column"], [1, 4])
    np.testing.assert_array_equal(read["repeated"], np.full((4, 1), 5))
    assert all(array.flags.c_contiguous for array in read.values())


def test_views_of_storages_in_old_files(tmp_path: Path) -> None:
    """They name the part of the storage that they begin with."""
    view = tensor("0", "FloatStorage", 6, 1, (2,), (1,), view=("0.2", 2, 4))
    read = read_tensors(saved(tmp_path, legacy({"all": WEIGHT, "view": view})))
    np.testing.assert_array_equal(read["view"], [3, 4])


def test_big_endian(tmp_path: Path) -> None:
    big = WEIGHT.astype(">f4")
    content = archive({"a": WEIGHT, "t": tensor("0", "FloatStorage", 6, 0, (3, 2), (1, 3))})
    swapped = archive(
        {"a": WEIGHT, "t": tensor("0", "FloatStorage", 6, 0, (3, 2), (1, 3))},
        extra={"byteorder": b"big", "data/0": big.tobytes()},
    )
    assert swapped != content
    read = read_tensors(saved(tmp_path, swapped))
    np.testing.assert_array_equal(read["a"], WEIGHT)
    np.testing.assert_array_equal(read["t"], WEIGHT.T)
    assert read["t"].flags.c_contiguous
    assert "byte order" in refusal(saved(tmp_path, archive({"a": WEIGHT}, extra={"byteorder": b"middle"})))


@pytest.mark.parametrize("name", ("ComplexFloatStorage", "QInt8Storage"))
def test_other_types_are_refused_by_name_where_they_are_needed(tmp_path: Path, name: str) -> None:
    strange = tensor("0", name, 1, 0, (1,), (1,))
    line = refusal(saved(tmp_path, archive({"a": WEIGHT, "odd.weight": strange})))
    assert "odd.weight" in line and ("complex64" in line or "qint8" in line)
    read = read_tensors(
        saved(tmp_path, archive({"state_dict": {"a": WEIGHT}, "optimizer": {"odd": strange}})), within="state_dict."
    )
    assert list(read) == ["a"]


def test_tensors_that_are_not_what_their_bytes_say_are_refused(tmp_path: Path) -> None:
    negated = tensor("0", "FloatStorage", 6, 0, (6,), (1,), metadata={"neg": True})
    assert "negation" in refusal(saved(tmp_path, archive({"a": WEIGHT, "b": negated})))


@both
def test_one_odd_entry_does_not_hide_the_tensors(tmp_path: Path, write: Callable[..., bytes]) -> None:
    """Objects with arguments, state and items, and keys that are not kept."""
    odd = {
        "state": Opcodes(b"cprogram\nConfig\n)\x81}X\x01\x00\x00\x00aK\x01sb"),
        "items": Opcodes(b"cprogram\nList\n)R(K\x01K\x02e"),
        "mapping": Opcodes(b"cprogram\nDict\n)RK\x01K\x02s"),
        "set": Opcodes(b"\x8f(K\x01K\x02\x90"),
        "keys": Opcodes(b"}(K\x01K\x02K\x03\x87K\x04K\x05K\x06\x8a\x09" + b"\x7f" * 9 + b"K\x07u"),
    }
    tree = {**odd, "state_dict": {"a": WEIGHT}}
    path = saved(tmp_path, write(tree))
    np.testing.assert_array_equal(read_tensors(path)["state_dict.a"], WEIGHT)
    read = read_torch(path)
    assert all(isinstance(read[name], Placeholder) for name in ("state", "items", "mapping", "set"))
    assert read["keys"] == {5: 6}  # Neither a tuple nor an enormous number.


@both
def test_a_pickled_module_says_what_to_do(tmp_path: Path, write: Callable[..., bytes]) -> None:
    module = Opcodes(b"ctorch.nn.modules.container\nSequential\n)\x81}b")
    fix = (
        "holds a pickled torch.nn.modules.container.Sequential, not a state dict; in the program that wrote it, "
        "torch.save(model.state_dict(), ...)"
    )
    for tree in (module, {"epoch": 1, "model": module}):
        path = saved(tmp_path, write(tree))
        assert refusal(path) == f"{path}: {fix}"
    assert "a pickled list" in refusal(saved(tmp_path, write([1, 2])))
