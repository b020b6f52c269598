"""Lite R-ASPP: torchvision's count, and the gate, the resize and the sum by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.decoders.lraspp import LiteRASPP
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.models.segmenter import abstract_variables
from tests.support.traces import parameter_count

NAME = "lraspp_mobilenet_v3_large"
BARE = LayerSettings(norm="none", align_corners=False)


def test_parameter_count_of_torchvision() -> None:
    params = abstract_variables(create_model(NAME))["params"]
    assert parameter_count(params) == 3_221_538
    head = {
        "/".join(key.key for key in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params["decoder"])
    }
    assert head == {
        "reduction/conv/kernel": (1, 1, 960, 128),
        "reduction/norm/batch/scale": (128,),
        "reduction/norm/batch/bias": (128,),
        "gate/kernel": (1, 1, 960, 128),
        "classifier_low/kernel": (1, 1, 40, 21),
        "classifier_low/bias": (21,),
        "classifier_high/kernel": (1, 1, 128, 21),
        "classifier_high/bias": (21,),
    }


def test_defaults() -> None:
    model = create_model(NAME)
    assert (model.output_stride, model.settings.align_corners, model.classifier_kernel) == (16, False, 0)
    assert model.backbone.settings.norm_epsilon == 1e-3


def head(**layers: Any) -> Any:
    """Variables of one channel and one class, from the values of kernels and biases."""

    def arrays(values: dict[str, Any]) -> Any:
        arrays = {key: jnp.asarray(value) for key, value in values.items()}
        return {**arrays, "kernel": arrays["kernel"].reshape(1, 1, -1, 1)}

    params = {name: arrays(values) for name, values in layers.items()}
    return {"params": {**params, "reduction": {"conv": params["reduction"]}}}


def test_by_hand() -> None:
    """A map of 2 and 6, whose average 4 opens the gate by sigmoid(4 * 0.25 - 1) = 1/2 where the second channel is 1."""
    coarse = jnp.stack([jnp.asarray([[2.0, 6.0]]), jnp.ones((1, 2))], -1)[None]
    low = jnp.asarray([[10.0, 20.0, 30.0, 40.0]])[None, :, :, None]
    variables = head(
        reduction={"kernel": (2.0, 0.0), "bias": (-6.0,)},  # ReLU(-2, 6) = 0, 6
        gate={"kernel": (0.25, -1.0)},
        classifier_low={"kernel": (1.0,), "bias": (100.0,)},
        classifier_high={"kernel": (8.0,), "bias": (1000.0,)},
    )
    module = LiteRASPP(1, 1, settings=BARE)
    logits = module.apply(variables, coarse, {"conv3": (low, 8)}, train=False)
    # Half of (0, 6) is (0, 3); between samples, without aligned corners: 0, 0.75, 2.25, 3.
    np.testing.assert_allclose(logits[0, 0, :, 0], 1100 + np.asarray([10, 20 + 6, 30 + 18, 40 + 24]), rtol=1e-6)


@pytest.mark.parametrize(("output_stride", "side"), [(4, 25), (8, 13), (16, 13), (32, 13)])
def test_logits_have_the_stride_of_conv3(output_stride: int, side: int) -> None:
    model = create_model(NAME, num_classes=3, output_stride=output_stride, width=0.25, context_channels=8)
    images = jax.ShapeDtypeStruct((1, 97, 97, 3), jnp.float32)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, method="coarse_logits"), abstract_variables(model), images)
    assert logits.shape == (1, side, side, 3)


@pytest.mark.parametrize("options", [{"aspp_channels": 8}, {"multi_grid": (1, 2, 4)}])
def test_what_has_no_meaning_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        create_model(NAME, **options)
