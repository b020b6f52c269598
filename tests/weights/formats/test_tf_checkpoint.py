"""Checkpoints that TensorFlow 2.20 wrote: `saver`, `sharded` (over two devices) and `partitioned` by
`tf.compat.v1.train.Saver`, `object` by `tf.train.Checkpoint`; `expected.npz` is what TensorFlow reads from them.
"""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.formats import leveldb, tf_checkpoint
from deeplab_jax.weights.formats.tf_checkpoint import find_checkpoint, read_checkpoint
from tests.support.tensors import read_tensors
from tests.weights.formats.mutations import mutated

FOLDER = Path(__file__).parent / "data" / "tf_checkpoint"
DATA = ".data-00000-of-00001"


class Anything:
    """A checksum that equals every other."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def copy(source: str, folder: Path, name: str = "model.ckpt") -> Path:
    for file in FOLDER.glob(f"{source}.*"):
        shutil.copy(file, folder / f"{name}{file.name.removeprefix(source)}")
    return folder / name


@pytest.mark.parametrize("name", ["saver", "sharded", "object"])
def test_reads_what_tensorflow_reads(name: str) -> None:
    with np.load(FOLDER / "expected.npz") as file:
        expected = {key.split(":")[1]: file[key] for key in file if key.startswith(f"{name}:")}

    found = read_checkpoint(FOLDER / name)

    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape
        if key != "brain":  # bfloat16, which npz files do not know
            assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key].astype(value.dtype), value)


def test_types_and_shapes() -> None:
    found = read_checkpoint(FOLDER / "saver")

    types = {key: value.dtype.name for key, value in found.items()}
    assert (types["brain"], types["half"], types["flag"], types["global_step"]) == (
        "bfloat16", "float16", "bool", "int64"
    )  # fmt: skip
    assert (found["global_step"].shape, found["empty"].shape) == ((), (0, 3))
    assert "names" not in found  # strings


def test_partitioned_variables_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="p/w is partitioned"):
        read_checkpoint(FOLDER / "partitioned")


def test_found_by_prefix_index_and_folder(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    prefix = copy("saver", tmp_path)

    for path in (prefix, tmp_path / "model.ckpt.index", tmp_path):
        assert find_checkpoint(path) == prefix
    assert find_checkpoint(tmp_path / f"model.ckpt{DATA}") is None
    assert "net/conv/weights" in read_tensors(tmp_path)


def test_of_several_in_a_folder_the_named_one(tmp_path: Path) -> None:
    copy("saver", tmp_path, "model.ckpt-1")
    copy("saver", tmp_path, "model.ckpt-2")
    with pytest.raises(UserError, match=r"2 checkpoints \(model.ckpt-1, model.ckpt-2\)"):
        find_checkpoint(tmp_path)

    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-2"\n')

    assert find_checkpoint(tmp_path) == tmp_path / "model.ckpt-2"


def test_the_format_of_one_file_is_refused(tmp_path: Path) -> None:
    file = shutil.copy(FOLDER / "saver.index", tmp_path / "model.ckpt")

    with pytest.raises(UserError, match="from before 2016"):
        find_checkpoint(Path(file))


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    prefix = copy("saver", tmp_path)
    prefix.with_name(prefix.name + DATA).unlink()

    with pytest.raises(UserError, match=f"model.ckpt{DATA}: cannot be read"):
        read_checkpoint(prefix)


def test_a_flipped_bit_in_the_values_is_found(tmp_path: Path) -> None:
    prefix = copy("saver", tmp_path)
    file = tmp_path / f"model.ckpt{DATA}"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(UserError, match=f"model.ckpt{DATA}: the checksum of"):
        read_checkpoint(prefix)


def test_compressed_blocks_are_refused(tmp_path: Path) -> None:
    block = bytes(4) + b"\1"
    checksum = struct.pack("<I", leveldb.masked_crc32c(block))
    handles = bytes([0, 0, 0, 4])  # The index block is the one at 0.
    prefix = tmp_path / "model.ckpt"
    prefix.with_suffix(".ckpt.index").write_bytes(block + checksum + handles.ljust(40, b"\0") + leveldb.MAGIC)

    with pytest.raises(UserError, match="compressed with snappy"):
        read_checkpoint(prefix)


@pytest.mark.parametrize(
    ("name", "checked", "count"), [("saver", True, 500), ("saver", False, 2500), ("sharded", False, 1000)]
)
def test_damaged_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, checked: bool, count: int) -> None:
    """Checksums find nearly all damage; whoever means harm makes them fit, as if there were none."""
    prefix = copy(name, tmp_path)
    index = prefix.with_name(prefix.name + ".index")
    size = sum(file.stat().st_size for file in tmp_path.glob("*.data-*"))
    good = index.read_bytes()
    if not checked:
        monkeypatch.setattr(leveldb, "masked_crc32c", lambda data: Anything())
        monkeypatch.setattr(tf_checkpoint, "masked_crc32c", lambda data: Anything())
    refused = 0
    for content in mutated(good, count=count, seed=1, tokens=[leveldb.MAGIC, b"\x08\x01\x12", b"\x3a\x00"]):
        index.write_bytes(content)
        try:
            found = read_checkpoint(prefix)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert sum(value.nbytes for value in found.values()) <= size

    assert refused > count / 4


def test_damaged_values(tmp_path: Path) -> None:
    prefix = copy("saver", tmp_path)
    data = tmp_path / f"model.ckpt{DATA}"
    good, expected = data.read_bytes(), read_checkpoint(prefix)
    for content in mutated(good, count=300, seed=2):
        data.write_bytes(content)
        try:
            found = read_checkpoint(prefix)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            # The damage is where the strings are, or beyond the end.
            assert all(np.array_equal(found[key], value) for key, value in expected.items())


def test_many_names_out_of_few_bytes_are_refused() -> None:
    """Each of these keys repeats the one before and adds a byte."""
    start = b"\0\x80\x40\0" + b"x" * 2**13  # Of 8192 bytes, nothing shared, no value.
    block = start + b"\x80\x40\x01\0z" * 20000
    with pytest.raises(ValueError, match="not in order, or too long"):
        list(leveldb.read_table(table_of(block)))


def table_of(entries: bytes) -> bytes:
    def block(content: bytes) -> bytes:
        body = content + bytes(4) + b"\0"
        return body + struct.pack("<I", leveldb.masked_crc32c(body))

    def number(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14])

    first = block(entries)
    handle = number(0) + number(len(entries) + 4)
    index = bytes([0, 1, len(handle)]) + b"k" + handle
    footer = bytes([0, 0]) + number(len(first)) + number(len(index) + 4)
    return first + block(index) + footer.ljust(40, b"\0") + leveldb.MAGIC


def test_the_checksum_is_masked() -> None:
    """The CRC-32C of the standard's example, 0xE3069283, rotated right by 15 bits, plus 0xA282EAD8."""
    assert leveldb.masked_crc32c(b"123456789") == 0xC78AB0E5
