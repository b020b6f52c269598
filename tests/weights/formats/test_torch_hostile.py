"""PyTorch's files that are damaged or hostile: nothing in them runs, and memory and time stay bounded."""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_jax.weights.formats import inert_pickle
from deeplab_jax.weights.formats.torch_file import MAX_READ
from tests.support.memory import grows_by_less_than
from tests.support.tensors import read_tensors
from tests.weights.formats.mutations import mutated
from tests.weights.formats.reading import is_read_or_refused, refusal, saved
from tests.weights.formats.torch_writer import Opcodes, archive, legacy, opcodes, tensor

DATA = Path(__file__).parent / "data"
WRITERS = {"archive": archive, "legacy": legacy}
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
MEMORY = 64 * 2**20  # Bytes; the files here have at most a few hundred kB.
SECONDS = 5
FILES = 1000  # From each source.
both = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)

# Each pushes one value, and would make the file SENTINEL where pickles are trusted.
INERT = {
    "GLOBAL": b"cos\nsystem\nCOMMAND\x85R",
    "GLOBAL posix": b"cposix\nsystem\nCOMMAND\x85R",
    "eval": b"cbuiltins\neval\nPYTHON\x85R",
    "Python 2": b"c__builtin__\nexec\nPYTHON\x85R",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93COMMAND\x85R",
    "INST": b"(COMMANDios\nsystem\n",
    "OBJ": b"(cos\nsystem\nCOMMANDo",
    "NEWOBJ": b"cos\nsystem\nCOMMAND\x85\x81",
    "NEWOBJ_EX": b"cos\nsystem\nCOMMAND\x85}\x92",
    "BUILD": b"cos\nsystem\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbCOMMANDb",
    "items": b"cos\nsystem\n)RCOMMANDa",
    "EXT1": b"\x82\x01COMMAND\x85R",
    "EXT4": b"\x84\xff\xff\xff\x7fCOMMAND\x85R",
    "getattr": b"cbuiltins\ngetattr\ncos\npath\nX\x06\x00\x00\x00system\x86RCOMMAND\x85R",
    "beside an allowed name": b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93COMMAND\x85R",
    "as a parameter": b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\nCOMMAND\x85R\x88NtR",
}
# Damage, traps for memory and time, and opcodes out of place.
HOSTILE = {
    "subclass": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\nCOMMAND\x85}tR",
    "subclass of a subclass": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x01(" + b"h\x01(" * 5000 + b"t" * 5001 + b"R",
    "a tensor from anything": b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nK\x00))tR",
    "attributes of an allowed function": b"ccollections\nOrderedDict\nN}X\x08\x00\x00\x00__code__COMMANDs\x86b)R",
    "items of an allowed function": b"ccollections\nOrderedDict\n(COMMANDe",
    "a set of deep tuples": b"\x8f()" + b"\x85" * 5_000 + b"\x90",
    "a buffer of a bytearray": b"\x96" + struct.pack("<Q", 3) + b"abc\x98",
    "a called dict": b"}COMMAND\x85R",
    "a called tensor": b"TENSORCOMMAND\x85R",
    "recursive REDUCE": b"ccollections\nOrderedDict\n(]q\x07h\x07atRh\x07a",
    "a list in itself": b"]q\x07h\x07a",
    "a dict in itself": b"}q\x07X\x05\x00\x00\x00modelh\x07s",
    "a billion laughs": b"]q\x00" + b"".join(b"](h%ch%ch%ch%ceq%c" % ((i,) * 4 + (i + 1,)) for i in range(250)),
    "a billion laughs as a key": b"})q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(250)) + b"Ns",
    "deep lists": b"]" * 5_000 + b"a" * 4_999,
    "deep tuples as a key": b"})" + b"\x85" * 5_000 + b"Ns",
    "deep dicts": b"}" + b"X\x01\x00\x00\x00a}" * 5_000 + b"s" * 5_000,
    "marks": b"(" * 5_000,
    "keys of one hash": b"}("
    + b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(5_000))
    + b"u",
    "memo index": b"Nr\xff\xff\xff\x7f",
    "memo index as text": b"Np99999999999999999999\n",
    "negative memo index": b"Np-1\n",
    "absent memo": b"h\xfe",
    "long number as text": b"I" + b"9" * 5_000 + b"\n",
    "long number": b"\x8b\xff\xff\x00\x00" + b"\x7f" * 65_535,
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "LONG4 negative": b"\x8b\xff\xff\xff\xff",
    "BINSTRING negative": b"T\xff\xff\xff\xffabc",
    "BINUNICODE": b"X\xff\xff\xff\xffabc",
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**40) + b"abc",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**40) + b"abc",
    "BYTEARRAY8 beyond any machine": b"\x96" + b"\xff" * 8,
    "FRAME": b"\x95" + struct.pack("<Q", 2**62) + b"N",
    "buffers beside the pickle": b"\x97\x98",
    "half a surrogate pair": b"X\x03\x00\x00\x00\xed\xa0\x80",
    "unusual escapes": rb"S'\d\ZZ'" + b"\n",
    "no quotes": b"Sabc\n",
    "an empty stack": b"000000",
    "half an item": b"}(K\x01u",
    "append to a number": b"K\x01K\x01a",
    "persistent id of anything": b"COMMANDQ",
    "persistent id as text": b"Pcommand\n",
    "a storage of an unknown type": b"(X\x07\x00\x00\x00storagectorch\nLaughStorage\nX\x01\x00\x00\x000NK\x01tQ",
    "a view of anything": b"(X\x07\x00\x00\x00storagectorch\nByteStorage\nX\x01\x00\x00\x000NK\x01COMMANDtQ",
    "protocol 9": b"\x80\x09N",
    "an unknown opcode": b"\xff",
    "an early end": b"N.",
    "nothing": b"",
}


