"""Reading: formats by their content, the state dict among what was saved, and one line for everything else."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from deeplab_jax.errors import UserError
from tests.support.memory import grows_by_less_than
from tests.support.tensors import read_tensors
from tests.weights.formats.mutations import mutated
from tests.weights.formats.reading import is_read_or_refused, refusal
from tests.weights.formats.torch_writer import archive, legacy

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
FILES = 1000


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """Return a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("name", ("weights", "weights.pth", "weights.ckpt", "weights.tflite"))
def test_formats_are_told_by_their_content(tmp_path: Path, name: str) -> None:
    for content in (save({"a": WEIGHT}), archive({"a": WEIGHT}), legacy({"a": WEIGHT})):
        (tmp_path / name).write_bytes(content)
        read = read_tensors(str(tmp_path / name))
        assert list(read) == ["a"]
        np.testing.assert_array_equal(read["a"], WEIGHT)


def test_folders_of_hugging_face(tmp_path: Path) -> None:
    """Safetensors come first where both are there."""
    (tmp_path / "pytorch_model.bin").write_bytes(archive({"a": WEIGHT}))
    np.testing.assert_array_equal(read_tensors(tmp_path)["a"], WEIGHT)
    (tmp_path / "model.safetensors").write_bytes(save({"a": WEIGHT + 1}))
    np.testing.assert_array_equal(read_tensors(tmp_path)["a"], WEIGHT + 1)


