"""Weights made from names alone, so that a golden output can be kept without the weights that led to it.

Whoever runs the peer's own code calls `generate` with its tensors' names and shapes, loads the result there, and keeps
the output; the test calls it again. The streams come from `numpy.random.RandomState`, which numpy has promised not to
change.
"""

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from deeplab_jax.weights.convert import convert
from tests.peers.parity import AGREEMENT, LOGITS

FOLDER = Path(__file__).parent / "golden"
KERNELS = ("weight", "weights", "depthwise_weights", "kernel")


def generate(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Make a state dict whose every tensor follows from its name, its shape and the seed.

    Kernels keep the scale of their inputs (He), variances are positive, and no batch norm is the identity, so that
    logits neither vanish nor overflow and every tensor matters.

    Args:
      shapes: name to shape. What a tensor is follows from the end of its name, after "." or "/": `weight` (PyTorch's
        layout, OIHW), `weights` and `depthwise_weights` (TensorFlow's, HWIO) of 4 axes are kernels, `weight` of 1 and
        `gamma` scales, `running_var` and `moving_variance` variances; whatever else there is varies around 0.
      seed: of the streams.

    Returns:
      Name to float32; `num_batches_tracked` is an int64 zero.
    """
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    kind = name.replace("/", ".").rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    normal = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if kind in KERNELS and len(shape) > 1:
        normal *= math.sqrt(2.0 / _inputs(kind, shape))
    elif kind in ("running_var", "moving_variance"):
        normal = np.exp(0.3 * normal)
    elif kind in ("weight", "gamma"):
        normal = 1.0 + 0.2 * normal
    else:
        normal = 0.1 * normal
    return np.asarray(normal, np.float32)


def _inputs(kind: str, shape: tuple[int, ...]) -> int:
    """Count the values that one output of a convolution sums."""
    if kind == "weight":
        return math.prod(shape[1:])
    return math.prod(shape[:-2]) if kind == "depthwise_weights" else math.prod(shape[:-1])


def images(height: int, width: int, *, batch: int = 1) -> np.ndarray:
    """Make preprocessed images `[N, H, W, 3]` from their size alone."""
    random = np.random.RandomState(height * 10007 + width)
    return random.standard_normal((batch, height, width, 3)).astype(np.float32)


def sample(logits: np.ndarray) -> np.ndarray:
    """Keep what a golden file keeps of logits `[N, H, W, C]`: about 9 rows and 11 columns, over the whole image."""
    rows = np.linspace(0, logits.shape[1] - 1, 9).round().astype(int)
    columns = np.linspace(0, logits.shape[2] - 1, 11).round().astype(int)
    return np.asarray(logits[:, rows][:, :, columns], np.float32)


def write_shapes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Keep the names and shapes of a peer's tensors as `golden/NAME.json.gz`."""
    path = FOLDER / f"{name}.json.gz"
    text = json.dumps({key: list(shape) for key, shape in shapes.items()}, indent=0)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return path


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Read what `write_shapes` kept."""
    text = gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes())
    return {key: tuple(shape) for key, shape in json.loads(text).items()}


def write_logits(name: str, calls: Mapping[str, np.ndarray]) -> Path:
    """Keep a peer's logits `[N, H, W, C]` as `golden/NAME.npz`: of each call a sample, and every pixel's class."""
    path = FOLDER / f"{name}.npz"
    arrays = {call: sample(logits) for call, logits in calls.items()}
    arrays |= {f"{call}_classes": logits.argmax(-1).astype(np.uint8) for call, logits in calls.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def write_features(name: str, calls: Mapping[str, np.ndarray]) -> Path:
    """Keep a peer's features `[N, h, w, C]` as `golden/NAME.npz`: of each call every 32nd channel."""
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **{call: features[..., ::32] for call, features in calls.items()})  # type: ignore[arg-type]
    return path


def assert_same_features(features: np.ndarray, name: str, call: str) -> None:
    """Compare features `[N, h, w, C]` with what `write_features` kept of a call."""
    with np.load(FOLDER / f"{name}.npz") as file:
        expected = file[call]
    ours = features[..., ::32]
    assert ours.shape == expected.shape
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    assert error <= LOGITS, f"features differ by {error:.1e} of the largest"


def assert_golden(logits: np.ndarray, name: str, call: str) -> None:
    """Compare logits `[N, H, W, C]` with what `write_logits` kept of a call."""
    with np.load(FOLDER / f"{name}.npz") as file:
        expected, classes = file[call], file[f"{call}_classes"]
    ours = sample(logits)
    assert ours.shape == expected.shape
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    agreement = np.mean(logits.argmax(-1) == classes)
    assert error <= LOGITS, f"logits differ by {error:.1e} of the largest"
    assert agreement >= AGREEMENT, f"{agreement:.4%} of the pixels have the same class"


def assert_converted(
    tensors: Mapping[str, np.ndarray], name: str, *, kind: str, output_stride: int, size: tuple[int, int]
) -> None:
    """Convert a network's generated tensors, run it, and compare its logits with the golden ones."""
    model, variables, info = convert(tensors, output_stride=output_stride)
    assert info["source"]["kind"] == kind
    assert info["source"]["random"] == []
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images(*size))
    assert_golden(np.asarray(logits), name, f"os{output_stride}_{size[0]}x{size[1]}")
