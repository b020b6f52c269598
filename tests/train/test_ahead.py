"""Compilation ahead of time: the program is that of training, and what is said of it is true."""

import math
import re

import jax
import pytest

from deeplab_jax.analysis.compiled import sum_cycles
from deeplab_jax.analysis.program_text import read_program
from deeplab_jax.analysis.targets import Target, devices_of, parse_target
from deeplab_jax.errors import UserError
from deeplab_jax.extensions import allow
from deeplab_jax.models.catalog import create_model
from deeplab_jax.train import ahead as module
from deeplab_jax.train.ahead import Ahead, bisect, classes_of
from deeplab_jax.train.batches import abstract_batch
from deeplab_jax.train.from_config import build_mesh
from deeplab_jax.train.lower import lower_training
from deeplab_jax.train.sharding import make_mesh
from tests.support.tiny import tiny_config

CPU = Target("cpu")

pytestmark = pytest.mark.usefixtures("tiny_networks")


def test_bisect_finds_the_largest_that_fits() -> None:
    for most in (0, 3, 4, 5, 16, 17, 100, 4096, 9999):
        for unit in (1, 4, 6):
            for start in (1, 16, 5000):
                tried = []
                found = bisect(lambda n, m=most, t=tried: bool(t.append(n)) or n <= m, unit=unit, start=start)
                assert found == min(most, 4096) // unit * unit
                assert len(tried) == len(set(tried)) <= 14 and all(n % unit == 0 for n in tried)


OWN_LABELS = """
import numpy as np
from deeplab_jax.labels import LabelSet

class Mine(list):
    name = "mine"
    labels = LabelSet(("a", "b", "c"), ((9, 0, 0), (0, 9, 0), (0, 0, 9)), multilabel=True)

    def describe(self, index):
        return str(index)

def open_mine(*, split):
    return Mine([{"image": np.zeros((8, 8, 3), np.uint8), "label": np.zeros((8, 8, 3), np.uint8), "name": "0"}])

SOURCES = {"mine": open_mine}
"""


def test_classes_of_known_data_need_no_files() -> None:
    config = tiny_config()
    assert classes_of(config) == (9, False)  # of the generated scenes
    config.data.options = {}
    for name, classes in (("voc", 21), ("cityscapes", 19), ("camvid", 11), ("ade20k", 150), ("coco", 21)):
        config.data.name = name
        assert classes_of(config) == (classes, False)
    config.data.name = "folder"
    with pytest.raises(UserError, match="data set 'folder' reads files"):
        classes_of(config)
    config.data.options = {"class_names": ("a", "b", "c")}
    assert classes_of(config) == (3, False)
    config.data.name = "multilabel"
    assert classes_of(config) == (3, True)


def test_data_of_ones_own_say_themselves_what_a_pixel_can_have(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN_LABELS)
    allow(str(file))
    config = tiny_config(**{"data.name": "mine", "data.options": {}, "module": str(file)})
    assert classes_of(config) == (3, True)


def test_the_report_of_a_step_on_cpus(tmp_path) -> None:
    """Two devices share a batch of four; each has two images of 33x33x3 with labels, and all parameters."""
    config = tiny_config(**{"train.devices": 2, "train.batch_size": 4, "train.ema_decay": 0.9})
    ahead = Ahead(config, CPU, folder=tmp_path)
    lowered, _ = ahead.lower()
    sizes = lowered.arguments
    assert sizes["batch"] == 2 * 33 * 33 * 4
    assert sizes["parameters"] == sizes["average"] <= sizes["optimizer"] <= sizes["parameters"] + 16  # and its counts
    report = ahead.report()
    assert report["kind"] == "training" and report["images"] == 4 and report["devices"] == 2
    assert report["fits"] and report["total_memory"] == sum(report["memory"].values()) < report["chip_memory"]
    assert report["collectives"]["all-reduce"]["count"] >= 1
    assert report["cycles"] == 0 and report["bounds"] == {} and "estimated" not in report
    assert math.isfinite(report["flops"]) and report["flops"] > 0


def test_a_stored_report_is_read_and_not_made_again(tmp_path, monkeypatch) -> None:
    ahead = Ahead(tiny_config(), CPU, kind="prediction", size=(33, 33), folder=tmp_path)
    first = ahead.report()
    monkeypatch.setattr(module, "read_compiled", None)  # It would fail.
    assert ahead.report() == first
    with pytest.raises(TypeError):
        Ahead(tiny_config(), CPU, kind="prediction", size=(33, 149), folder=tmp_path).report()


@pytest.mark.parametrize(("kind", "images", "size"), [("evaluation", 4, [33, 33]), ("prediction", 1, [129, 129])])
def test_inference(kind, images, size) -> None:
    """Evaluation has `evaluate.batch_size` images on each device, of the size that the protocol pads to."""
    report = Ahead(tiny_config(**{"train.devices": 2}), CPU, kind=kind, size=(65, 49)).report()
    assert (report["kind"], report["images"], report["size"]) == (kind, images, size)
    assert "optimizer" not in report["memory"] and "batch statistics" not in report["memory"]


def test_images_of_an_evaluation_split_evenly() -> None:
    ahead = Ahead(tiny_config(**{"evaluate.devices": 4}), CPU, kind="evaluation")
    for images, message in ((2, "use 4"), (6, "use 4 or 8")):
        with pytest.raises(UserError, match=f"{images} images of a call: 4 devices take equal shares, so {message}$"):
            ahead.lower(images)
    assert ahead.lower(8)[0].about["images"] == 8


