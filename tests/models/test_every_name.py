"""Every name: what it promises is checked on shapes for the networks as published, and in numbers for thin ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deeplab_jax.models.catalog import create_model, model_names
from deeplab_jax.models.segmenter import abstract_variables
from tests.support.traces import fill_variables

HEIGHT, WIDTH = 97, 66
# What older model folders and checkpoints hold: `tree_digest` of each name with 7 classes.
TREES = Path(__file__).with_name("parameter_trees.json")
THIN: dict[str, dict[str, Any]] = {
    "deeplabv3": {"width": 0.125, "aspp_channels": 8},
    "deeplabv3plus": {
        "width": 0.125, "aspp_channels": 8, "low_level": ("conv2", "conv3"), "low_level_channels": 4,
        "decoder_convs": ((3, 8),),
    },
    "cascade": {"width": 0.0625, "last_block": 7},
    "deeplabv2": {"width": 0.125},
    "largefov": {"width": 0.125, "fc_channels": 16},
    "fcn32s": {"width": 0.125, "fc_channels": 16},
    "fcn16s": {"width": 0.125, "fc_channels": 16},
    "fcn8s": {"width": 0.125, "fc_channels": 16},
    "fcn": {"width": 0.0625},
    "lraspp": {"width": 0.125, "context_channels": 8},
    "unet": {"width": 0.125},
    "segnet": {"width": 0.125},
    "refinenet": {"width": 0.0625, "decoder_channels": (16, 8, 8, 8)},
    "pspnet": {"width": 0.0625, "context_channels": 16},
    "parsenet": {"width": 0.125, "fc_channels": 16},
    "spp": {"width": 0.125, "context_channels": 16},
}  # fmt: skip


def thin(name: str) -> dict[str, Any]:
    options = dict(THIN[name.split("_", 1)[0]])
    if name.startswith("unet"):
        options["decoder_channels"] = (16, 8, 8, 8) if name == "unet" else (16, 8, 8, 8, 8)
    return options


def tree_digest(variables: Any) -> str:
    """A hash of the paths and shapes of all variables."""
    lines = sorted(f"{path} {leaf.shape}" for path, leaf in flatten_dict(variables, sep="/").items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _is_fast(name: str) -> bool:
    """Every kind of backbone once, under DeepLabv3, and every architecture once, on the first of its backbones."""
    architecture, _, backbone = name.partition("_")
    if architecture == "deeplabv3":
        return not backbone.startswith(("resnet101", "xception65", "xception71"))
    return next(n for n in model_names() if n.split("_", 1)[0] == architecture) == name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if _is_fast(name) else pytest.mark.slow) for name in model_names()]
)
def test_logits_and_features_have_the_promised_sizes(name: str) -> None:
    """At full width, on an odd size; nothing is computed. The names and shapes of the parameters are those of older
    model folders and checkpoints.
    """
    model = create_model(name, num_classes=7, lowering="direct")  # traced faster
    assert tree_digest(abstract_variables(model)) == json.loads(TREES.read_text())[name]
    strides: dict[str, int] = {}

    def run(variables: Any, images: jax.Array) -> Any:
        logits, captured = model.apply(variables, images, capture_intermediates=lambda _, method: method == "_features")
        (features,) = captured["intermediates"]["_features"]
        strides.update({stage: stride for stage, (_, stride) in features.items()})
        return logits, {stage: array for stage, (array, _) in features.items()}

    images = jax.ShapeDtypeStruct((2, HEIGHT, WIDTH, 3), jnp.float32)
    logits, arrays = jax.eval_shape(run, abstract_variables(model), images)
    assert (logits.shape, logits.dtype) == ((2, HEIGHT, WIDTH, 7), jnp.float32)
    for stage, array in arrays.items():
        assert array.shape[:3] == (2, -(-HEIGHT // strides[stage]), -(-WIDTH // strides[stage])), stage
    assert list(strides)[-1] == "context"
    assert strides["context"] == model.output_stride
    assert list(strides.values()) == sorted(strides.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_one_gradient_step_moves_every_parameter(name: str) -> None:
    model = create_model(name, num_classes=3, **thin(name))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, HEIGHT, WIDTH, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (2, HEIGHT, WIDTH)))
    variables = fill_variables(model, 1, 65, 65, 3)

    # MobileNet's linear projections run into the batch norm of the next expansion, which takes their shift away: their
    # own offsets matter only once the statistics are fixed.
    train = "mobilenet" not in name

    @jax.jit
    def loss_and_gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply(
                {**variables, "params": params},
                images,
                train=train,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1))

        return jax.value_and_grad(loss)(params)

    before = variables["params"]
    value, gradient = loss_and_gradient(before)
    assert np.isfinite(value)
    sizes = {path: float(jnp.max(jnp.abs(leaf))) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
    # Rounding alone gives a parameter without effect a gradient of about 1e-7 of the others.
    typical = float(np.median(list(sizes.values())))
    for path, size in sizes.items():
        assert 1e-5 * typical < size < np.inf, jax.tree_util.keystr(path)
    after = jax.tree.map(lambda p, g: p - g / typical, before, gradient)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert np.any(np.asarray(old) != np.asarray(new)), jax.tree_util.keystr(path)
