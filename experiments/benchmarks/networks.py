"""The networks that are compared: the peer's, and the same network of ours.

The table spells ours out. So what needs no peer (shapes, compile time) runs without one. Where the peer is
there, its converted weights must give exactly that network.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.preprocessing import IMAGENET
from deeplab_jax.models.segmenter import Segmenter, Variables, abstract_variables
from deeplab_jax.ops.lowerings import multiplies_bfloat16
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.program import jit_step
from deeplab_jax.train.schedules import make_schedule
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import summed_loss, train_step
from experiments.benchmarks.session import Session

CLASSES = 21
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 1e-4
IGNORED = 0.05  # Share of the pixels without a label, about that of PASCAL VOC's outlines.


@dataclass(frozen=True)
class Network:
    """A network under comparison.

    Attributes:
      name: of its rows.
      model: name of ours, for `create_model`.
      output_stride: of both.
      options: of ours.
      peer: (package, function or class, keyword arguments) that builds the peer; None where there is none.
      any_size: whether the peer takes images of any size, or only those that the output stride divides.
    """

    name: str
    model: str
    output_stride: int
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: tuple[str, str, Mapping[str, Any]] | None = None
    any_size: bool = True


# Where segmentation_models_pytorch's networks differ from the papers'; see `deeplab_jax/weights/README.md`.
_SMP = {
    "align_corners": True,
    "aspp_rates": (12, 24, 36),
    "depthwise_norm": False,
    "dropout": 0.5,
    "first_unit_rate": "stage",
    "head_convs": ((3, 256),),
    "norm_epsilon": 1e-5,
    "norm_momentum": 0.9,
    **IMAGENET.normalisation,
}
_SMP_PLUS = {**_SMP, "aspp_separable": True, "separable": True, "decoder_convs": ((3, 256),)}
_SMP_ARGUMENTS = {"encoder_weights": None, "classes": CLASSES, "encoder_output_stride": 16}


def _smp(head: str, encoder: str, **options: Any) -> Network:
    """Describe a network of segmentation_models_pytorch; `options` are of ours."""
    return Network(
        f"smp {head} {encoder}, OS 16",
        f"{head.lower()}_{encoder}",
        16,
        {**(_SMP_PLUS if head == "DeepLabV3Plus" else _SMP), **options},
        ("segmentation_models_pytorch", head, {"encoder_name": encoder, **_SMP_ARGUMENTS}),
        any_size=False,
    )


MOBILENET = _smp("DeepLabV3Plus", "mobilenet_v2", last_channels=1280)
RESNET50 = _smp("DeepLabV3", "resnet50", aspp_separable=False, multi_grid=(1, 1, 1))
RESNET101_PLUS = _smp("DeepLabV3Plus", "resnet101", multi_grid=(1, 1, 1))
XCEPTION65 = Network("deeplabv3plus_xception65, OS 16", "deeplabv3plus_xception65", 16)
NETWORKS = (
    Network(
        "torchvision deeplabv3_resnet101, OS 8",
        "deeplabv3_resnet101",
        8,
        {
            "align_corners": False,
            "aspp_rates": (6, 12, 18),  # of output stride 16; 8 doubles them, to torchvision's
            "dropout": 0.5,
            "head_convs": ((3, 256),),
            "multi_grid": (1, 1, 1),
            "norm_momentum": 0.9,
        },
        (
            "torchvision",
            "models.segmentation.deeplabv3_resnet101",
            {"weights": None, "weights_backbone": None, "num_classes": CLASSES, "aux_loss": None},
        ),
    ),
    RESNET50,
    RESNET101_PLUS,
    MOBILENET,
    XCEPTION65,
)
# For quick runs: one with a peer, and one that compiles in no time.
RESNET18 = _smp("DeepLabV3Plus", "resnet18", multi_grid=(1, 1))
TINY = Network(
    "deeplabv3plus_resnet18 of width 1/8, OS 16",
    "deeplabv3plus_resnet18",
    16,
    {"width": 0.125, "aspp_channels": 8, "decoder_convs": ((3, 8),)},
)
BY_NAME = {network.name: network for network in (*NETWORKS, RESNET18, TINY)}


def networks(session: Session) -> tuple[Network, ...]:
    """Return the networks to measure."""
    return (RESNET18,) if session.quick else NETWORKS


def dtypes(session: Session) -> tuple[str, ...]:
    """Return the dtypes of the activations to measure."""
    both = session.platform != "cpu" or (multiplies_bfloat16() and not session.quick)
    return ("float32", "bfloat16") if both else ("float32",)


def inference_sides(session: Session) -> tuple[int, ...]:
    """Return the sides in pixels of the square images of inference."""
    return (64, 65) if session.quick else (512, 513)


def training_batch(session: Session, network: Network) -> tuple[int, int]:
    """Return the images of a training step and their side in pixels."""
    if session.quick:
        return 2, 64
    # Of 513 pixels a peer may take 512 only; then so do we.
    return (2, 256) if session.platform == "cpu" else (16, 513 if network.any_size else 512)


def create(network: Network, **options: Any) -> Segmenter:
    """Build our network; `options` replace those of the table."""
    return create_model(
        network.model, num_classes=CLASSES, output_stride=network.output_stride, **{**network.options, **options}
    )


def random_variables(model: Segmenter) -> Variables:
    """Return He-normal kernels, and batch norms whose statistics and affine maps are not the identity, as numpy arrays.

    Made without compiling anything, so that time and memory measured afterwards are not those of an initialisation.
    """
    rng = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        values = rng.standard_normal(shape.shape, np.float32)
        kind = path[-1].key
        if kind == "kernel":
            return values * np.float32((2 / math.prod(shape.shape[:-1])) ** 0.5)
        if kind == "var":
            return np.exp(np.float32(0.3) * values)
        return np.float32(1) + np.float32(0.2) * values if kind == "scale" else np.float32(0.1) * values

    return jax.tree_util.tree_map_with_path(leaf, abstract_variables(model))


def random_images(batch: int, side: int) -> np.ndarray:
    """Return preprocessed images, float32 `[N, H, W, 3]`."""
    return np.random.default_rng(0).standard_normal((batch, side, side, 3), np.float32)


def random_examples(batch: int, side: int) -> dict[str, np.ndarray]:
    """Return a training batch: `image` uint8 `[N, H, W, 3]`, `label` uint8 `[N, H, W]` with a few pixels of 255."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (batch, side, side), np.uint8)
    labels[rng.random(labels.shape) < IGNORED] = 255
    return {"image": rng.integers(0, 256, (batch, side, side, 3), np.uint8), "label": labels}


