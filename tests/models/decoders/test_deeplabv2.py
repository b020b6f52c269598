"""DeepLabv2's summed pyramid and DeepLabv1's LargeFOV: sums by hand, rates at every output stride, no normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.decoders.deeplabv2 import SummedPyramid
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.ops.observe import Convolution, observe_convolutions
from tests.support.params import first_fast
from tests.support.traces import fill_variables, variable_shapes


def head_convolutions(name: str, output_stride: int, backbone_convolutions: int, **options: Any) -> list[Convolution]:
    """What the model calls after its backbone, at the output stride that it was built for."""
    model = create_model(name, output_stride=output_stride, width=1 / 16, **options)
    seen: list[Convolution] = []
    x = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    with observe_convolutions(seen.append):
        jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    return seen[backbone_convolutions:]


def test_the_logits_are_a_sum_over_rates_by_hand() -> None:
    """An impulse of 2: each branch repeats it at its rate's distance, with its own weight and bias."""
    module = SummedPyramid(1, aspp_rates=(2, 6), settings=LayerSettings())
    variables = {
        "params": {
            "classifier_branch1": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.asarray([10.0])},
            "classifier_branch2": {"kernel": jnp.full((3, 3, 1, 1), 2.0), "bias": jnp.asarray([1.0])},
        }
    }
    x = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4].set(2.0)
    # At output stride 16 the rates are 1 and 3.
    expected = np.full((9, 9), 11.0)
    expected[3:6, 3:6] += 2
    expected[1::3, 1::3] += 4
    y = module.apply(variables, x, {"context": (x, 16)}, train=False)
    np.testing.assert_array_equal(y[0, :, :, 0], expected)


@pytest.mark.parametrize(("output_stride", "rates"), first_fast([(16, [3, 6, 9, 12]), (8, [6, 12, 18, 24])]))
def test_rates_of_deeplabv2_on_resnet(output_stride: int, rates: list[int]) -> None:
    """Four 3x3 convolutions from conv5 to the logits, and nothing else; 104 convolutions in a ResNet-101."""
    found = head_convolutions("deeplabv2_resnet101", output_stride, 104)
    assert [(c.kernel, c.rate) for c in found] == [((3, 3, 128, 21), rate) for rate in rates]


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [6, 12, 18, 24]), (16, [3, 6, 9, 12])])
def test_rates_of_deeplabv2_on_vgg(output_stride: int, rates: list[int]) -> None:
    found = head_convolutions("deeplabv2_vgg16", output_stride, 13, fc_channels=5)
    kernels = [(3, 3, 32, 5), (1, 1, 5, 5), (1, 1, 5, 21)]
    assert [(c.kernel, c.rate) for c in found] == [
        (kernel, rate if kernel[0] == 3 else 1) for rate in rates for kernel in kernels
    ]


@pytest.mark.parametrize(("output_stride", "rate"), [(4, 24), (8, 12), (16, 6), (32, 3)])
def test_the_rate_of_largefov(output_stride: int, rate: int) -> None:
    found = head_convolutions("largefov_vgg16", output_stride, 13, fc_channels=5)
    assert [(c.kernel, c.rate) for c in found] == [((3, 3, 32, 5), rate), ((1, 1, 5, 5), 1), ((1, 1, 5, 21), 1)]


def test_parameters_of_the_heads() -> None:
    """As published: on VGG-16 each branch has fc6 and fc7 of 1024; on ResNet-101 it is one convolution."""
    fc6, fc7, logits = 3 * 3 * 512 * 1024 + 1024, 1024 * 1024 + 1024, 1024 * 21 + 21

    def counts(name: str) -> dict[str, int]:
        variables = variable_shapes(create_model(name, lowering="direct"), 1, 33, 33, 3)
        # No normalisation, so a bias after every kernel.
        assert set(variables.get("batch_stats", {})) <= {"backbone"}
        heads = {key: tree for key, tree in variables["params"].items() if key != "backbone"}
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(heads)]
        assert sorted({path.rpartition("[")[0] for path in paths if path.endswith("['bias']")}) == sorted(
            path.rpartition("[")[0] for path in paths if path.endswith("['kernel']")
        )
        assert all(path.endswith(("['bias']", "['kernel']")) for path in paths)
        return {key: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for key, tree in heads.items()}

    assert counts("deeplabv2_vgg16") == {"decoder": 4 * (fc6 + fc7 + logits)}
    assert counts("deeplabv2_resnet101") == {"decoder": 4 * (3 * 3 * 2048 * 21 + 21)}
    assert counts("largefov_vgg16") == {"context": fc6 + fc7, "classifier": logits}


def test_logits_at_stride_8_subsampled_are_those_at_16() -> None:
    """Poolings and branches turn their strides into rates alike; no normalisation or image-level feature is between."""
    model = create_model("deeplabv2_vgg16", num_classes=2, width=1 / 64, fc_channels=3, aspp_rates=(2, 4))
    variables = fill_variables(model, 1, 50, 37, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 37, 3)), jnp.float32)

    def logits(output_stride: int) -> jax.Array:
        network = model.clone(output_stride=output_stride)
        return jax.jit(lambda v, x: network.apply(v, x, method="coarse_logits"))(variables, x)

    fine, coarse = logits(8), logits(16)
    assert coarse.shape == (1, 4, 3, 2)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-5 * float(jnp.max(jnp.abs(coarse))))
    assert float(jnp.std(coarse)) > 1e-3


def test_a_rate_of_no_whole_number_of_samples_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"fc_rate=6 \(stated at output stride 8\) gives no whole rates at output stride 32"
    ):
        create_model("deeplabv2_vgg16", width=1 / 64, fc_channels=1, output_stride=32)
