"""Writing a data set as TFDS array_record files and reading it back."""

import dataclasses
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from deeplab_jax.data import images
from deeplab_jax.data.catalog import open_source
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.labels import colormap


@pytest.fixture
def sources(tmp_path):
    """A folder of six examples of different sizes: PNG and JPEG, and one grey image."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for index in range(6):
        size = (20 + index, 30)
        label = rng.integers(0, 3, size)
        label[0, 0] = 255
        images.write_mask(tmp_path / f"data/masks/{index}.png", label, colormap(3))
        suffix = "jpg" if index % 2 else "png"
        images.write_image(tmp_path / f"data/images/{index}.{suffix}", rng.integers(0, 256, (*size, 3), np.uint8))
    images.write_mask(tmp_path / "data/images/0.png", np.full((20, 30), 7), colormap(1))
    options = {"dir": tmp_path / "data", "class_names": ("a", "b", "c"), "val_fraction": 0.4}
    return {split: open_source("folder", split=split, **options) for split in ("train", "val")}


def test_a_prepared_folder_gives_the_same_examples(tmp_path, sources):
    seen = []
    out = prepare(sources, tmp_path / "out", progress=lambda *call: seen.append(call))
    assert seen == [(split, i + 1, len(source)) for split, source in sources.items() for i in range(len(source))]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
    for split, source in sources.items():
        read = pickle.loads(pickle.dumps(open_source("tfds", split=split, dir=out)))
        assert len(read) == len(source) > 0
        assert (read.name, read.labels.names, read.labels.palette) == (
            "folder",
            source.labels.names,
            source.labels.palette,
        )
        for index in range(len(source)):
            example, expected = read[index], source[index]
            np.testing.assert_array_equal(example["image"], expected["image"])
            np.testing.assert_array_equal(example["label"], expected["label"])
            assert example["name"] == expected["name"] == read.describe(index)
    with pytest.raises(UserError, match="no split 'test'"):
        open_source("tfds", split="test", dir=out)


def test_a_prepared_folder_knows_what_the_masks_of_its_source_store(tmp_path, sources):
    """So `predict --ids dataset` can write that, though the folder itself holds class ids."""
    value_map = ((0, 1), (1, 2), (2, 0), (255, 255))
    labels = dataclasses.replace(sources["train"].labels, value_map=value_map)
    sources = {split: dataclasses.replace(source, labels=labels) for split, source in sources.items()}
    out = prepare(sources, tmp_path / "out")
    for split, source in sources.items():
        read = open_source("tfds", split=split, dir=out)
        assert read.labels.value_map == value_map
        np.testing.assert_array_equal(read[0]["label"], source[0]["label"])


def test_no_split_is_too_large(tmp_path, sources, monkeypatch):
    """Beyond a gigabyte TFDS sorts examples on the disk, with TensorFlow; files of a few examples need no sorting."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    monkeypatch.setattr("deeplab_jax.data.prepare.PER_FILE", 2)
    told = []
    folder = prepare(sources, tmp_path / "out", progress=lambda *one: told.append(one))
    split, source = "train", sources["train"]
    assert len(source) >= 3
    assert len(list(folder.glob(f"*-{split}.array_record-*"))) == -(-len(source) // 2)
    assert [one for one in told if one[0] == split] == [(split, done + 1, len(source)) for done in range(len(source))]
    written = open_source("tfds", dir=folder, split=split)
    assert [written[index]["name"] for index in range(len(source))] == [
        source[index]["name"] for index in range(len(source))
    ]


def test_a_name_that_is_not_utf8_is_named(tmp_path, sources):
    pair = sources["val"].pairs[0]
    odd = dataclasses.replace(sources["val"], pairs=(dataclasses.replace(pair, name="caf\udce9"),))
    with pytest.raises(UserError, match="a name that is not UTF-8, as TFDS stores names; rename the file"):
        prepare({**sources, "val": odd}, tmp_path / "out")


@pytest.mark.parametrize("file", [None, "no such file", __file__])
def test_what_a_source_returns_is_written_whatever_its_files_hold(tmp_path, sources, file):
    class Mirrored(list):
        name, labels = "mirrored", sources["train"].labels

        def describe(self, index):
            return (file, "mask") if file else sources["train"].describe(index)

    mirrored = Mirrored({**example, "image": example["image"][:, ::-1]} for example in sources["train"])
    read = open_source("tfds", split="train", dir=prepare({"train": mirrored}, tmp_path / "out"))
    for index, example in enumerate(mirrored):
        np.testing.assert_array_equal(read[index]["image"], example["image"])


def test_other_readers_of_tfds_see_class_ids(tmp_path, sources):
    import tensorflow_datasets as tfds

    out = prepare(sources, tmp_path / "out")
    record = tfds.builder_from_directory(str(out)).as_data_source(split="train")[0]
    expected = sources["train"][0]
    np.testing.assert_array_equal(record["label"][..., 0], expected["label"])
    assert record["image"].shape == expected["image"].shape


def test_a_failure_leaves_nothing_behind(tmp_path, sources):
    image, _ = sources["val"].describe(len(sources["val"]) - 1)
    with open(image, "r+b") as file:
        file.truncate(200)
    with pytest.raises(UserError, match="replace the file"):
        prepare(sources, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_an_interruption_leaves_nothing_behind(tmp_path, sources):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tmp_path / "out", progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_full_disk_is_a_user_error(tmp_path, sources, monkeypatch):
    def fill(*_, **__):
        raise RuntimeError("write() failed: No space left on device; writing x")

    monkeypatch.setattr("deeplab_jax.data.prepare._Builder.download_and_prepare", fill)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        prepare(sources, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_prepare_refuses_what_it_would_overwrite_or_mix(tmp_path, sources):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(UserError, match="exists already"):
        prepare(sources, tmp_path / "out")
    other = open_source("folder", split="all", dir=tmp_path / "data", class_names=("x", "y", "z"))
    with pytest.raises(UserError, match="different classes"):
        prepare({**sources, "all": other}, tmp_path / "new")


def test_folders_not_written_by_prepare_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no classes\.json"):
        open_source("tfds", split="train", dir=tmp_path)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(UserError, match=r"classes\.json: damaged"):
        open_source("tfds", split="train", dir=tmp_path)
    (tmp_path / "classes.json").write_text('{"source": "x", "names": ["a"], "palette": [[0, 0, 0]]}')
    with pytest.raises(UserError, match=r"features\.json: damaged"):
        open_source("tfds", split="train", dir=tmp_path)


def test_tensorflow_is_never_imported(tmp_path, sources):
    program = textwrap.dedent(
        f"""
        import sys
        from deeplab_jax.data.prepare import prepare
        from deeplab_jax.data.catalog import open_source

        options = dict(dir={str(tmp_path / "data")!r}, class_names=("a", "b", "c"), split="all")
        out = prepare({{"train": open_source("folder", **options)}}, {str(tmp_path / "out")!r})
        assert open_source("tfds", split="train", dir=out)[5]["label"].ndim == 2
        assert "tensorflow" not in sys.modules
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # TFDS's announcement of a download is kept back