def check_hostile(folder: Path, content: bytes) -> bool:
    """Return whether a file is read; memory and time are bounded either way."""
    path = saved(folder, content)
    tracemalloc.start()
    start = time.process_time()
    try:
        read = is_read_or_refused(path)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < MEMORY
    return read


@both
@pytest.mark.parametrize("case", INERT)
def test_nothing_in_a_pickle_runs(tmp_path: Path, write: Callable[..., bytes], case: str) -> None:
    """Neither beside the weights, which are read all the same, nor in their place."""
    sentinel = tmp_path / "SENTINEL"
    code = INERT[case].replace(b"COMMAND", opcodes(f"touch {sentinel}", []))
    code = Opcodes(code.replace(b"PYTHON", opcodes(f"open({str(sentinel)!r}, 'w')", [])))
    assert check_hostile(tmp_path, write({"odd": code, "state_dict": {"a": WEIGHT}}))
    assert not check_hostile(tmp_path, write(code))
    assert not check_hostile(tmp_path, write({"state_dict": code}))
    assert not sentinel.exists()


@pytest.mark.parametrize("case", ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ"))
def test_these_pickles_would_run_where_they_are_trusted(tmp_path: Path, case: str) -> None:
    """The check of the check: Python's own unpickler makes the file."""
    sentinel = tmp_path / "SENTINEL"
    code = INERT[case].replace(b"COMMAND", opcodes(f"touch {sentinel}", []))
    code = code.replace(b"PYTHON", opcodes(f"open({str(sentinel)!r}, 'w').close()", []))
    pickle.loads(b"\x80\x02" + code + b".")
    assert sentinel.exists()


@both
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(tmp_path: Path, write: Callable[..., bytes], case: str) -> None:
    sentinel = tmp_path / "SENTINEL"
    code = HOSTILE[case].replace(b"COMMAND", opcodes(f"touch {sentinel}", []))
    code = Opcodes(code.replace(b"TENSOR", tensor("0", "FloatStorage", 6, 0, (6,), (1,))))
    for tree in ({"state_dict": {"a": WEIGHT}, "odd": code}, code, {"state_dict": code}):
        check_hostile(tmp_path, write(tree))
    assert not sentinel.exists()


def test_a_pickle_larger_than_any_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "entry of" in refusal(saved(tmp_path, archive({"a": WEIGHT, "odd": "x" * MAX_READ})))
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 1000)
    assert check_hostile(tmp_path, archive({"a": WEIGHT, "odd": Opcodes(b"N" + b"20" * 400)}))
    assert "opcodes" in refusal(saved(tmp_path, archive({"a": WEIGHT, "odd": Opcodes(b"N" + b"20" * 500)})))


GOOD = {"key": "0", "storage": "FloatStorage", "count": 6, "offset": 0, "shape": (2, 3), "strides": (3, 1)}
IMPOSSIBLE: list[dict[str, Any]] = [
    {"shape": (2, 4)},
    {"shape": (7,), "strides": (1,)},
    {"offset": 1},
    {"strides": (4, 1)},
    {"strides": (3, -1)},
    {"offset": -1},
    {"shape": (-2, -3)},
    {"shape": (2**62, 2**62, 4), "strides": (0, 0, 0)},
    {"shape": (2**40,), "strides": (0,)},
    {"shape": (2**40, 0), "strides": (1, 1)},
    {"shape": (2**63, 0), "strides": (1, 1)},
    {"shape": (2, 3), "strides": (2**62, 2**62)},
    {"offset": 2**62, "shape": (0,), "strides": (1,), "key": "none"},
    {"shape": (1,) * 100, "strides": (1,) * 100},
    {"strides": (1,)},
    {"shape": 6, "strides": 1},
    {"shape": "ab", "strides": "ab"},
    {"shape": (2.0, 3.0)},
    {"shape": (True, True)},
    {"offset": None},
    {"key": "1"},
    {"key": "../data.pkl"},
    {"key": None},
    {"storage": "DoubleStorage"},
    {"storage": "NoStorage"},
    {"view": ("0.0", 4, 2)},
    {"view": ("0.0", -1, 6)},
    {"view": (0,)},
    {"view": 7},
]


