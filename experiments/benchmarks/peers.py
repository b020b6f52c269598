"""The PyTorch side: building a peer with random weights, its inference and its training step."""

import copy
import functools
import gc
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import numpy as np

from deeplab_jax import convert
from deeplab_jax.models.segmenter import Segmenter, Variables
from experiments.benchmarks import machine, networks
from experiments.benchmarks.networks import Network
from experiments.benchmarks.timing import Contestant

INSTALL = "`make peers` installs it"
FORMATS = ("nchw", "channels_last")


@functools.cache
def missing(package: str) -> str | None:
    """Say why a peer cannot be measured beside ours, in one line; None where it can."""
    for name in ("torch", package):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: {INSTALL}"
    if machine.platform() != "cpu" and not torch().cuda.is_available():
        return f"JAX runs on {machine.platform()}, PyTorch does not see it: install PyTorch for that device"
    return None


@functools.cache
def torch() -> Any:
    """Import PyTorch, with as many threads as there are processors."""
    # The CPU build of PyTorch comes without torchvision's compiled operations, which no network here uses.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    module = importlib.import_module("torch")
    module.set_num_threads(machine.cores())
    # Products of float32 on tensor cores, as its convolutions and all of JAX have it; without a GPU it changes nothing.
    module.set_float32_matmul_precision("high" if machine.platform() == "gpu" else "highest")
    module.backends.cudnn.benchmark = True  # cuDNN tries its algorithms for each shape, as XLA does.
    return module


def device() -> str:
    """Return PyTorch's name of the device that JAX runs on."""
    return "cpu" if machine.platform() == "cpu" else "cuda"


def dtype(name: str) -> Any:
    """Return PyTorch's dtype of that name."""
    return getattr(torch(), name)


def blocking(call: Contestant) -> Contestant:
    """Let a function return when the device has done its work."""
    if device() == "cpu":
        return call

    def blocked() -> Any:
        result = call()
        torch().cuda.synchronize()
        return result

    return blocked


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 products in float32, which only a GPU would do otherwise, on both sides."""
    if device() == "cpu":
        yield
        return
    cudnn, before = torch().backends.cudnn, torch().get_float32_matmul_precision()
    allowed, cudnn.allow_tf32 = cudnn.allow_tf32, False
    torch().set_float32_matmul_precision("highest")
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        cudnn.allow_tf32 = allowed
        torch().set_float32_matmul_precision(before)


def build(network: Network) -> Any:
    """Build a peer with random weights and statistics, on its device, in evaluation mode."""
    assert network.peer is not None
    package, path, arguments = network.peer
    torch()
    importlib.import_module(f"{package}.{path.rsplit('.', 1)[0]}" if "." in path else package)
    make: Any = functools.reduce(getattr, path.split("."), sys.modules[package])
    return randomise(make(**arguments)).eval()


def randomise(peer: Any) -> Any:
    """Give a network He-normal kernels, and batch norms whose statistics and affine maps are not the identity."""
    t = torch()
    generator = t.Generator().manual_seed(0)
    # Standard deviation and mean of each tensor of a batch norm; the variance is log-normal.
    affine = {"weight": (0.2, 1.0), "bias": (0.1, 0.0), "running_mean": (0.1, 0.0), "running_var": (0.3, 0.0)}
    with t.no_grad():
        for module in peer.modules():
            if isinstance(module, t.nn.Conv2d):
                module.weight.normal_(0.0, (2.0 / module.weight[0].numel()) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.1, generator=generator)
            elif isinstance(module, t.nn.BatchNorm2d):
                for name, (deviation, mean) in affine.items():
                    getattr(module, name).normal_(mean, deviation, generator=generator)
                module.running_var.exp_()
    return peer


def converted(network: Network, peer: Any) -> tuple[Segmenter, Variables]:
    """Convert a peer's weights, before it is moved to another device.

    Raises:
      AssertionError: the result is another network than the table's.
    """
    tensors = {name: tensor.cpu().numpy() for name, tensor in peer.state_dict().items()}
    model, variables, _ = convert(tensors, output_stride=network.output_stride)
    ours = networks.create(network)
    assert model.clone(recipe="") == ours.clone(recipe=""), f"the table describes another network than {network.name}"
    return model, variables


def logits(output: Any) -> Any:
    """Return the logits `[N, C, H, W]` of what a peer returns."""
    return output["out"] if isinstance(output, dict) else output


def on_device(peer: Any, memory: str, precision: str = "float32") -> Any:
    """Return a copy of a network on the device, in a memory format ("nchw", "channels_last") and dtype."""
    return copy.deepcopy(peer).to(device=device(), dtype=dtype(precision), memory_format=_format(memory))


def images_for(images: np.ndarray, memory: str, precision: str = "float32") -> Any:
    """Return images `[N, H, W, C]` as a tensor `[N, C, H, W]` on the device, in a memory format and dtype."""
    tensor = torch().from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor.to(device=device(), dtype=dtype(precision)).contiguous(memory_format=_format(memory))


def inference(peer: Any, images: np.ndarray, *, memory: str, precision: str, compiled: bool = False) -> Contestant:
    """Return a function that computes the logits of images `[N, H, W, 3]`."""
    network, inputs = on_device(peer, memory, precision), images_for(images, memory, precision)
    network = torch().compile(network) if compiled else network

    def run() -> Any:
        with torch().inference_mode():
            return logits(network(inputs))

    return blocking(run)


def training(
    peer: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    memory: str,
    precision: str,
    compiled: bool = False,
) -> Contestant:
    """Return a function that does one training step of a copy of a peer, with float32 parameters, and returns the loss
    before it.

    `images` are preprocessed, float32 `[N, H, W, 3]`, and `labels` `[N, H, W]`, 255 ignored. With "bfloat16" the
    forward pass runs under autocast.
    """
    t = torch()
    trained = on_device(peer, memory).train()
    network = t.compile(trained) if compiled else trained
    inputs, targets = images_for(images, memory), t.from_numpy(labels.astype(np.int64)).to(device())
    optimizer = t.optim.SGD(
        trained.parameters(),
        lr=networks.LEARNING_RATE,
        momentum=networks.MOMENTUM,
        weight_decay=networks.WEIGHT_DECAY,
    )

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(precision):
            loss = t.nn.functional.cross_entropy(logits(network(inputs)), targets, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return blocking(step)


def without_dropout(peer: Any) -> Any:
    """Return a copy of a network that drops nothing."""
    result = copy.deepcopy(peer)
    for module in result.modules():
        if isinstance(module, torch().nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return result


def forget_compiled() -> None:
    """Drop what `torch.compile` keeps, and the memory of a GPU that nothing uses."""
    torch()._dynamo.reset()
    if torch().cuda.is_available():
        gc.collect()
        torch().cuda.empty_cache()


def _format(memory: str) -> Any:
    return {"nchw": torch().contiguous_format, "channels_last": torch().channels_last}[memory]


def _autocast(precision: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "float32" else torch().autocast(device(), dtype=dtype(precision))
