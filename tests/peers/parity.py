"""What the comparisons with PyTorch peers share: random weights and statistics, and the bound on the logits."""

import sys
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from deeplab_jax.weights.convert import convert

INSTALL = "`make peers` installs it"
LOGITS = 1e-4  # Of the peer's largest logit.
AGREEMENT = 0.9999  # Share of pixels with the same class.


def import_peer(name: str) -> Any:
    """Import a PyTorch peer, or skip the module's tests with the reason."""
    # The CPU build of PyTorch comes without torchvision's compiled operations, which no network here uses.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    return pytest.importorskip(name, reason=f"{name} is not installed: {INSTALL}")


def randomise(network: Any, seed: int = 0) -> Any:
    """Give a PyTorch network random weights, and batch norms whose statistics and affine maps are not the identity.

    Kernels keep the scale of their inputs (He), so that logits neither vanish nor overflow.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Any) -> Any:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(normal(module.weight) * (2.0 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * normal(module.bias))
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(1 + 0.2 * normal(module.weight))
                module.bias.copy_(0.1 * normal(module.bias))
                module.running_mean.copy_(0.1 * normal(module.running_mean))
                module.running_var.copy_(torch.exp(0.3 * normal(module.running_var)))
    return network.eval()


def settle(peer: Any) -> Any:
    """Give a network random weights, and move random statistics halfway to those of random images.

    Otherwise the features of MobileNetV3 grow with every unit, its gates are all open or shut, and rounding alone moves
    the logits by more than the bound.
    """
    import torch

    randomise(peer)
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    run_peer(peer.train(), random_images(65, 97, batch=2, seed=1))
    for name, buffer in peer.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return peer.eval()


def state_dict(network: Any) -> dict[str, np.ndarray]:
    """Return a network's tensors as numpy arrays."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def random_images(height: int, width: int, *, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Return preprocessed images `[N, H, W, 3]`."""
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def run_peer(network: Any, images: np.ndarray) -> Any:
    """Run a PyTorch network on images `[N, H, W, 3]`; its output stays as it is (tensors `[N, C, H, W]`)."""
    import torch

    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


def run_ours(tensors: Mapping[str, Any], images: np.ndarray, **options: Any) -> np.ndarray:
    """Convert a state dict and run the model on images; `options` are those of `convert`."""
    model, variables, _ = convert(tensors, **options)
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def assert_same_logits(ours: Any, theirs: Any) -> None:
    """Compare logits `[N, H, W, C]` with the peer's tensor `[N, C, H, W]`."""
    assert_same_map(ours, theirs.numpy().transpose(0, 2, 3, 1))


def assert_same_map(ours: Any, expected: np.ndarray) -> None:
    """Compare logits with the peer's, both `[N, H, W, C]`."""
    ours = np.asarray(ours)
    assert ours.shape == expected.shape
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    agreement = np.mean(ours.argmax(-1) == expected.argmax(-1))
    assert error <= LOGITS, f"logits differ by {error:.1e} of the largest"
    assert agreement >= AGREEMENT, f"{agreement:.4%} of the pixels have the same class"
