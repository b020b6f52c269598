"""KerasHub's DeepLabV3Plus on JAX: logits of presets that it saved itself.

Keras runs on JAX only where nothing has imported it with another back end. Its projection of the pyramid trains unless
`training=False` is said.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deeplab_jax.weights.convert import convert
from tests.peers.parity import assert_same_map, import_peer, random_images

os.environ.setdefault("KERAS_BACKEND", "jax")
keras, keras_hub = import_peer("keras"), import_peer("keras_hub")

RESNETS = {
    "resnet18": ((2, 2, 2, 2), "basic_block"),
    "resnet34": ((3, 4, 6, 3), "basic_block"),
    "resnet50": ((3, 4, 6, 3), "bottleneck_block"),
    "resnet101": ((3, 4, 23, 3), "bottleneck_block"),
}
# Keras's variables do not know numpy 2's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCALE, OFFSET = [0.017, 0.0175, 0.0174], [-2.1, -2.0, -1.8]


def make(encoder: str, *, stage: int, low: int, size: tuple[int, int], rates: tuple[int, ...], classes: int) -> Any:
    blocks, kind = RESNETS[encoder]
    shape = (*size, 3)
    image_encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=kind,
        image_shape=shape,
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=image_encoder,
        projection_filters=48,
        low_level_feature_key=f"P{low}",
        spatial_pyramid_pooling_key=f"P{stage}",
        upsampling_size=2 ** (stage - low),
        dilation_rates=list(rates),
        image_shape=shape,
    )
    converter = keras_hub.layers.DeepLabV3ImageConverter(image_size=size, scale=SCALE, offset=OFFSET)
    preprocessor = keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(converter)
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=classes, preprocessor=preprocessor)


def randomise(network: Any) -> None:
    rng = np.random.default_rng(0)
    for variable in network.weights:
        normal = rng.normal(size=variable.shape)
        kinds = {
            "kernel": normal * (2 / np.prod(variable.shape[:-1])) ** 0.5,
            "gamma": 1 + 0.2 * normal,
            "moving_variance": np.exp(0.3 * normal),
        }
        variable.assign(kinds.get(variable.name, 0.1 * normal))


CASES = [
    ("resnet18", 3, 2, (104, 136), (6, 12, 18)),
    ("resnet18", 4, 2, (112, 144), (2, 4, 6)),
    ("resnet18", 5, 3, (96, 160), (6, 12, 18)),
    ("resnet34", 5, 2, (96, 160), (6, 12, 18)),
    ("resnet50", 5, 2, (96, 160), (6, 12, 18)),
    ("resnet101", 4, 2, (112, 144), (6, 12, 18)),
]


@pytest.mark.parametrize(
    ("encoder", "stage", "low", "size", "rates"),
    [pytest.param(*case, marks=pytest.mark.slow if index else ()) for index, case in enumerate(CASES)],
)
def test_logits(
    encoder: str, stage: int, low: int, size: tuple[int, int], rates: tuple[int, ...], tmp_path: Path
) -> None:
    peer = make(encoder, stage=stage, low=low, size=size, rates=rates, classes=5)
    randomise(peer)
    peer.save_to_preset(str(tmp_path / "preset"))

    model, variables, info = convert(tmp_path / "preset")

    assert (model.output_stride, info["source"]["kind"], info["source"]["random"]) == (2**stage, "keras_hub", [])
    images = random_images(*size)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert_same_map(ours, np.asarray(peer(images, training=False)))
    # What comes before the network is the same, too.
    pixels = np.random.default_rng(1).integers(0, 256, (1, *size, 3), np.uint8)
    theirs = np.asarray(peer.preprocessor.image_converter(pixels.astype(np.float32)))
    np.testing.assert_allclose(model.preprocessing(pixels), theirs, atol=1e-4)
