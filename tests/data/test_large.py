"""Images that are read a part at a time: each part has the values of the whole, and only what it touches is decoded."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import large
from deeplab_jax.data.images import read_image
from deeplab_jax.data.large import Segments, open_large, row_parts
from deeplab_jax.errors import UserError

tifffile = pytest.importorskip("tifffile")

LAYOUTS = {
    "one strip": {},
    "big endian": {"byteorder": ">"},
    "planes": {"planarconfig": "separate"},
    "tiles": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "tiles of planes": {"tile": (16, 32), "planarconfig": "separate", "compression": "lzw"},
    "strips": {"rowsperstrip": 7, "compression": "zstd"},
    "bigtiff": {"bigtiff": True, "rowsperstrip": 5},
}
PARTS = [(0, 83, 0, 101), (0, 1, 0, 1), (15, 17, 31, 33), (60, 83, 90, 101), (20, 20, 5, 9), (64, 83, 0, 101)]


def samples(bands, dtype):
    """Every value differs from its neighbours."""
    count = 83 * 101 * bands
    return (np.arange(count).reshape(83, 101, bands) * 7919 % (256 if dtype == "uint8" else 4000)).astype(dtype)


def write(path, stored, **how):
    planar = how.get("planarconfig", "contig") == "separate"
    photometric = "rgb" if stored.shape[2] in (3, 4) else "minisblack"
    options = {"photometric": photometric, "planarconfig": "contig", **how}
    if photometric == "rgb" and stored.shape[2] == 4:
        options["extrasamples"] = ["unassalpha"]
    if stored.shape[2] == 1:
        stored, options["planarconfig"] = stored[..., 0], None
        planar = False
    tifffile.imwrite(path, np.moveaxis(stored, 2, 0) if planar else stored, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("bands", "dtype", "reading"),
    [
        (3, "uint8", {}),
        (1, "uint8", {}),
        (1, "uint16", {}),
        (3, "uint16", {"value_range": (0, 4095)}),
        (4, "uint8", {"channels": (3, 0)}),
        (9, "uint16", {"channels": (0, 8, 4, 2)}),
        (2, "float32", {"channels": (1,), "value_range": (0, 4000)}),
        (1, "float32", {"channels": (0,), "value_range": (0, 4000)}),
    ],
)
def test_parts_are_those_of_the_whole(tmp_path, layout, bands, dtype, reading) -> None:
    write(tmp_path / "a.tif", samples(bands, dtype), **LAYOUTS[layout])
    whole, image = read_image(tmp_path / "a.tif", **reading), open_large(tmp_path / "a.tif", **reading)
    assert image is not None and image.shape == whole.shape and image.dtype == whole.dtype
    for top, bottom, left, right in PARTS:
        np.testing.assert_array_equal(image[top:bottom, left:right], whole[top:bottom, left:right])
    np.testing.assert_array_equal(image[:], whole)
    np.testing.assert_array_equal(image[80:200], whole[80:])


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_photographs_in_jpeg(tmp_path, photometric) -> None:
    rows, columns = np.mgrid[0:83, 0:101]
    stored = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, compression="jpeg", tile=(32, 32))
    image = open_large(tmp_path / "a.tif")
    np.testing.assert_array_equal(image[:], read_image(tmp_path / "a.tif"))


def test_white_is_zero(tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", samples(1, "uint8")[..., 0], photometric="miniswhite")
    image = open_large(tmp_path / "a.tif")
    np.testing.assert_array_equal(image[:], read_image(tmp_path / "a.tif"))
    assert image[0:1, 0:1].tolist() == [[[255, 255, 255]]]


def test_only_what_a_part_touches_is_decoded_and_once_for_its_rows(tmp_path, monkeypatch) -> None:
    write(tmp_path / "a.tif", samples(3, "uint8"), **LAYOUTS["tiles"])  # 6 x 4 tiles of 16 x 32.
    image = open_large(tmp_path / "a.tif")
    loaded, load = [], Segments._load
    monkeypatch.setattr(Segments, "_load", lambda self, file, *at: loaded.append(at) or load(self, file, *at))
    image[20:40, 30:40]
    assert loaded == [(0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1)]
    image[20:40, 40:70]
    assert loaded[4:] == [(0, 1, 2), (0, 2, 2)]
    image[36:50, 0:64]
    assert loaded[6:] == [(0, 3, 0), (0, 3, 1)]
    image[0:5, 0:5]
    assert loaded[8:] == [(0, 0, 0)]


def test_plain_rows_are_as_many_as_fit(tmp_path, monkeypatch) -> None:
    stored = samples(3, "uint8")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", contiguous=True)
    monkeypatch.setattr(large, "LARGEST_SEGMENT", 5 * stored[0].nbytes + 1)
    image = open_large(tmp_path / "a.tif")
    assert image is not None and image._file._rows == 5
    np.testing.assert_array_equal(image[3:12, :], stored[3:12])


def test_what_has_to_be_read_whole(tmp_path, monkeypatch) -> None:
    stored = samples(3, "uint8")
    turned = tmp_path / "turned.tif"
    tifffile.imwrite(turned, stored, photometric="rgb", extratags=[(274, "H", 1, 6, False)])
    Image.fromarray(stored).quantize(16).save(tmp_path / "palette.tif")
    Image.fromarray(stored[..., 0] > 99).save(tmp_path / "bits.tif")
    Image.fromarray(stored).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(stored, 2, 0), photometric="minisblack")
    tifffile.imwrite(tmp_path / "good.tif", stored, photometric="rgb", compression="zlib", rowsperstrip=10)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:-900])
    (tmp_path / "noise.tif").write_bytes(b"II*\0" + bytes(range(200)))
    (tmp_path / "empty.tif").touch()
    os.mkfifo(tmp_path / "pipe.tif")  # To open it would wait for ever.
    for file in sorted(tmp_path.iterdir()):
        assert (open_large(file) is None) == (file.name != "good.tif"), file
    assert open_large(tmp_path / "gone.tif") is None
    monkeypatch.setattr(large, "LARGEST_SEGMENT", 1000)
    assert open_large(tmp_path / "good.tif") is None
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    assert open_large(tmp_path / "good.tif") is None


def test_a_damaged_part_is_told_when_it_is_read(tmp_path) -> None:
    write(tmp_path / "a.tif", samples(3, "uint8"), tile=(16, 32), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start, count = file.pages[0].dataoffsets[23], file.pages[0].databytecounts[23]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[start : start + count] = bytes(count)
    (tmp_path / "a.tif").write_bytes(content)
    image = open_large(tmp_path / "a.tif")
    np.testing.assert_array_equal(image[:80], samples(3, "uint8")[:80])
    with pytest.raises(UserError, match=r"a\.tif: truncated or damaged image"):
        image[80:]


def test_an_alpha_is_left_out_where_it_is_opaque_everywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(large, "PIXELS_AT_ONCE", 101 * 8)
    stored = samples(4, "uint8")
    stored[..., 3] = 255
    write(tmp_path / "a.tif", stored)
    np.testing.assert_array_equal(open_large(tmp_path / "a.tif")[:], stored[..., :3])
    stored[82, 100, 3] = 0
    write(tmp_path / "a.tif", stored)
    with pytest.raises(UserError) as whole:
        read_image(tmp_path / "a.tif")
    with pytest.raises(UserError) as parts:
        open_large(tmp_path / "a.tif")
    assert str(parts.value) == str(whole.value) and "alpha and not opaque" in str(whole.value)


def test_rows_in_parts_cover_all(monkeypatch) -> None:
    monkeypatch.setattr(large, "PIXELS_AT_ONCE", 100)
    assert list(row_parts((7, 40))) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert list(row_parts((20, 9), multiple=8)) == [slice(0, 8), slice(8, 16), slice(16, 20)]
    assert list(row_parts((3, 1000), multiple=2)) == [slice(0, 2), slice(2, 3)]
    assert list(row_parts((0, 5))) == []


def test_damaged_tags_say_nothing_on_stderr(tmp_path, caplog):
    path = tmp_path / "x.tif"
    stored = samples(9, "uint16")
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig", metadata=None, software="text")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["Software"].offset
    content = bytearray(path.read_bytes())
    content[tag + 2 : tag + 4] = b"\x63\0"  # A type of values that does not exist.
    path.write_bytes(bytes(content))
    logger = logging.getLogger("tifffile")
    logger.setLevel(logging.NOTSET)
    tifffile.TiffFile(path).close()
    assert [record.name for record in caplog.records] == ["tifffile"], "it would write a line"
    caplog.clear()
    image = open_large(path, channels=(0, 8), value_range=(0, 4095))
    assert image is not None and np.array_equal(image[:], read_image(path, channels=(0, 8), value_range=(0, 4095)))
    assert caplog.records == []
