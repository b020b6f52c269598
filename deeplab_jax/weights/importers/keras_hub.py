"""KerasHub's DeepLabV3Plus: a `DeepLabV3Backbone` with a decoder on its ResNets, alone or in an image segmenter.

Keras numbers the layers of a kind in the order in which the network is built, so a layer's name here is a number. Each
residual unit builds its projection just before its last convolution.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.weights.formats.keras_weights import TASK
from deeplab_jax.weights.importers.torch_names import RESNETS
from deeplab_jax.weights.tensor_map import KERAS, Names, Rule, Shapes, TensorMap

KIND = "keras_hub"
PYRAMID = "layers/spatial_pyramid_pooling/"
BRANCHES = f"{PYRAMID}aspp_parallel_channels/sequential"
# Where the encoder's layers stand, by the version of Keras that wrote the file.
ENCODERS = ("layers/functional/layers/", "image_encoder/layers/")
# Where the classifier stands in the task's file, likewise.
CLASSIFIERS = (f"{TASK}layers/conv2d/kernel", f"{TASK}output_conv/kernel")
CLASSES = 21  # For a backbone without a task.
RATES = (6, 12, 18)
"""At any output stride: those of the published preset, unless `config.json` states others."""
BACKBONE_EPSILON, HEAD_EPSILON = 1e-5, 1e-3


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe the weights of a DeepLabV3Plus preset; return None for any other network.

    Raises:
      UserError: a DeepLabV3 of KerasHub that this package does not have, or another output stride than its own.
    """
    encoder = next((root for root in ENCODERS if f"{root}conv2d/kernel" in shapes), None)
    if encoder is None or f"{PYRAMID}projection/layers/conv2d/kernel" not in shapes:
        return None
    backbone = _which_resnet(shapes, encoder)
    channels = 4 if RESNETS[backbone][1] else 1
    stages = {64 * channels: "conv2", 128 * channels: "conv3", 256 * channels: "conv4", 512 * channels: "conv5"}
    names = (f"{BRANCHES}/layers/conv2d", "layers/conv2d", "layers/conv2d_1")
    branch, reduction, merge = (_kernel(shapes, f"{name}/kernel") for name in names)
    if not merge or not reduction:
        raise UserError(
            "a DeepLabV3 of KerasHub without low-level features: it has a convolution between two resizes, which no "
            "network here has; only its DeepLabV3Plus can be converted"
        )
    last, low = stages.get(branch[2]) if branch else None, stages.get(reduction[2])
    if not branch or last not in ("conv3", "conv4", "conv5") or low not in ("conv2", "conv3") or low >= last:
        raise UserError("a DeepLabV3Plus of KerasHub on other stages than P2 or P3 with a pyramid on P3, P4 or P5")
    stride = 2 ** int(last[-1])
    if output_stride not in (None, stride):
        raise UserError(f"output_stride={output_stride}: this network of KerasHub runs at {stride}; leave it out")
    classifier = next((name for name in CLASSIFIERS if _kernel(shapes, name)), None)
    return TensorMap(
        kind=KIND,
        name=f"deeplabv3plus_{backbone}",
        num_classes=shapes[classifier][-1] if classifier else CLASSES,
        output_stride=stride,
        options={
            "align_corners": False,
            "multi_grid": (1,) * RESNETS[backbone][0][3],
            "last_stage": last,
            "norm_epsilon": BACKBONE_EPSILON,
            "norm_momentum": 0.9,
            "aspp_rates": tuple(rate * stride // 16 for rate in RATES),
            "aspp_channels": branch[-1],
            "low_level": (low,),
            "low_level_channels": reduction[-1],
            "decoder_convs": ((1, merge[-1]),),
        },
        rules=_rules(backbone, encoder, classifier or "", low),
        layout=KERAS,
        unused=(rf"^{TASK}", *((rf"^{encoder}",) if last < "conv5" else ())),  # The encoder keeps all of its stages.
        absent=() if classifier else (r"classifier/",),
        notes=(
            f"rates {', '.join(map(str, RATES))} at its output stride of {stride}",
            "one 1x1 convolution in the decoder, and no bias in the classifier",
            "running statistics decay by 0.9 in the head too, KerasHub's there by 0.99",
            "the head's variances are larger by 0.00099, which is what its epsilon of 0.001 does; in further training "
            "its epsilon is 0.00001",
        ),
        prepare=partial(_prepare, classifier=classifier, encoder=encoder),
    )


def _kernel(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Return the shape of a convolution's kernel, () if there is none."""
    shape = shapes.get(name, ())
    return shape if len(shape) == 4 else ()


def _which_resnet(shapes: Shapes, encoder: str) -> str:
    """Return the name of the ResNet whose convolutions these are."""
    kernels = {key for key in shapes if key.startswith(encoder) and key.endswith("/kernel")}
    for name, (units, bottleneck) in RESNETS.items():
        per_unit, projections = (3, 4) if bottleneck else (2, 3)
        count = 1 + per_unit * sum(units) + projections
        wanted = {encoder + _numbered("conv2d", index) + "/kernel" for index in range(count)}
        if wanted != kernels or shapes[f"{encoder}conv2d/kernel"][:2] != (7, 7):
            continue
        norms = f"{encoder}{_numbered('batch_normalization', count - 1)}/gamma" in shapes  # Fewer before activations.
        if norms and (shapes[f"{encoder}conv2d_1/kernel"][:2] == (1, 1)) == bottleneck:
            return name
    raise UserError(f"KerasHub: the encoder is none of {', '.join(RESNETS)}; only these can be converted")


def _numbered(kind: str, index: int) -> str:
    return f"{kind}_{index}" if index else kind


def _named(scope: str, index: int = 0) -> Names:
    return scope + _numbered("conv2d", index), scope + _numbered("batch_normalization", index)


def numbers_of(backbone: str) -> Mapping[tuple[int, int, str], int]:
    """Return the number of each convolution, by its stage, unit and our name."""
    units, bottleneck = RESNETS[backbone]
    found: dict[tuple[int, int, str], int] = {}
    last = 3 if bottleneck else 2
    for stage, count in enumerate(units, 2):
        for unit in range(1, count + 1):
            names = [f"conv{number}" for number in range(1, last + 1)]
            if unit == 1 and (bottleneck or stage > 2):
                names.insert(-1, "shortcut")
            for name in names:
                found[stage, unit, name] = len(found) + 1
    return found


def _rules(backbone: str, encoder: str, classifier: str, low: str) -> tuple[Rule, ...]:
    indices = numbers_of(backbone)

    def branch(index: int) -> Names:
        return _named(f"{_numbered(BRANCHES, index)}/layers/")

    return (
        (r"backbone/conv1", _named(encoder)),
        (r"backbone/conv(\d)_unit(\d+)/(conv\d|shortcut)", lambda s, u, name: _named(encoder, indices[s, u, name])),
        (r"context/branch_1x1", branch(0)),
        (r"context/branch_atrous(\d)", branch),
        (r"context/image_pooling", branch(4)),
        (r"context/projection", _named(f"{PYRAMID}projection/layers/")),
        (rf"decoder/{low}_reduction", _named("layers/")),
        (rf"decoder/{low}_conv1", _named("layers/", 1)),
        (r"classifier", (classifier.removesuffix("/kernel"), "")),
    )


def _prepare(tensors: Mapping[str, np.ndarray], *, classifier: str | None, encoder: str) -> dict[str, np.ndarray]:
    """Return the tensors with one epsilon for all norms, and with a bias of the classifier.

    A variance and its epsilon are only used as a sum.
    """
    prepared = {
        name: value + np.float32(HEAD_EPSILON - BACKBONE_EPSILON)
        if name.endswith("/moving_variance") and not name.startswith(encoder)
        else value
        for name, value in tensors.items()
    }
    if classifier:
        bias = classifier.removesuffix("kernel") + "bias"
        prepared.setdefault(bias, np.zeros(tensors[classifier].shape[-1], np.float32))
    return prepared
