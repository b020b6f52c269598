"""Checkpoints in `.tar.gz` archives, and archives that somebody made to do harm."""

import gzip
import io
import tarfile

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.formats import archive
from deeplab_jax.weights.formats.archive import unpack_weights


def make(path, members):
    """Write an archive of (name or TarInfo, content) pairs."""
    with tarfile.open(path, "w:gz") as stream:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            stream.addfile(info, io.BytesIO(content))
    return path


def unpack(path):
    folder = path.with_suffix(".out")
    folder.mkdir()
    unpack_weights(path, folder)
    return {file.name: file.read_bytes() for file in folder.rglob("*")}


def test_only_the_checkpoint_is_unpacked(tmp_path):
    path = make(
        tmp_path / "a.tar.gz",
        [
            ("deeplab/frozen_inference_graph.pb", b"graph"),
            ("deeplab/model.ckpt-30000.index", b"index"),
            ("deeplab/model.ckpt-30000.data-00000-of-00001", b"data"),
            ("deeplab/model.ckpt-30000.meta", b"meta"),
        ],
    )
    assert unpack(path) == {"model.ckpt-30000.index": b"index", "model.ckpt-30000.data-00000-of-00001": b"data"}


def test_no_name_and_no_link_leads_out_of_the_folder(tmp_path):
    link = tarfile.TarInfo("model.ckpt.data-00000-of-00001")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("b/model.ckpt.data-00000-of-00001")
    hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
    device = tarfile.TarInfo("c/model.ckpt.data-00000-of-00001")
    device.type = tarfile.CHRTYPE
    path = make(
        tmp_path / "a.tar.gz",
        [(link, b""), (hard, b""), (device, b""), ("../../model.ckpt.index", b"index"), ("/x", b"")],
    )
    assert unpack(path) == {"model.ckpt.index": b"index"}
    assert {file.name for file in tmp_path.iterdir()} == {"a.tar.gz", "a.tar.out"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("readme.txt", b"")], "an archive without a checkpoint"),
        ([("task.weights.h5", b"\x89HDF"), ("config.json", b"{}")], "or a preset .no model.weights.h5."),
        ([("a/model.ckpt.index", b"1"), ("b/model.ckpt.index", b"2")], "holds model.ckpt.index twice"),
        ([("zeros", bytes(30_000)), ("model.ckpt.index", b"1")], "unpacks to more than 20000 bytes"),
        ([(f"{i}", b"") for i in range(12)], "more than 10 files"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, members, message):
    monkeypatch.setattr(archive, "LARGEST", 20_000)
    monkeypatch.setattr(archive, "MOST_MEMBERS", 10)
    with pytest.raises(UserError, match=message):
        unpack(make(tmp_path / "a.tar.gz", members))


def test_a_header_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    """An extended header is read into memory at once, whatever size it claims."""
    monkeypatch.setattr(archive, "PIECE", 2**16)
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**24
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + bytes(2**24)))
    with pytest.raises(UserError, match="a header of 16777216 bytes"):
        unpack(path)


@pytest.mark.parametrize("damage", [slice(0, 60), slice(0, -30)])
def test_a_damaged_archive_is_one_line(tmp_path, damage):
    path = make(tmp_path / "a.tar.gz", [("model.ckpt.index", bytes(range(256)) * 40)])
    path.write_bytes(path.read_bytes()[damage])
    with pytest.raises(UserError, match="a damaged archive"):
        unpack(path)


def test_changed_bytes_are_noticed(tmp_path):
    path = make(tmp_path / "a.tar.gz", [("model.ckpt.index", bytes(range(256)) * 40)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged archive"):
        unpack(path)
