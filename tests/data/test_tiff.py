"""TIFF and GeoTIFF as people bring them: any number of bands, planes, tiles, BigTIFF, 8 to 64 bits."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import main
from deeplab_jax.data import images, tiff
from deeplab_jax.errors import UserError

try:
    import tifffile
except ImportError:
    tifffile = None
needs_tifffile = pytest.mark.skipif(tifffile is None, reason="needs tifffile and imagecodecs")


def samples(bands, dtype="uint8", top=255):
    """Every value differs from its neighbours in all directions."""
    count = 35 * 21 * bands
    return (np.arange(count).reshape(35, 21, bands) * 7919 % (top + 1)).astype(dtype)


LAYOUTS = {
    "chunky": {},
    "planar": {"planarconfig": "separate"},
    "tiled": {"tile": (16, 16)},
    "planar tiles": {"planarconfig": "separate", "tile": (16, 16)},
    "bigtiff": {"bigtiff": True},
    "big endian": {"byteorder": ">"},
    "deflate": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw"},
    "zstd": {"compression": "zstd"},
    "strips": {"rowsperstrip": 4},
}


@needs_tifffile
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (4, "uint8"), (3, "uint16"), (12, "uint16"), (2, "uint16")])
def test_integer_bands(tmp_path, layout, bands, dtype):
    stored = samples(bands, dtype, 3000 if dtype == "uint16" else 255)
    how = {"photometric": "rgb" if bands == 3 else "minisblack", "planarconfig": "contig", **LAYOUTS[layout]}
    planar = how["planarconfig"] == "separate"
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(stored, 2, 0) if planar else stored, **how)
    every = tuple(range(bands))
    read = images.read_image(tmp_path / "a.tif", channels=every)
    assert read.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_allclose(read, stored if dtype == "uint8" else stored / 257.0, rtol=1e-6)
    chosen = images.read_image(tmp_path / "a.tif", channels=(1, 0), value_range=(0, 3000))
    np.testing.assert_allclose(chosen, stored[..., [1, 0]] * (255 / 3000), rtol=1e-5)
    if bands == 3:
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), read)
        return
    with pytest.raises(UserError, match=rf"a\.tif: an image of {bands} bands; .*channels={','.join(map(str, every))} "):
        images.read_image(tmp_path / "a.tif")


@needs_tifffile
def test_floats_and_wide_integers_need_a_range(tmp_path):
    path = tmp_path / "a.tif"
    for dtype in ("float32", "float64", "float16", "int16", "uint32", "int32"):
        stored = samples(3, "float64", 100) - (0 if dtype == "uint32" else 50)
        tifffile.imwrite(path, stored.astype(dtype), photometric="rgb")
        low, high = int(stored.min()), int(stored.max())
        with pytest.raises(UserError, match=rf"a\.tif: {dtype} samples from {low} to {high}, .*value_range="):
            images.read_image(path)
        read = images.read_image(path, value_range=(-50, 100))
        np.testing.assert_allclose(read, (stored + 50) * 1.7, rtol=1e-5)
        # One band is read by Pillow, of most types.
        tifffile.imwrite(path, stored[..., 0].astype(dtype), photometric="minisblack")
        one = images.read_image(path, value_range=(-50, 100), channels=(0,))
        np.testing.assert_allclose(one, read[..., :1], rtol=1e-5)
    tifffile.imwrite(path, np.full((4, 4, 3), np.nan, np.float32), photometric="rgb")
    with pytest.raises(UserError, match=r"48 samples are not finite"):
        images.read_image(path, value_range=(0, 1))


@needs_tifffile
def test_bands_without_a_colour_are_not_dropped(tmp_path):
    """Pillow reads red, green, blue and near infrared as RGB, and says nothing."""
    stored = samples(4)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(UserError, match="an image of 4 bands; "):
        images.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif", channels=(3, 2, 1, 0)), stored[..., ::-1])
    stored[..., 3] = 255  # Not alpha, so it is not dropped either.
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(UserError, match="an image of 4 bands; "):
        images.read_image(tmp_path / "a.tif")
    for alpha in ("unassalpha", "assocalpha"):
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[alpha])
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), stored[..., :3])


@needs_tifffile
def test_pages_of_one_band_each_are_bands(tmp_path):
    stored = samples(5, "uint16", 3000)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(stored, 2, 0), photometric="minisblack")
    read = images.read_image(tmp_path / "a.tif", channels=range(5))
    np.testing.assert_allclose(read, stored / 257.0, rtol=1e-6)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:  # A reduced copy, as in a pyramid, is no band.
        file.write(stored[..., 0], photometric="minisblack", subifds=0)
        file.write(stored[::2, ::2, 0], photometric="minisblack", subfiletype=1)
    np.testing.assert_allclose(images.read_image(tmp_path / "b.tif")[..., 0], stored[..., 0] / 257.0, rtol=1e-6)


@needs_tifffile
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned(tmp_path, orientation):
    from deeplab_jax.data.stored import turned

    stored = samples(4, "uint16", 3000)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="contig", extratags=tag)
    read = images.read_image(tmp_path / "a.tif", channels=range(4))
    np.testing.assert_allclose(read, turned(stored, orientation) / 257.0, rtol=1e-6)


@needs_tifffile
def test_masks_of_every_integer_type(tmp_path):
    for dtype, value in (
        ("uint8", 200),
        ("uint16", 60000),
        ("uint32", 3_000_000_000),
        ("int32", -7),
        ("int16", -7),
        ("int8", -7),
    ):
        tifffile.imwrite(tmp_path / "m.tif", np.full((4, 5), value, dtype))
        read = images.read_mask(tmp_path / "m.tif")
        assert read.shape == (4, 5) and read.dtype.kind in "iu" and (read == value).all()
    tifffile.imwrite(tmp_path / "m.tif", samples(3), photometric="rgb")
    with pytest.raises(UserError, match="holds colours"):
        images.read_mask(tmp_path / "m.tif")


@needs_tifffile
@pytest.mark.parametrize("bands", [1, 2])
def test_masks_in_jpeg_tiles_are_refused(tmp_path, bands):
    """One band is read by Pillow, two by tifffile, also in parts."""
    pages = np.moveaxis(samples(bands), 2, 0)
    tifffile.imwrite(tmp_path / "m.tif", pages, photometric="minisblack", compression="jpeg", tile=(16, 16))
    assert images.stored_mask(tmp_path / "m.tif").samples.shape == (35, 21, bands)
    with pytest.raises(UserError, match=r"m\.tif: a JPEG mask"):
        images.read_mask(tmp_path / "m.tif")


@needs_tifffile
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_damaged_files_end_in_one_line(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, samples(12, "uint16", 3000), photometric="minisblack", planarconfig="contig", compression=compression
    )
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for share in (0.02, 0.2, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"a\.tif: .*replace the file"):
            images.read_image(path, channels=(0,))
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, 300, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            images.read_image(path, channels=(0,))
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))


def test_claims_are_checked_before_memory_is_taken(tmp_path):
    """Twelve bands of 16 bits, and sides that only the header has."""
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    tags = tiff.read_tags(io.BytesIO(data))
    assert tags is not None and (tags.width, tags.height, tags.bands, tags.bits) == (2, 2, 1, (16,))
    entries = [(256, 4, 60_000), (257, 4, 60_000), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 12)]
    for changes, what in (({}, "5400000000 pixels"), ({256: 12_000, 257: 12_000}, "216000000 pixels")):
        made = b"".join(
            tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
            + changes.get(tag, value).to_bytes(4, "little")
            for tag, kind, value in entries
        )  # fmt: skip
        (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little") + made + bytes(4))
        with pytest.raises(UserError, match=what):
            images.read_image(tmp_path / "a.tif", channels=(0,))


def test_usual_pictures_need_no_tifffile_and_others_name_it(tmp_path, monkeypatch):
    def refuse(name, *rest):
        if name in ("tifffile", "imagecodecs"):
            raise ImportError(name)
        return importlib_import(name, *rest)

    importlib_import = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", refuse)
    for stored in (samples(3), samples(4), samples(1)[..., 0], samples(1, "uint16", 4095)[..., 0]):
        if stored.ndim == 3 and stored.shape[2] == 4:
            stored[..., 3] = 255
        for compression in (None, "tiff_lzw", "jpeg" if stored.dtype == np.uint8 and stored.shape[-1] != 4 else None):
            Image.fromarray(stored).save(tmp_path / "a.tif", compression=compression)
            assert images.read_image(tmp_path / "a.tif").shape == (35, 21, 3)
    image = Image.fromarray(samples(1)[..., 0] % 5)
    image.putpalette(list(range(60)))
    image.save(tmp_path / "a.tif")
    assert images.read_mask(tmp_path / "a.tif").max() == 4
    if tifffile:
        tifffile.imwrite(
            tmp_path / "a.tif", samples(12, "uint16", 3000), photometric="minisblack", planarconfig="contig"
        )
        with pytest.raises(
            UserError, match="12 bands of 16 bits: needs tifffile, .*; type pip install tifffile imagecodecs"
        ):
            images.read_image(tmp_path / "a.tif", channels=(0,))


@needs_tifffile
def test_printed_flags_can_be_typed(tmp_path, capsys):
    """check-data names the flags; they are typed as they stand until nothing is left to say."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(3):
        stored = samples(4, "uint16", 3000)
        tifffile.imwrite(tmp_path / f"images/{i}.tif", stored, photometric="rgb", extrasamples=["unspecified"])
        Image.fromarray((stored[..., 3] > 1500).astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    words = ["check-data", "--config", "configs/folder.py", f"--config.data.dir={tmp_path}", "--split=val"]
    words += ["--config.data.options.class_names=('background','thing')", "--config.data.options.val_fraction=0.999"]
    assert main(words) == 2
    said = capsys.readouterr().out
    assert "an image of 4 bands" in said and "narrow range" not in said
    flags = [word.rstrip(";") for word in said.split() if word.startswith("--config.data.")]
    assert "--config.data.channels=0,1,2,3" in flags and "--config.data.value_range=0,3000" in flags
    assert main([*words, "--config.data.channels=0,1,2,3"]) == 0
    assert "of the range of 65535; state the range" in capsys.readouterr().out
    assert main([*words, "--config.data.channels=0,1,2,3", "--config.data.value_range=0,3000"]) == 0
    assert "no errors, no warnings" in capsys.readouterr().out
