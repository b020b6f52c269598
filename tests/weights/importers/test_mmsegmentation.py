"""mmsegmentation, whose compiled operators cannot be installed: its networks' outputs are kept in `golden`.

They are of its version 1.2.2 with mmengine 0.10.7, mmcv-lite 2.2.0 and PyTorch 2.13: `EncoderDecoder`s of the configs'
parts with BN, `_forward` in `eval()`, and the resize of whole-image inference. Their weights are those of
`golden.generate`; the last norms of residual branches are a quarter of it. `golden.images` go in.
"""

import re

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.convert import convert, stated_stride
from deeplab_jax.weights.importers import mmsegmentation
from deeplab_jax.weights.importers.mmsegmentation import LONGEST_CONFIG, labels_of, network_of
from deeplab_jax.weights.tensor_map import Shapes, TensorMap
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
        ({"CLASSES": ("road", "roof\x1b[2J")}, {}),
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


# As mmcv and mmengine write it: all of the config, without what it inherits from.
CONFIG = """norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='ASPPHead',
        dilations=(1, 12, 24, 36),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
data = dict(samples_per_gpu=2, mean=[123.675, -1], model={'a': None})
"""
AT_16 = {"(1, 1, 2, 4)": "(1, 1, 1, 2)", "(1, 2, 1, 1)": "(1, 2, 2, 1)"}


def stated(changes: dict[str, str], *, key: str = "config") -> dict[str, object]:
    text = CONFIG
    for before, now in changes.items():
        assert before in text
        text = text.replace(before, now)
    return {"meta": {key: text}}


def with_config(name: str, content: dict[str, object]) -> TensorMap:
    found = mmsegmentation.recognise(golden.read_shapes(name), output_stride=stated_stride(content))
    assert found is not None
    return mmsegmentation.apply_config(found, content)


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_the_config_of_a_file_says_rates_stride_and_corners(key: str) -> None:
    """Of Cityscapes at 769x769 all configs align corners."""
    name = "mmseg_deeplabv3_resnet50_v1c"
    plain = mmsegmentation.recognise(golden.read_shapes(name), output_stride=None)
    assert plain is not None
    same = with_config(name, stated({}, key=key))
    assert (same.options, same.output_stride) == (plain.options, 8)

    changes = {**AT_16, "12, 24, 36": "6, 12, 18", "align_corners=False": "align_corners=True"}
    at_16 = with_config(name, stated(changes, key=key))
    assert at_16.output_stride == 16
    assert at_16.options == {**plain.options, "align_corners": True}
    assert "rates 6, 12, 18 at output stride 16" in at_16.notes and mmsegmentation.NOT_ALIGNED not in at_16.notes

    other = with_config(name, stated({"12, 24, 36": "6, 12, 24"}, key=key))
    assert (other.output_stride, other.options["aspp_rates"]) == (8, (3, 6, 12))
    assert other.model().settings.align_corners is False


def test_a_stride_that_is_asked_for_keeps_what_the_rates_see() -> None:
    shapes = golden.read_shapes("mmseg_deeplabv3_resnet50_v1c")
    found = mmsegmentation.recognise(shapes, output_stride=16)
    assert found is not None
    found = mmsegmentation.apply_config(found, stated({"12, 24, 36": "6, 12, 24"}))
    assert (found.output_stride, found.options["aspp_rates"]) == (16, (3, 6, 12))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"style='pytorch'": "style='caffe'"}, "backbone.style is 'caffe'; only 'pytorch' can"),
        ({"contract_dilation=True": "contract_dilation=False"}, "backbone.contract_dilation is False; only True can"),
        ({"contract_dilation=True": "multi_grid=None"}, "backbone.contract_dilation is False; only True can"),
        ({"depth=50": "multi_grid=(1, 2, 4)"}, "backbone.multi_grid is (1, 2, 4); only None can be converted"),
        ({"depth=50": "multi_grid=grid"}, "backbone.multi_grid is Ellipsis; only None can be converted"),
        ({"(1, 1, 2, 4)": "(1, 1, 1, 2)"}, "is ((1, 2, 1, 1), (1, 1, 1, 2)); only those of output strides 8 and 16"),
        ({"strides=(1, 2, 1, 1),": "", "dilations=(1, 1, 2, 4),": ""}, "is ((1, 2, 2, 2), (1, 1, 1, 1)); only those"),
        ({"align_corners=False": "align_corners=0"}, "decode_head.align_corners is 0; only True and False"),
        ({"(1, 12, 24, 36)": "(6, 12, 18, 24)"}, "decode_head.dilations is (6, 12, 18, 24); give three whole numbers"),
        ({"(1, 12, 24, 36)": "12"}, "decode_head.dilations is 12; give three whole numbers"),
        ({"(1, 12, 24, 36)": "(1, 11, 24, 36)"}, "decode_head.dilations is [11, 24, 36]; at output stride 8 only"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_name(changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=r"^meta: ") as caught:
        with_config("mmseg_deeplabv3_resnet50_v1c", stated(changes))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model = dict(",
        "model = __import__('os').abort()",
        "model = dict([('backbone', dict(multi_grid=1))], a=1)",
        "models = dict(backbone=dict(multi_grid=1))",
        "data = dict(model=dict(backbone=dict(multi_grid=1)))",
        "/configs/deeplabv3.py\nmodel = dict(backbone=dict(multi_grid=1))",
        "model = dict(backbone=7, decode_head=[])",
        "model = dict(backbone=dict(multi_grid=1))" + " " * LONGEST_CONFIG,
        "(" * 100_000,
        "model = " + "-" * 100_000 + "1",
        "a." * 50_000 + "b",
        "model = 1\0",
        7,
        None,
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_a_config_that_says_nothing_changes_nothing(text: object) -> None:
    name = "mmseg_pspnet_resnet18_v1c"
    plain, found = with_config(name, {}), with_config(name, {"meta": {"config": text}})
    assert (found.options, found.output_stride, found.notes) == (plain.options, 8, plain.notes)


def test_a_config_is_read_without_being_run(recwarn: pytest.WarningsRecorder) -> None:
    text = "model = {'a': (1, [2, None]), b: 3, **c, 'd': dict(e='f'), 'g': h(), 'i': -1}; pattern = '\\d'"
    assert network_of({"meta": {"cfg": text}}) == {"a": (1, (2, None)), "d": {"e": "f"}, "g": ..., "i": ...}
    assert not recwarn.list


def test_a_file_with_its_config() -> None:
    content = {"meta": {"CLASSES": tuple("abcdef"), **stated({**AT_16, "=False": "=True"})["meta"]}}
    model, _, info = convert({**content, "state_dict": generate("mmseg_pspnet_resnet18_v1c")})
    assert (model.output_stride, model.settings.align_corners) == (16, True)
    assert info["class_names"] == list("abcdef")
    for unfit in ({**AT_16, "style='pytorch'": "style='caffe'"}, {"depth=50": "multi_grid=(1, 2, 4)"}):
        with pytest.raises(UserError, match=r"^state dict: meta: backbone\.(style|multi_grid) is "):
            convert({**stated(unfit), "state_dict": generate("mmseg_pspnet_resnet18_v1c")})


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