@both
@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_impossible_tensors(tmp_path: Path, write: Callable[..., bytes], change: dict[str, Any]) -> None:
    """Shapes, strides and offsets are held against the storage's bytes before anything is made."""
    assert check_hostile(tmp_path, write({"all": WEIGHT, "view": tensor(**GOOD)}))
    assert not check_hostile(tmp_path, write({"all": WEIGHT, "view": tensor(**{**GOOD, **change})}))


@both
def test_tensors_that_repeat_one_storage_are_bounded_together(tmp_path: Path, write: Callable[..., bytes]) -> None:
    repeated = {str(i): tensor("0", "FloatStorage", 6, 0, (1024, 1024), (0, 0)) for i in range(8)}
    assert "times the file" in refusal(saved(tmp_path, write({"all": WEIGHT, **repeated})))


def test_archives_that_are_not_those_of_torch_save(tmp_path: Path) -> None:
    good = {"a": WEIGHT}
    bomb = archive({"a": np.zeros(2**20, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**14
    assert "compressed" in refusal(saved(tmp_path, bomb))
    assert not check_hostile(tmp_path, bomb)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as zipped:
        zipped.writestr("weights.pth", archive(good))
    assert "unpack it first" in refusal(saved(tmp_path, inner.getvalue()))
    content = bytearray(archive(good))
    where = content.index(WEIGHT.tobytes())
    content[where] ^= 1
    assert "checksum" in refusal(saved(tmp_path, bytes(content)))


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """Or a small file could hold any number of large storages."""
    content = bytearray(archive({"a": np.zeros(2**16, np.uint8)}))
    end = content.index(b"PK\5\6")
    directory = struct.unpack_from("<I", content, end + 16)[0]
    entries = bytes(content[directory:end])
    many = 40
    content[directory:end] = entries * many
    end = directory + len(entries) * many
    count = struct.unpack_from("<H", content, end + 10)[0] * many
    struct.pack_into("<HHII", content, end + 8, count, count, len(entries) * many, directory)
    assert "overlap" in refusal(saved(tmp_path, bytes(content)))


def test_legacy_files_that_do_not_add_up(tmp_path: Path) -> None:
    tree = {"a": WEIGHT, "b": WEIGHT}
    assert len(read_tensors(saved(tmp_path, legacy(tree)))) == 2
    for size in (-1, 5, 7, 2**40, 2**62, -(2**63)):
        assert not check_hostile(tmp_path, legacy(tree, sizes={"0": size}))
    for keys in (["0"], ["1", "0", "2"], [], 7, "01", [0, 1], ["0", "0"], ["0", ["1"]]):
        assert not check_hostile(tmp_path, legacy(tree, keys=keys))
    assert "torch.save did not write" in refusal(saved(tmp_path, pickle.dumps({"a": [1, 2]}, protocol=4)))


# Opcodes, names and lengths that mean something at many places of a pickle.
CODES = b"(.0125FIKLMNPQRSTUVXabcdeghijlopqrstu}]" + bytes(range(0x80, 0x98))
TOKENS = [bytes([code]) for code in CODES]
TOKENS += [
    b"cos\nsystem\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch\nLongStorage\n",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"r\xff\xff\xff\x7f",
    b"X\xff\xff\xff\x7f",
    b"\x96" + b"\xff" * 7 + b"\x7f",
    b"PK\1\2",
    b"PK\3\4",
    b"PK\5\6",
]


def damaged(source: str, count: int) -> Iterator[bytes]:
    """Yield damaged files: PyTorch's own, and archives around a damaged pickle, whose checksums are right."""
    content = (DATA / f"torch_2_13_{'legacy' if source == 'legacy' else 'archive'}.bin").read_bytes()
    if source != "pickle":
        yield from mutated(content, count=count, seed=1, tokens=TOKENS)
        return
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        entries = {name.partition("/")[2]: zipped.read(name) for name in zipped.namelist()}
    for pickled in mutated(entries["data.pkl"], count=count, seed=2, tokens=TOKENS):
        yield archive({}, extra={**entries, "data.pkl": pickled})


@pytest.mark.parametrize("source", ("archive", "pickle", "legacy"))
def test_damaged_files(tmp_path: Path, source: str) -> None:
    """Thousands of them: each is read or refused in one line, within bounded memory."""
    files = list(damaged(source, count=FILES))
    path = tmp_path / "weights.pth"
    read = 0
    with grows_by_less_than(2 * MEMORY):
        for content in files:
            path.write_bytes(content)
            read += is_read_or_refused(path)
    assert 0 < read < FILES
    assert list(tmp_path.iterdir()) == [path]
