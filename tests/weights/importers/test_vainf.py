"""VainF/DeepLabV3Plus-Pytorch, which cannot be installed: its networks' outputs are kept in `golden`.

They are of its commit 4e1087de98bc49d55b9239ae92810ef7368660db: the network that
`network.modeling.__dict__[NAME](num_classes=21, output_stride=..., pretrained_backbone=False)` returns (separable:
after `network.convert_to_separable_conv(model.classifier)`), loaded with `golden.generate` of its tensors' names and
shapes, in `eval()`, applied to `golden.images`. At output stride 8 its Xception cannot take 97x131, hence 121x155.
"""

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.importers import jfzhang95, vainf
from tests.weights.importers import golden

# Golden file, our name.
NETWORKS = [
    ("vainf_deeplabv3_resnet50", "deeplabv3_resnet50"),
    ("vainf_deeplabv3_resnet101", "deeplabv3_resnet101"),
    ("vainf_deeplabv3_mobilenet", "deeplabv3_mobilenet_v2"),
    ("vainf_deeplabv3_xception", "deeplabv3_xception41"),
    ("vainf_deeplabv3plus_resnet50", "deeplabv3plus_resnet50"),
    ("vainf_deeplabv3plus_resnet101", "deeplabv3plus_resnet101"),
    ("vainf_deeplabv3plus_mobilenet", "deeplabv3plus_mobilenet_v2"),
    ("vainf_deeplabv3plus_mobilenet_separable", "deeplabv3plus_mobilenet_v2"),
    ("vainf_deeplabv3plus_xception", "deeplabv3plus_xception41"),
]
FAST = [("vainf_deeplabv3_xception", 16, (97, 131))]  # `test_one_logit` has the separable one.
ALL = [
    (name, stride, size)
    for name, _ in NETWORKS
    for stride in (16, 8)
    for size in ((121, 155) if "xception" in name and stride == 8 else (97, 131), (321, 241))
]


@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in ALL],
)
def test_logits(name: str, output_stride: int, size: tuple[int, int]) -> None:
    tensors = golden.generate(golden.read_shapes(name))
    golden.assert_converted(tensors, name, kind="vainf", output_stride=output_stride, size=size)


@pytest.mark.parametrize(("name", "ours"), NETWORKS)
def test_networks_are_told_by_their_tensors(name: str, ours: str) -> None:
    shapes = golden.read_shapes(name)
    tensor_map = vainf.recognise(shapes, output_stride=None)
    assert tensor_map is not None
    assert (tensor_map.name, tensor_map.num_classes, tensor_map.output_stride) == (ours, 21, 16)
    assert tensor_map.options["separable"] == name.endswith("separable")
    preprocessing = tensor_map.model().preprocessing
    assert preprocessing.value_range == (0.0, 1.0)
    assert preprocessing.std == (0.229, 0.224, 0.225)
    assert jfzhang95.recognise(shapes, output_stride=None) is None


def test_hrnet_is_refused_by_name() -> None:
    shapes = golden.read_shapes("vainf_deeplabv3plus_resnet50")
    with pytest.raises(UserError, match="HRNetV2"):
        vainf.recognise({**shapes, "backbone.transition1.0.0.weight": (48, 256, 3, 3)}, output_stride=None)


def test_output_strides_that_it_does_not_have_are_refused() -> None:
    shapes = golden.read_shapes("vainf_deeplabv3plus_resnet50")
    with pytest.raises(UserError, match="run at 8 or 16"):
        vainf.recognise(shapes, output_stride=32)


def test_an_unknown_backbone_is_not_claimed() -> None:
    shapes = golden.read_shapes("vainf_deeplabv3plus_resnet50")
    head = {name: shape for name, shape in shapes.items() if name.startswith("classifier.")}
    assert vainf.recognise(head, output_stride=None) is None