@pytest.mark.parametrize(
    "tree",
    (
        {"a": WEIGHT},
        {"epoch": 1, "a": WEIGHT, "optimizer": {"state": {}}, "best": 0.5, "names": ["x"]},
        {"a": WEIGHT, "model": None},
    ),
    ids=lambda tree: ", ".join(tree),
)
def test_tensors_are_found_among_other_values(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(archive(tree))
    for source in (tree, path):
        read = read_tensors(source)
        assert list(read) == ["a"]
        np.testing.assert_array_equal(read["a"], WEIGHT)


def test_tensors_of_nested_mappings_have_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(archive({"net": {"state_dict": {"b.c": WEIGHT}}, "ema": {1: WEIGHT}}))
    assert sorted(read_tensors(path)) == ["ema.1", "net.state_dict.b.c"]


def parts(folder: Path, **files: str) -> Path:
    """Write the index of a model in several files."""
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_a_model_in_several_files(tmp_path: Path) -> None:
    index = parts(tmp_path, a="1.safetensors", b="2.safetensors")
    (tmp_path / "1.safetensors").write_bytes(save({"a": WEIGHT}))
    assert "names 2.safetensors, which is not beside it" in refusal(index)
    (tmp_path / "2.safetensors").write_bytes(save({"b": WEIGHT + 1}))
    for source in (tmp_path, index):
        read = read_tensors(source)
        np.testing.assert_array_equal(read["a"] + 1, read["b"])


@pytest.mark.parametrize("file", ("../1.safetensors", "/etc/passwd", "", "a\x1b[2J"))
def test_an_index_names_only_files_beside_it(tmp_path: Path, file: str) -> None:
    assert "which is not beside it" in refusal(parts(tmp_path, a=file))


def test_an_index_names_no_index(tmp_path: Path) -> None:
    """It might be itself, or one that names it."""
    index = parts(tmp_path, a="model.safetensors.index.json")
    for source in (tmp_path, index):
        assert "names 'model.safetensors.index.json', which is an index and holds no tensors" in refusal(source)
    parts(tmp_path, a="other.index.json")
    (tmp_path / "other.index.json").write_text(json.dumps({"weight_map": {"a": index.name}}))
    assert "names 'other.index.json', which is an index" in refusal(index)


@pytest.mark.parametrize("text", ("{", "[]", '{"weight_map": 1}', "{}"))
def test_a_damaged_index_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "not a readable index" in refusal(tmp_path)


def test_mappings_without_tensors_are_refused() -> None:
    assert '"epoch"' in refusal({"epoch": 1}, name="state dict")
    itself: dict[str, Any] = {}
    itself["model"] = itself
    assert "no tensors" in refusal(itself, name="state dict")


@pytest.mark.parametrize("name", ("a\nb", "a\x1b[31m", "\ud800", "x" * 1000), ids=ascii)
def test_names_that_would_break_a_message_are_refused(tmp_path: Path, name: str) -> None:
    assert "name" in refusal({name: WEIGHT}, name="state dict")
    path = tmp_path / "weights.pth"
    path.write_bytes(archive({name: WEIGHT}))
    assert "name" in refusal(path)


def test_values_that_do_not_become_arrays_are_named() -> None:
    class OnAnotherDevice:
        shape = (1,)

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            raise TypeError("cannot convert\nfrom the device")

    line = refusal({"a.weight": OnAnotherDevice()}, name="state dict")
    assert "a.weight" in line and "cannot convert from the device" in line


@pytest.mark.parametrize("dtype", (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64, np.uint8, bool))
def test_dtypes_of_safetensors(tmp_path: Path, dtype: Any) -> None:
    names = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "int64": "I64"}
    names |= {"uint8": "U8", "bool": "BOOL"}
    value = np.array([[0, 1, 1]]).astype(dtype)
    header = {"a": {"dtype": names[value.dtype.name], "shape": [1, 3], "data_offsets": [0, value.nbytes]}}
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(header, value.tobytes()))
    read = read_tensors(path)["a"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read.astype(np.float32), [[0, 1, 1]])


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    (
        safetensors(entry(shape=[2**40], offsets=[0, 2**42]), bytes(4)),
        safetensors(entry(shape=[2**62, 4], offsets=[0, 4]), bytes(4)),
        safetensors(entry(shape=[2**62, 0, 2**62], offsets=[0, 0])),
        safetensors(entry(shape=[0] * 100, offsets=[0, 0])),
        safetensors(entry(shape=[-1]), bytes(4)),
        safetensors(entry(shape=[2]), bytes(4)),
        safetensors(entry(offsets=[4, 0]), bytes(4)),
        safetensors(entry(offsets=[0, 8]), bytes(4)),
        safetensors(entry("F8_E4M3", offsets=[0, 1]), bytes(1)),
        safetensors(entry("LAUGHS"), bytes(4)),
        safetensors(entry(), bytes(3)),
        safetensors(entry(), bytes(5)),
        safetensors({"a\nb": entry()["a"]}, bytes(4)),
        safetensors(b"{" + b'"a":{' * 10_000),
        safetensors({"__metadata__": {"a": 1}}),
        safetensors({}),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        struct.pack("<Q", 2) + b"{",
    ),
    ids=lambda content: ascii(content[8:60].decode()),
)
def test_impossible_safetensors(tmp_path: Path, content: bytes) -> None:
    """Sizes are held against the file's before memory is taken."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with grows_by_less_than(2**24):
        refusal(path)


def test_damaged_safetensors(tmp_path: Path) -> None:
    tensors = {"a": WEIGHT, "b.weight": WEIGHT.astype(np.float16), "c": np.zeros(()), "module.d": np.zeros((2, 0))}
    path = tmp_path / "weights"
    tokens = (b'"a"', b"{", b"}", b"[", b"]", b":", b",", b"0", b"9" * 19, b"-1", b"1e9", b'"BF16"', b'"F64"', b"null")
    read = 0
    with grows_by_less_than(2**26):
        for content in mutated(save(tensors), count=FILES, seed=3, tokens=tokens):
            path.write_bytes(content)
            read += is_read_or_refused(path)
    assert 0 < read < FILES


@pytest.mark.parametrize(
    "content",
    (
        b"",
        b"\x80",
        b"P",
        b"PK",
        b"PK\3\4",
        b"PK\5\6" + bytes(18),
        b"\x80\x02.",
        b"\x1f\x8b\x08\x00",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<!DOCTYPE html>",
        bytes(257) + b"ustar" + bytes(250),
        bytes(1000),
        b"\xff" * 1000,
        bytes(range(256)),
    ),
    ids=lambda content: ascii(content[:16]),
)
def test_files_of_no_known_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    refusal(tmp_path / "weights.pth")


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "check the path" in refusal(tmp_path / "absent.pth")
    assert "no weights in this folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / ("x" * 300), tmp_path / "absent.pth" / "inner"):
        assert "check the path" in refusal(path)
    with pytest.raises(UserError, match="check the path"):
        read_tensors("nul\0byte")


def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    for content in (archive({"a": WEIGHT}), legacy({"a": WEIGHT}), save({"a": WEIGHT})):
        path = tmp_path / "weights"
        path.write_bytes(content)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read every file")
        assert "Permission denied" in refusal(path)
        path.chmod(0o600)