def inference(model: Segmenter, variables: Variables) -> tuple[Any, Variables]:
    """Return the jitted logits of (variables, images), and the variables on the device, batch norm folded."""
    folded, variables = fold_norm(model, variables)
    return jax.jit(partial(folded.apply, train=False)), jax.device_put(variables)


def training_step(
    model: Segmenter, params: Any, *, remat: bool = False
) -> tuple[Any, Callable[[Variables], TrainState]]:
    """Return the jitted training step of (state, batch), as the loop makes it, and what makes its first state.

    SGD with momentum, and weight decay on every parameter as `torch.optim.SGD` has it. `params` may be shapes.
    """
    schedule = make_schedule(LEARNING_RATE, steps=1_000_000)
    optimizer = make_optimizer(params, schedule, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, no_decay=())

    def start(variables: Variables) -> TrainState:
        variables = jax.tree.map(jnp.copy, variables)  # The step donates its state, which must not be the caller's.
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            ema_params=None,
        )

    objective = partial(summed_loss, model=model, remat=remat)
    step = partial(train_step, objective=objective, optimizer=optimizer, key=jax.random.key(0))
    return jit_step(step, jax.devices()[0]), start


def training(model: Segmenter, variables: Variables, *, remat: bool = False) -> tuple[Any, TrainState]:
    """Return the jitted training step of (state, batch), and the first state."""
    step, start = training_step(model, variables["params"], remat=remat)
    return step, jax.jit(start)(variables)
