"""The official `.tflite` against LiteRT's interpreter, on random and on real images at its 257x257."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.weights.convert import convert
from tests.peers.parity import INSTALL, assert_same_map

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason=f"ai-edge-litert is not installed: {INSTALL}")
SHARED = Path(__file__).parents[3] / "shared"
FILE = SHARED / "weights" / "deeplabv3_257_mv_gpu.tflite"
SAMPLES = SHARED / "data" / "voc_samples"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE.name} is not here")


def real_image(name):
    return np.asarray(Image.open(SAMPLES / name).convert("RGB").resize((257, 257)))


def test_logits() -> None:
    model, variables, _ = convert(FILE)
    network = jax.jit(lambda x: model.apply(variables, x, train=False))
    peer = interpreter.Interpreter(str(FILE))
    peer.allocate_tensors()
    rng = np.random.default_rng(0)
    images = {str(seed): rng.integers(0, 256, (257, 257, 3), np.uint8) for seed in range(3)}
    images |= {file.name: real_image(file.name) for file in sorted(SAMPLES.glob("*_image.png"))}
    expected = {"1_image.png": "aeroplane", "23_image.png": "sheep"}
    for name, image in images.items():
        # Preprocessing is ours: what the model folder carries.
        floats = np.asarray(model.preprocessing(jax.numpy.asarray(image)))[None]
        peer.set_tensor(peer.get_input_details()[0]["index"], floats)
        peer.invoke()
        theirs = peer.get_tensor(peer.get_output_details()[0]["index"])
        ours = np.asarray(network(floats))
        assert_same_map(ours, theirs)
        if name in expected:
            classes = np.bincount(ours.argmax(-1).ravel(), minlength=21)
            assert convert(FILE)[2]["class_names"][1 + int(classes[1:].argmax())] == expected[name]
