"""Large TIFFs: the commands read and write them a part at a time, and their files are those of the whole image."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.data import large, source
from deeplab_jax.data.images import read_mask, write_image, write_mask
from deeplab_jax.evaluate import outputs, reading
from deeplab_jax.evaluate.scratch import scratch
from deeplab_jax.weights.folder import save
from tests.support.tiny import MadeUp, tiny_model, tiny_models

tifffile = pytest.importorskip("tifffile")
WINDOW = ["--window", "40,48", "--blend", "gaussian"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images with their masks, in `images` and `masks`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "images" / "sub").mkdir(parents=True)
    (folder / "masks" / "sub").mkdir(parents=True)
    made = MadeUp(((90, 130), (75, 100), (60, 90), (60, 90), (30, 35), (90, 130)))
    files = {
        "tiles.tif": {"tile": (32, 32), "compression": "zlib", "predictor": True},
        "sub/tiles.tif": {"rowsperstrip": 7, "compression": "lzw"},
        "planes.tif": {"planarconfig": "separate"},
        "turned.tif": {"extratags": [(274, "H", 1, 6, False)]},
        "small.tif": {"rowsperstrip": 8},
        "plain.png": {},
    }
    for index, (name, how) in enumerate(files.items()):
        image, label = made[index]["image"], made[index]["label"]
        if name == "plain.png":
            write_image(folder / "images" / name, image)
        else:
            planar = "planarconfig" in how
            stored = np.moveaxis(image, 2, 0) if planar else image
            tifffile.imwrite(folder / "images" / name, stored, photometric="rgb", **how)
        label = np.rot90(label, -1) if name == "turned.tif" else label
        write_mask((folder / "masks" / name).with_suffix(".png"), label, made.labels.palette)
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        save(folder / "model", model, variables, {"class_names": list(made.labels.names)})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "metrics.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("most", [outputs.OVERLAY_PIXELS, 1500])
def test_predict_writes_the_files_of_the_whole_image(images, tmp_path, monkeypatch, most) -> None:
    """Bit for bit, also where the overlay has every third pixel, and where rows are done in parts."""
    monkeypatch.setattr(outputs, "OVERLAY_PIXELS", most)
    words = ["predict", "--model", str(images / "model"), *WINDOW, str(images / "images")]
    in_parts, opening = [], large.open_large

    def opened(path, **how):
        image = opening(path, **how)
        in_parts.append((Path(path).name, image is not None))
        return image

    with tiny_models():
        monkeypatch.setattr(reading, "open_large", opened)
        monkeypatch.setattr(large, "PIXELS_AT_ONCE", 1000)
        assert main([*words, "--out", str(tmp_path / "parts")]) == 0
        monkeypatch.setattr(reading, "open_large", lambda *_, **__: None)
        monkeypatch.setattr(large, "PIXELS_AT_ONCE", 2**22)
        assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    large_ones = ["planes.tif", "small.tif", "tiles.tif", "tiles.tif"]
    assert sorted(in_parts) == sorted([*((n, True) for n in large_ones), ("plain.png", False), ("turned.tif", False)])
    parts, whole = contents(tmp_path / "parts"), contents(tmp_path / "whole")
    assert parts.keys() == whole.keys() and {"sub/tiles.png", "tiles_overlay.png"} <= parts.keys()
    assert [name for name in parts if parts[name] != whole[name]] == []
    assert read_mask(tmp_path / "parts" / "turned.png").shape == (90, 60)


def test_evaluate_has_the_metrics_of_the_whole_image(images, tmp_path, monkeypatch) -> None:
    config = ["--config", "configs/folder.py", f"--config.data.dir={images}", "--split", "all"]
    names = "--config.data.options.class_names=('class 0','class 1','class 2','class 3')"
    words = ["evaluate", "--model", str(images / "model"), *config, names, *WINDOW, "--save_predictions", "--bootstrap"]
    found = {}
    with tiny_models():
        for kind in ("parts", "whole"):
            if kind == "whole":
                monkeypatch.setattr(source, "open_large", lambda *_, **__: None)
            assert main([*words, "10", "--out", str(tmp_path / kind)]) == 0
            found[kind] = json.loads((tmp_path / kind / "metrics.json").read_text())
            del found[kind]["seconds"]
    assert found["parts"] == found["whole"] and found["parts"]["protocol"]["images"] == 6
    parts, whole = contents(tmp_path / "parts"), contents(tmp_path / "whole")
    assert parts == whole and {"tiles.png", "sub/tiles.png", "sub/tiles_overlay.png"} <= parts.keys()


def test_a_part_that_is_damaged_does_not_end_the_run(images, tmp_path, capsys) -> None:
    content = bytearray((images / "images" / "tiles.tif").read_bytes())
    with tifffile.TiffFile(images / "images" / "tiles.tif") as file:
        start, count = file.pages[0].dataoffsets[7], file.pages[0].databytecounts[7]
    content[start : start + count] = bytes(count)
    (tmp_path / "a.tif").write_bytes(content)
    (tmp_path / "b.tif").write_bytes((images / "images" / "planes.tif").read_bytes())
    words = ["predict", "--model", str(images / "model"), *WINDOW, "--out", str(tmp_path / "out")]
    with tiny_models():
        assert main([*words, str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]) == 2
    assert f"{tmp_path / 'a.tif'}: truncated or damaged image" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"b.png", "b_overlay.png"}


def test_room_on_the_disk_leaves_no_file(tmp_path) -> None:
    ids = scratch(tmp_path, (30, 40, 2))
    assert ids.shape == (30, 40, 2) and ids.dtype == np.uint8 and not ids.any()
    ids[3:5] = 7
    assert ids.sum() == 7 * 160 and list(tmp_path.iterdir()) == []


MEASURED = """
import resource, sys
from deeplab_jax.cli import main

model, out, small, image = sys.argv[1:]
words = ["predict", "--model", model, "--window", "129,129", "--out", out]
assert main([*words, small]) == 0  # Compiles.
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main([*words, image]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_of_the_whole_command(tmp_path) -> None:
    """18 million pixels of eight bands of 16 bits, 20 classes: the samples would take 288 MB, and the levels 576 MB.
    Read in parts, the image takes 0.04 GiB more than what compiling took; read whole, 0.67 GiB.
    """
    from deeplab_jax.models.catalog import create_model
    from tests.support.tiny import make_variables

    options = {"width": 0.125, "output_stride": 32, "in_channels": 8}
    model = create_model("deeplabv3_mobilenet_v2", num_classes=20, **options)
    save(tmp_path / "model", model, make_variables(model), {})
    tile = np.random.default_rng(0).integers(0, 65536, (60, 60, 8), np.uint16).repeat(50, 0).repeat(25, 1)
    how = {"photometric": "minisblack", "planarconfig": "contig", "tile": (512, 512), "compression": "zlib"}
    tifffile.imwrite(tmp_path / "small.tif", tile[:300, :300], **how)
    tifffile.imwrite(tmp_path / "big.tif", np.tile(tile, (1, 4, 1)), **how)
    files = [str(tmp_path / name) for name in ("model", "out", "small.tif", "big.tif")]
    done = subprocess.run([sys.executable, "-c", MEASURED, *files], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert read_mask(tmp_path / "out" / "big.png").shape == (3000, 6000)
    assert int(done.stdout.split()[-1]) < 0.45 * 2**20, done.stdout
