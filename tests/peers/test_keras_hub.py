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
from experiments.benchmarks.keras_hub import build, randomise
from tests.peers.parity import assert_same_map, import_peer, random_images

os.environ.setdefault("KERAS_BACKEND", "jax")
import_peer("keras")
keras_hub = import_peer("keras_hub")

# Keras's variables do not know numpy 2's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCALE, OFFSET = [0.017, 0.0175, 0.0174], [-2.1, -2.0, -1.8]


def preprocessor(size: tuple[int, int]) -> Any:
    converter = keras_hub.layers.DeepLabV3ImageConverter(image_size=size, scale=SCALE, offset=OFFSET)
    return keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(converter)


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
    peer = build(encoder, stage=stage, low=low, size=size, rates=rates, classes=5, preprocessor=preprocessor(size))
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
