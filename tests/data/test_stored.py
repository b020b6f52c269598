"""Bits, bands and palettes: every sample of a file arrives, or the file is refused by name."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import images
from deeplab_jax.errors import UserError


def png(samples: np.ndarray, *, bits: int, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG with `[H, W, bands]` samples of 1 to 16 bits, written byte by byte so that nothing scales them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + packed(row, bits) for row in samples.reshape(height, -1))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def packed(row: np.ndarray, bits: int) -> bytes:
    digits = "".join(f"{int(value):0{bits}b}" for value in row)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))


def tiff(samples: np.ndarray, *, bits: int, photometric: int = 1) -> bytes:
    """A grey TIFF, little-endian, with one strip."""
    height, width = samples.shape
    data = samples.astype("<u2").tobytes() if bits == 16 else b"".join(packed(row, bits) for row in samples)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))])
    padded = data + b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + struct.pack("<H", 9) + entries + bytes(4)


def ids(bits: int) -> np.ndarray:
    return np.arange(15).reshape(3, 5) % min(2**bits, 11)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_hold_what_the_file_stores(bits):
    expected = ids(bits)
    for data in (png(expected, bits=bits), tiff(expected, bits=bits), tiff(expected, bits=bits, photometric=0)):
        read = images.decode_mask(data, name="a")
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == (np.uint16 if bits == 16 else np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_images_are_as_displayed(bits):
    levels = ids(bits) * (255 // (2**bits - 1))
    for data in (png(ids(bits), bits=bits), tiff(ids(bits), bits=bits)):
        np.testing.assert_array_equal(images.decode_image(data, name="a")[..., 1], levels)
    inverted = images.decode_image(tiff(ids(bits), bits=bits, photometric=0), name="a")
    np.testing.assert_array_equal(inverted[..., 2], 255 - levels)


@pytest.mark.parametrize("limit", [3, 200, 1000])
def test_portable_greymaps(limit):
    stored = np.array([[0, 1, 2, 3]], ">u2" if limit > 255 else np.uint8)
    data = b"P5 4 1 %d\n" % limit + stored.tobytes()
    np.testing.assert_array_equal(images.decode_mask(data, name="a"), [[0, 1, 2, 3]])
    read = images.decode_image(data, name="a")
    np.testing.assert_allclose(read[0, :, 0], np.arange(4) * 255 / limit, rtol=1e-6)


def palette_png(indices, colours) -> bytes:
    image = Image.fromarray(np.array(indices, np.uint8))
    image.putpalette(np.array(colours, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_palette_of_greys_stands_for_its_greys():
    mask = palette_png([[0, 1, 2, 1]], [[7] * 3, [0] * 3, [255] * 3])
    np.testing.assert_array_equal(images.decode_mask(mask, name="a"), [[7, 0, 255, 0]])
    for colours in ([[7] * 3, [0] * 3, [255, 0, 0]], [[7] * 3, [7] * 3, [255] * 3]):
        np.testing.assert_array_equal(
            images.decode_mask(palette_png([[0, 1, 2, 1]], colours), name="a"), [[0, 1, 2, 1]]
        )


def test_sixteen_bits_keep_all_levels():
    samples = np.array([[[0, 257, 258], [65535, 32768, 1]]], np.uint16)
    read = images.decode_image(png(samples, bits=16, colour=2), name="a")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, samples / 257.0, rtol=1e-6)
    grey = images.decode_image(png(np.arange(1000).reshape(10, 100), bits=16), name="a")
    assert len(np.unique(grey)) == 1000 and grey.shape == (10, 100, 3)
    with_alpha = np.concatenate([samples, np.full((1, 2, 1), 65535, np.uint16)], -1)
    np.testing.assert_array_equal(images.decode_image(png(with_alpha, bits=16, colour=6), name="a"), read)
    two = np.array([[[5, 65535], [600, 9]]], np.uint16)
    levels = images.decode_image(png(two, bits=16, colour=4), name="a", channels=(1, 0))
    np.testing.assert_allclose(levels, two[..., ::-1] / 257.0, rtol=1e-6)


def test_a_stated_range():
    """x in [low, high] becomes 255 (x - low) / (high - low), and what is beyond 0 or 255."""
    samples = np.array([[0, 100, 450, 800, 900]])
    read = images.decode_image(png(samples, bits=16), name="a", value_range=(100, 800))
    np.testing.assert_allclose(read[0, :, 0], [0, 0, 127.5, 255, 255])
    assert read.dtype == np.float32
    eight = images.decode_image(png(np.array([[10, 20, 30]]), bits=8), name="a", value_range=(10, 30))
    np.testing.assert_allclose(eight[0, :, 0], [0, 127.5, 255])
    with pytest.raises(UserError, match=r"value_range=\(5, 5\): .*value_range=0,4095"):
        images.decode_image(png(samples, bits=16), name="a", value_range=(5, 5))


def test_alpha_is_not_lost():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., :3] = np.arange(18).reshape(2, 3, 3)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(images.decode_image(png(rgba, bits=8, colour=6), name="a"), rgba[..., :3])
    rgba[0, 0, 3] = 254
    data = png(rgba, bits=8, colour=6)
    with pytest.raises(
        UserError,
        match=r"^a\.png: an image of 4 bands, the last of which is alpha and not opaque.*in predict --channels=0,1,2$",
    ):
        images.decode_image(data, name="a.png")
    np.testing.assert_array_equal(images.decode_image(data, name="a", channels=(0, 1, 2)), rgba[..., :3])
    np.testing.assert_array_equal(images.decode_image(data, name="a", channels=(3, 0)), rgba[..., [3, 0]])
    # A network that is trained takes as many bands as before.
    for channels, trained in (
        ((4,), "to predict with a network of 1 band, give --channels=0"),
        ((4, 3), "to predict with a network of 2 bands, give --channels=0,1"),
        (range(5), "a network of 5 bands needs other images"),
    ):
        said = "there is no band 4: its bands have the numbers 0 to 3; to train, give --config.data.channels=0,1,2; "
        with pytest.raises(UserError, match=re.escape(said + trained) + "$"):
            images.decode_image(data, name="a", channels=channels)
    one = png(rgba[..., :1], bits=8, colour=0)  # It stands for red, green and blue.
    said = (
        "there is no band 3: its only band has the number 0; to train, give --config.data.channels=0; to predict with "
        "a network of 3 bands, give --channels=0,1,2"
    )
    with pytest.raises(UserError, match=re.escape(said) + "$"):
        images.decode_image(one, name="a", channels=(0, 1, 3))
    grey = png(rgba[..., [0, 3]], bits=8, colour=4)
    with pytest.raises(UserError, match=r"--config\.data\.channels=0,0,0 \(the first as grey\) or .*channels=0,1 "):
        images.decode_image(grey, name="a")
    np.testing.assert_array_equal(images.decode_image(grey, name="a", channels=(0, 1)), rgba[..., [0, 3]])


def test_grey_among_colours_is_grey_in_every_colour():
    data = png(np.array([[1, 2]]), bits=8)
    np.testing.assert_array_equal(images.decode_image(data, name="a", channels=(0, 1, 2)), [[[1] * 3, [2] * 3]])
    np.testing.assert_array_equal(images.decode_image(data, name="a", channels=(0,)), [[[1], [2]]])


def test_transparent_palettes():
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([1, 2, 3, 4, 5, 6])
    for alpha, opaque in ((b"\xff\xff", True), (b"\x00\xff", False)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=alpha)
        if opaque:
            read = images.decode_image(buffer.getvalue(), name="a")
            np.testing.assert_array_equal(read, [[[1, 2, 3], [4, 5, 6]]])
            continue
        with pytest.raises(UserError, match="alpha and not opaque"):
            images.decode_image(buffer.getvalue(), name="a")
        read = images.decode_image(buffer.getvalue(), name="a", channels=(0, 1, 2, 3))
        np.testing.assert_array_equal(read, [[[1, 2, 3, 0], [4, 5, 6, 255]]])


def test_levels_that_a_reader_would_cut_are_refused(tmp_path):
    deep = b"P6 1 1 65535\n" + bytes(6)
    with pytest.raises(UserError, match=r"^a: PPM of 16 bits a sample, of which 8 would be read; save it as PNG"):
        images.decode_image(deep, name="a")
    np.testing.assert_array_equal(images.decode_image(b"P6 1 1 255\nabc", name="a"), [[[97, 98, 99]]])


@pytest.mark.parametrize("chunk", ["iCCP", "zTXt", "iTXt"])
def test_large_metadata(chunk):
    large = zlib.compress(bytes(2 * 2**20) if chunk == "iCCP" else b" " * 2 * 2**20)
    before = {"iCCP": b"profile\0\0", "zTXt": b"text\0\0", "iTXt": b"text\0\1\0\0\0"}[chunk]
    content = chunk.encode() + before + large
    extra = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    samples = np.arange(18).reshape(2, 3, 3)
    np.testing.assert_array_equal(images.decode_image(png(samples, bits=8, colour=2, extra=extra), name="a"), samples)
