"""mmsegmentation, whose compiled operators cannot be installed: its networks' outputs are kept in `golden`.

They are of its version 1.2.2 with mmengine 0.10.7, mmcv-lite 2.2.0 and PyTorch 2.13: `EncoderDecoder`s of the configs'
parts with BN, `_forward` in `eval()`, and the resize of whole-image inference. Their weights are those of
`golden.generate`; the last norms of residual branches are a quarter of it. `golden.images` go in.
"""

import re

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.importers import mmsegmentation
from deeplab_jax.weights.importers.mmsegmentation import labels_of
from deeplab_jax.weights.tensor_map import Shapes
from tests.weights.importers import golden

# Golden file, our name, classes.
NETWORKS = [
    ("mmseg_deeplabv3_resnet50_v1c", "deeplabv3_resnet50", 21),
    ("mmseg_deeplabv3plus_resnet18_b", "deeplabv3plus_resnet18", 19),
    ("mmseg_deeplabv3plus_resnet50_v1c", "deeplabv3plus_resnet50", 7),
    ("mmseg_deeplabv3plus_resnet101_b", "deeplabv3plus_resnet101", 19),
    ("mmseg_pspnet_resnet18_v1c", "pspnet_resnet18", 6),
    ("mmseg_pspnet_resnet50_b", "pspnet_resnet50", 19),
    ("mmseg_fcn_resnet50_v1c", "fcn_resnet50", 21),
]
FAST = [
    ("mmseg_deeplabv3plus_resnet18_b", 8, (97, 131)),
    ("mmseg_pspnet_resnet18_v1c", 16, (128, 160)),
]
ALL = [(name, stride, size) for name, _, _ in NETWORKS for stride in (8, 16) for size in ((97, 131), (128, 160))]


def generate(name: str) -> dict[str, np.ndarray]:
    return generate_tensors(golden.read_shapes(name))


def generate_tensors(shapes: Shapes) -> dict[str, np.ndarray]:
    last = "bn3" if any(".bn3." in key for key in shapes) else "bn2"
    pattern = rf"layer\d\.\d+\.{last}\.weight$"
    tensors = golden.generate(shapes)
    return {key: value * np.float32(0.25) if re.search(pattern, key) else value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in ALL],
)
def test_logits(name: str, output_stride: int, size: tuple[int, int]) -> None:
    golden.assert_converted(generate(name), name, kind="mmsegmentation", output_stride=output_stride, size=size)


@pytest.mark.parametrize(("name", "ours", "classes"), NETWORKS)
def test_networks_are_told_by_their_tensors(name: str, ours: str, classes: int) -> None:
    tensor_map = mmsegmentation.recognise(golden.read_shapes(name), output_stride=None)
    assert tensor_map is not None
    assert (tensor_map.name, tensor_map.num_classes, tensor_map.output_stride) == (ours, classes, 8)
    assert tensor_map.options["aux_head"]
    assert tensor_map.options.get("deep_stem", False) == name.endswith("v1c")
    assert tensor_map.model().preprocessing.mean == (0.485, 0.456, 0.406)


META = {"CLASSES": ("road", "roof"), "PALETTE": [[1, 2, 3], [4, 5, 6]]}
NAMED = {"class_names": ["road", "roof"], "palette": [[1, 2, 3], [4, 5, 6]]}


@pytest.mark.parametrize(
    ("meta", "info"),
    [
        (META, NAMED),
        ({"dataset_meta": {"classes": ("road", "roof"), "palette": [[1, 2, 3], [4, 5, 6]]}}, NAMED),
        ({"CLASSES": ("road", "roof", "tree")}, {}),
        ({"CLASSES": ("road", 3), "PALETTE": [[1, 2, 3], [4, 5, 256]]}, {}),
        ({"CLASSES": None, "dataset_meta": 7}, {}),
        (None, {}),
    ],
)
def test_class_names_are_those_that_the_file_states(meta: object, info: object) -> None:
    assert labels_of({"meta": meta}, 2) == info


def test_one_logit_has_the_names_of_both_classes_and_another_threshold() -> None:
    shapes = golden.read_shapes("mmseg_pspnet_resnet18_v1c")
    shapes |= {name: (1, *shape[1:]) for name, shape in shapes.items() if ".conv_seg." in name}
    tensor_map = mmsegmentation.recognise(shapes, output_stride=None)
    assert tensor_map is not None and tensor_map.num_classes == 1
    assert any("above 0.3; here --threshold 0.3" in note for note in tensor_map.notes)
    assert labels_of({"meta": META}, 1) == NAMED


@pytest.mark.slow
def test_a_checkpoint_as_it_is_published() -> None:
    name = "mmseg_deeplabv3plus_resnet50_v1c"
    names = [f"class {index}" for index in range(7)]
    _, _, info = convert({"meta": {"CLASSES": names, "epoch": 1}, "state_dict": generate(name)})
    assert info["class_names"] == names
    assert info["source"]["unused"] == [key for key in golden.read_shapes(name) if key.endswith("num_batches_tracked")]


def test_what_cannot_be_converted_is_refused_by_name() -> None:
    shapes = golden.read_shapes("mmseg_deeplabv3plus_resnet18_b")
    backbone = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
    with pytest.raises(UserError, match="the decode head is none of ASPPHead"):
        mmsegmentation.recognise({**backbone, mmsegmentation.LOGITS: (19, 128, 1, 1)}, output_stride=None)
    with pytest.raises(UserError, match="the backbone is none of resnet18"):
        mmsegmentation.recognise({**shapes, "backbone.layer4.2.conv1.weight": (512, 512, 3, 3)}, output_stride=None)
    with pytest.raises(UserError, match="run at 8 or 16"):
        mmsegmentation.recognise(shapes, output_stride=32)
    without = {name: shape for name, shape in shapes.items() if "c1_bottleneck" not in name}
    with pytest.raises(UserError, match="a separable pyramid without low-level features cannot be converted"):
        mmsegmentation.recognise(without, output_stride=None)
    assert mmsegmentation.recognise(backbone, output_stride=None) is None
