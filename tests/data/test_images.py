"""Reading and writing images and masks: every mode that data sets hold, and every kind of damage."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import images
from deeplab_jax.data.sets.coco import CATEGORIES, CATEGORY_NAMES
from deeplab_jax.errors import UserError
from deeplab_jax.labels import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    IGNORE_LABEL,
    PET,
    VOC,
    LabelSet,
    colormap,
    to_class_ids,
)


@pytest.fixture
def rgb():
    """Smooth, so that JPEG hardly changes it."""
    rows, columns = np.mgrid[0:23, 0:31]
    return np.stack([rows * 8, columns * 7, rows + columns], -1).astype(np.uint8)


def save(path, array, *, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_read_image_keeps_lossless_rgb(tmp_path, rgb, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(images.read_image(save(tmp_path / f"a.{suffix}", rgb, **options)), rgb)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGBA"), ("png", "P"), ("jpg", "CMYK"), ("jpg", "RGB"), ("gif", "P")]
)
def test_read_image_turns_colour_modes_into_rgb(tmp_path, rgb, suffix, mode):
    read = images.read_image(save(tmp_path / f"a.{suffix}", rgb, mode=mode))
    assert read.dtype == np.uint8 and read.shape == rgb.shape
    assert (
        np.abs(read.astype(int) - rgb).mean() < 25
    )  # palettes and JPEG are coarse; swapped channels differ by far more


@pytest.mark.parametrize(("suffix", "mode"), [("png", "L"), ("jpg", "L"), ("png", "LA")])
def test_read_image_repeats_grey(tmp_path, rgb, suffix, mode):
    read = images.read_image(save(tmp_path / f"a.{suffix}", rgb[..., 0], mode=mode))
    assert read.shape == rgb.shape
    assert np.abs(read.astype(int) - rgb[..., :1]).max() <= 3


def test_read_image_expands_one_bit(tmp_path):
    bits = np.array([[True, False]])
    np.testing.assert_array_equal(images.read_image(save(tmp_path / "a.png", bits))[0], [[255] * 3, [0] * 3])


def test_read_image_keeps_the_levels_of_16_bits(tmp_path):
    samples = np.array([[0, 257, 300, 65535]], np.uint16)
    read = images.read_image(save(tmp_path / "a.png", samples))
    np.testing.assert_allclose(read[0, :, 0], [0, 1, 300 / 257, 255], rtol=1e-6)


def test_read_image_goes_by_content_not_by_suffix(tmp_path, rgb):
    """Some photographs of the Pet data set are GIF or PNG files called .jpg."""
    Image.fromarray(rgb).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.jpg"), rgb)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_truncated_images_are_user_errors(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"cut.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: .*replace the file"):
        images.read_image(path)


@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
def test_unreadable_files_are_user_errors(tmp_path, read):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image at all")
    with pytest.raises(UserError, match=r"empty\.png: empty file"):
        read(tmp_path / "empty.png")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        read(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"gone\.png: no such"):
        read(tmp_path / "gone.png")
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path)


def test_read_mask_keeps_stored_values(tmp_path):
    values = np.array([[0, 1, 2, 255]], np.uint8)
    np.testing.assert_array_equal(images.read_mask(save(tmp_path / "l.png", values)), values)
    palette = Image.fromarray(values)
    palette.putpalette([9] * 768)  # all colours equal: only the indices tell the classes apart
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "p.png"), values)
    palette.putpalette(np.arange(20, dtype=np.uint8).repeat(3).tobytes())  # greys are the numbers, and 255 has none
    palette.save(tmp_path / "g.png")
    with pytest.raises(UserError, match=r"g\.png: index 255, and a palette of 20 greys"):
        images.read_mask(tmp_path / "g.png")
    bits = images.read_mask(save(tmp_path / "1.png", values > 1))
    np.testing.assert_array_equal(bits, [[0, 0, 1, 1]])
    assert bits.dtype == np.uint8
    deep = images.read_mask(save(tmp_path / "16.png", np.array([[300, 65535]], np.uint16)))
    np.testing.assert_array_equal(deep, [[300, 65535]])
    assert deep.dtype == np.uint16
    wide = images.read_mask(save(tmp_path / "32.tif", np.array([[-1, 70000]], np.int32)))
    np.testing.assert_array_equal(wide, [[-1, 70000]])


def test_read_mask_refuses_jpeg_and_colours(tmp_path, rgb):
    with pytest.raises(UserError, match=r"m\.jpg: a JPEG mask"):
        images.read_mask(save(tmp_path / "m.jpg", rgb[..., 0]))
    with pytest.raises(UserError, match=r"m\.tif: a JPEG mask"):
        images.read_mask(save(tmp_path / "m.tif", rgb[..., 0], compression="jpeg"))
    with pytest.raises(UserError, match=r"m\.png: mask of mode RGB holds colours"):
        images.read_mask(save(tmp_path / "m.png", rgb))


def test_write_mask_keeps_ids_and_colours(tmp_path):
    ids = np.array([[0, 1, 2, 255]], np.int32)
    images.write_mask(tmp_path / "m.png", ids, CAMVID.palette)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), ids)
    np.testing.assert_array_equal(images.read_image(tmp_path / "m.png")[0], [*CAMVID.palette[:3], images.VOID_COLOUR])
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]
    with pytest.raises(ValueError, match="0 to 255"):
        images.write_mask(tmp_path / "n.png", np.array([[256]]), CAMVID.palette)


def test_write_image(tmp_path, rgb):
    images.write_image(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), rgb)
    images.write_image(tmp_path / "a.jpg", rgb)
    assert np.abs(images.read_image(tmp_path / "a.jpg").astype(int) - rgb).mean() < 5
    with pytest.raises(UserError, match="no image format"):
        images.write_image(tmp_path / "a.xyz", rgb)
    with pytest.raises(UserError, match=r"a\.png/b\.png: cannot be written"):
        images.write_image(tmp_path / "a.png" / "b.png", rgb)


def test_to_class_ids_maps_and_reports_unknown_values():
    labels = LabelSet(("a", "b"), colormap(2), ((0, 0), (128, 1), (400, 1), (7, IGNORE_LABEL)))
    stored = np.array([[0, 128, 7, 5, 200]], np.uint8)
    ids, unknown = to_class_ids(stored, labels)
    np.testing.assert_array_equal(ids, [[0, 1, 255, 255, 255]])
    assert ids.dtype == np.uint8 and unknown == [5, 200]
    ids, unknown = to_class_ids(np.array([[400, -1, 70000]], np.int32), labels)
    np.testing.assert_array_equal(ids, [[1, 255, 255]])
    assert unknown == [-1, 70000]


def test_published_label_sets():
    assert [len(set(labels.names)) for labels in (CAMVID, VOC, CITYSCAPES, ADE20K, PET)] == [11, 21, 19, 150, 2]
    assert VOC.palette[15] == (192, 128, 128)  # person, in the colours of the development kit
    ids, unknown = to_class_ids(np.array([[0, 1, 150]], np.uint8), ADE20K)
    assert ids.tolist() == [[255, 0, 149]] and unknown == []
    ids, unknown = to_class_ids(np.array([[7, 33, 6, 34]], np.uint8), CITYSCAPES)
    assert ids.tolist() == [[0, 18, 255, 255]] and unknown == [34]
    assert to_class_ids(np.array([[1, 2, 3]], np.uint8), PET)[0].tolist() == [[1, 0, 255]]
    assert to_class_ids(np.array([[10, 11]], np.uint8), CAMVID)[0].tolist() == [[10, 255]]


# From objectInfo150.txt of ADE20K's development kit: the stored value, and the first name that stands there.
SOME_OF_ADE20K = {
    **{1: "wall", 2: "building", 3: "sky", 5: "tree", 6: "ceiling", 13: "person", 21: "car", 27: "sea", 40: "cushion"},
    **{54: "stairs", 60: "stairway", 69: "hill", 88: "streetlight", 97: "escalator", 111: "stool", 128: "bicycle"},
    **{129: "lake", 137: "traffic light", 142: "crt screen", 149: "clock", 150: "flag"},
}
# The SHA-256 of all 150, one a line. Number 90, "television, television receiver, ...", has its second name here.
ALL_OF_ADE20K = "f9dbd8a75a0722c971d8c82db76dc205e06cb422d98153f4e5bbf90408ef5438"


def test_ade20k_has_the_published_names_at_the_published_values() -> None:
    stored = dict(ADE20K.value_map)
    assert {value: ADE20K.names[stored[value]] for value in SOME_OF_ADE20K} == SOME_OF_ADE20K
    assert hashlib.sha256("\n".join(ADE20K.names).encode()).hexdigest() == ALL_OF_ADE20K


def test_voc_has_the_names_of_the_development_kit() -> None:
    """The objects follow the alphabet; the indices are those of VOCinit.m."""
    some = {0: "background", 1: "aeroplane", 5: "bottle", 10: "cow", 11: "diningtable", 15: "person"}
    some |= {16: "pottedplant", 18: "sofa", 19: "train", 20: "tvmonitor"}
    assert {index: VOC.names[index] for index in some} == some
    assert list(VOC.names[1:]) == sorted(VOC.names[1:])


def test_coco_has_the_classes_of_voc_under_its_own_names_and_ids() -> None:
    other = {"airplane": "aeroplane", "dining table": "diningtable", "motorcycle": "motorbike"}
    other |= {"potted plant": "pottedplant", "couch": "sofa", "tv": "tvmonitor"}
    assert tuple(other.get(name, name) for name in CATEGORY_NAMES) == VOC.names[1:]
    # In the order of the ids in instances_val2017.json.
    published = "person bicycle car motorcycle airplane bus train boat bird cat dog horse sheep cow bottle chair couch"
    by_id = [name for _, name in sorted(zip(CATEGORIES, CATEGORY_NAMES, strict=True))]
    assert by_id == [*published.split(), "potted plant", "dining table", "tv"]


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path) -> None:
    frames = [Image.fromarray(np.full((5, 7, 3), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(images.read_image(tmp_path / name), np.full((5, 7, 3), 10, np.uint8))


@pytest.mark.parametrize(
    "options", [{"names": ()}, {"palette": ()}, {"value_map": ((0, 2),)}, {"value_map": ((0, 0), (0, 1))}]
)
def test_label_sets_must_be_consistent(options):
    with pytest.raises(ValueError):
        LabelSet(**{"names": ("a", "b"), "palette": colormap(2), **options})
