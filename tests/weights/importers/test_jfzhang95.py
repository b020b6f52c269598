"""jfzhang95/pytorch-deeplab-xception, which cannot be installed: its networks' outputs are kept in `golden`.

They are of its commit 9135e104a7a51ea9effa9c6676a2fcffe6a6a2e6: the network
`modeling.deeplab.DeepLab(backbone=NAME, output_stride=..., num_classes=21, sync_bn=False)`, whose backbone was kept
from fetching ImageNet weights (`_load_pretrained_model` replaced), loaded with `golden.generate` of its tensors' names
and shapes, in `eval()`, applied to `golden.images`. Its MobileNetV2 holds every tensor of the backbone under two names;
they got different values, of which the last loaded counts.
"""

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.weights.importers import jfzhang95, vainf
from tests.weights.importers import golden

# Golden file, our name.
NETWORKS = [
    ("jfzhang95_resnet", "deeplabv3plus_resnet101"),
    ("jfzhang95_mobilenet", "deeplabv3plus_mobilenet_v2"),
    ("jfzhang95_xception", "deeplabv3plus_xception65"),
]
FAST = [("jfzhang95_mobilenet", 8, (97, 131))]
ALL = [(name, stride, size) for name, _ in NETWORKS for stride in (16, 8) for size in ((97, 131), (321, 241))]


@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in ALL],
)
def test_logits(name: str, output_stride: int, size: tuple[int, int]) -> None:
    tensors = golden.generate(golden.read_shapes(name))
    golden.assert_converted(tensors, name, kind="jfzhang95", output_stride=output_stride, size=size)


@pytest.mark.parametrize(("name", "ours"), NETWORKS)
def test_networks_are_told_by_their_tensors(name: str, ours: str) -> None:
    shapes = golden.read_shapes(name)
    tensor_map = jfzhang95.recognise(shapes, output_stride=None)
    assert tensor_map is not None
    assert (tensor_map.name, tensor_map.num_classes, tensor_map.output_stride) == (ours, 21, 16)
    preprocessing = tensor_map.model().preprocessing
    assert preprocessing.value_range == (0.0, 1.0)
    assert preprocessing.std == (0.229, 0.224, 0.225)
    assert vainf.recognise(shapes, output_stride=None) is None


def test_drn_is_refused_by_name() -> None:
    shapes = golden.read_shapes("jfzhang95_mobilenet")
    with pytest.raises(UserError, match="DRN"):
        jfzhang95.recognise({**shapes, "backbone.layer0.0.weight": (16, 3, 7, 7)}, output_stride=None)


def test_output_strides_that_it_does_not_have_are_refused() -> None:
    shapes = golden.read_shapes("jfzhang95_mobilenet")
    with pytest.raises(UserError, match="run at 8 or 16"):
        jfzhang95.recognise(shapes, output_stride=32)


def test_an_unknown_backbone_is_not_claimed() -> None:
    shapes = golden.read_shapes("jfzhang95_mobilenet")
    head = {name: shape for name, shape in shapes.items() if not name.startswith("backbone.")}
    assert jfzhang95.recognise(head, output_stride=None) is None
