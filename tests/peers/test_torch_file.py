"""What the PyTorch that is installed writes, read without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.formats.torch_file import read_torch
from tests.peers.parity import import_peer
from tests.support.tensors import read_tensors

torch = import_peer("torch")

LAYOUTS = pytest.mark.parametrize("layout", ("archive", "legacy"))
DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DTYPES += ("float16", "bfloat16", "float32", "float64")


def saved(folder: Path, value: Any, layout: str, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(value, path, _use_new_zipfile_serialization=layout == "archive", **options)
    return path


def numbers(dtype: Any = torch.float32) -> Any:
    """Return numbers `[2, 3, 4, 5]` that every type can hold."""
    return (torch.arange(120).reshape(2, 3, 4, 5) % 100).to(dtype)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(tmp_path: Path, dtype: str, layout: str) -> None:
    value = numbers(getattr(torch, dtype))
    read = read_tensors(saved(tmp_path, {"a": value}, layout))["a"]
    assert read.dtype.name == dtype
    np.testing.assert_array_equal(read.astype(np.float64), value.double().numpy())


@LAYOUTS
@pytest.mark.parametrize("protocol", (2, 3, 4, 5))
def test_layouts_of_memory(tmp_path: Path, layout: str, protocol: int) -> None:
    base = numbers()
    tagged = torch.nn.Parameter(base.clone())
    tagged.tag = "with an attribute"
    tensors = {
        "base": base,
        "shared": base,
        "transposed": base.permute(3, 1, 0, 2),
        "sliced": base[1:, ::2, 1:3, ::3],
        "expanded": base[:, :1].expand(2, 7, 4, 5),
        "channels last": base.clone().to(memory_format=torch.channels_last),
        "last item": base.flatten()[-1],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "no storage": torch.empty(0),
        "parameter": torch.nn.Parameter(base.clone()),
        "tagged": tagged,
        "buffer": torch.nn.Buffer(base.clone()),
        "imaginary": torch.view_as_complex(torch.stack((base, -base), -1)).imag,
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    read = read_tensors(saved(tmp_path, tensors, layout, pickle_protocol=protocol))
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value.detach().numpy(), err_msg=name)
        assert read[name].flags.c_contiguous and read[name].flags.writeable, name


@LAYOUTS
def test_checkpoints_with_all_that_training_keeps(tmp_path: Path, layout: str) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    state = {
        "cur_itrs": 7,
        "model_state": torch.nn.DataParallel(network).state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": scheduler.state_dict(),
        "scheduler": scheduler,
        "best_score": np.float64(0.5),
        "history": np.arange(5.0),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size((1, 2)),
        "seen": {1, 2},
    }
    path = saved(tmp_path, state, layout)
    read = read_tensors(path, within="model_state.module.")
    expected = network.state_dict()
    assert list(read) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value.numpy())
    moments = np.asarray(read_torch(path)["optimizer_state"]["state"][0]["exp_avg"])
    np.testing.assert_array_equal(moments, optimizer.state_dict()["state"][0]["exp_avg"].numpy())


@LAYOUTS
def test_whole_modules_are_refused_with_the_fix(tmp_path: Path, layout: str) -> None:
    network = torch.nn.DataParallel(torch.nn.Conv2d(3, 4, 3))
    for value in (network, {"epoch": 1, "model": network}):
        with pytest.raises(
            UserError, match="holds a pickled torch.nn.parallel.data_parallel.DataParallel, not a state"
        ):
            read_tensors(saved(tmp_path, value, layout))


@LAYOUTS
@pytest.mark.parametrize("what", ("complex64", "float8_e4m3fn", "sparse", "negation"))
def test_tensors_that_are_not_read_are_named(tmp_path: Path, what: str, layout: str) -> None:
    value = {
        "complex64": lambda: torch.ones(3, dtype=torch.complex64),
        "float8_e4m3fn": lambda: torch.ones(3).to(torch.float8_e4m3fn),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "negation": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
    }[what]()
    path = saved(tmp_path, {"a": numbers(), "odd.weight": value}, layout)
    with pytest.raises(UserError, match=f"odd.weight .*{what}"):
        read_tensors(path)
    path = saved(tmp_path, {"state_dict": {"a": numbers()}, "odd.weight": value}, layout)
    np.testing.assert_array_equal(read_tensors(path, within="state_dict.")["a"], numbers().numpy())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.ones(1, 3, 5, 5)).save(tmp_path / "script.pt")
    with pytest.raises(UserError, match="not a state dict"):
        read_tensors(tmp_path / "script.pt")