def test_the_batch_is_that_of_the_verbs() -> None:
    """The largest of the sizes that images are padded to; floats where stored values become fractions of levels."""
    config = tiny_config(**{"evaluate.pad_to": ((97, 33), (65, 65))})
    assert Ahead(config, CPU, kind="evaluation").lower()[0].about["size"] == [65, 65]
    for stored, dtype in (((), "uint8"), ((0, 4095), "float32")):
        model = create_model("cascade_tiny", stored_range=stored)
        batch = abstract_batch(tiny_config(), model, build_mesh(tiny_config(), model))
        assert (batch["image"].dtype, batch["label"].dtype) == (dtype, "uint8")


def test_what_does_not_fit_is_a_report_too(monkeypatch) -> None:
    ahead = Ahead(tiny_config(), CPU, kind="prediction", size=(33, 33))
    one, three = (ahead.report(images)["total_memory"] for images in (1, 3))
    monkeypatch.setattr(Ahead, "limit", lambda self: (one + three) // 2)
    report = ahead.report(3)
    assert not report["fits"] and report["why"] == f"{three} bytes are more than {(one + three) // 2}"
    largest, tried = ahead.largest()
    assert largest in (1, 2) and next((each["images"], each["fits"]) for each in tried) == (1, True)
    monkeypatch.setattr(Ahead, "limit", lambda self: 1000)
    assert ahead.largest()[0] == 0


# On a TPU that is not there.


def summed_over(line: str) -> int:
    """Return the number of chips of the one group: the axes of a mesh, the chips, or 1 x chips."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in mesh[2].split(","))
    if chips := re.search(r"replica_groups=\{\{([\d,]+)\}\}", line):
        return len(chips[1].split(","))
    groups = re.search(r"replica_groups=\[1,(\d+)\]", line)
    return int(groups[1]) if groups else 0


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("mesh['axis_0'=4,'axis_1'=1] {'axis_0','axis_1'}, use", 4),
        ("mesh['data'=2,'space'=2] {'data'}, use", 2),
        ("{{0,1,2,3}}", 4),
        ("{{0,1},{2,3}}", 0),
        ("[1,4]<=[4]", 4),
        ("[2,2]<=[4]", 0),
    ],
)
def test_groups_of_chips_are_read(groups, chips) -> None:
    assert summed_over(f"%a = f32[8] all-reduce(%b), channel_id=2, replica_groups={groups}") == chips


def convolutions_of(text):
    """Each convolution of a program, fused or not, with the types of its two operands."""
    found = []
    for instructions in text.computations.values():
        types = {one.name: one.type.partition("[")[0] for one in instructions}
        convolutions = (one for one in instructions if one.opcode == "convolution")
        found += [(one, tuple(types[name] for name in one.operands)) for one in convolutions]
    return found


@pytest.mark.slow
def test_a_step_for_four_chips_is_what_the_papers_ask_for() -> None:
    """Atrous convolutions stay native, batch norm sees all chips, and convolutions are in bfloat16."""
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs: pip install 'deeplab_jax[tpu-compile]'")
    options = {"aspp_channels": 8, "decoder_convs": ((3, 8),), "dtype": "bfloat16", "norm_momentum": 0.9}
    config = tiny_config(**{"model.name": "deeplabv3plus_tiny", "train.devices": 0, "train.batch_size": 4})
    config.model.options = options
    config.data.crop_size = (65, 65)
    lowered = lower_training(config, module.build_model(config, num_classes=4), devices_of(parse_target("v5e:2x2")))
    with module._uncached():
        compiled = lowered.lowered.compile()
    text = read_program(compiled.as_text())
    convolutions = convolutions_of(text)
    of_network = [(one, dtypes) for one, dtypes in convolutions if "Segmenter" in one.op_name]
    assert of_network and {dtypes for _, dtypes in of_network} == {("bf16", "bf16")}
    for branch, rate in (("branch_atrous1", 6), ("branch_atrous2", 12), ("branch_atrous3", 18)):
        forward = [one.line for one, _ in of_network if branch in one.op_name and "transpose" not in one.op_name]
        assert forward and all(
            f"size=3x3 pad={rate}_{rate}x{rate}_{rate} rhs_dilate={rate}x{rate}" in s for s in forward
        )
    sums = [one for one, _ in text.runs if one.opcode.startswith("all-reduce") and "/norm/batch" in one.op_name]
    assert sums and {summed_over(one.line) for one in sums} == {4}
    assert sum(cycles for _, cycles in sum_cycles(text, text.kind).items()) > 0
    assert jax.default_backend() != "tpu"


@pytest.mark.parametrize(("target", "space"), [("v6e:4x4", 2), ("v6e:4x4", 4), ("v5e:4x4", 4), ("v4:4x4x4", 2)])
def test_the_rows_of_an_image_stay_on_chips_of_one_process(target: str, space: int) -> None:
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs: pip install 'deeplab_jax[tpu-compile]'")
    mesh = make_mesh(space=space, among=devices_of(parse_target(target)))
    assert mesh.shape == {"data": mesh.size // space, "space": space}
    assert all(len({chip.process_index for chip in of_image}) == 1 for of_image in mesh.devices)
