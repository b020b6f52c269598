"""SegNet: values return to the pixels where the encoder found them; its size."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from tests.support.kernels import pass_through
from tests.support.traces import variable_shapes


@pytest.mark.parametrize("size", [(64, 96), (37, 50)])
def test_maxima_return_to_their_pixels(size: tuple[int, int]) -> None:
    """Without arithmetic between, the result is zero but for the brightest pixel of each block of 32x32."""
    height, width = size
    model = create_model("segnet_vgg16", num_classes=1, width=1 / 64, norm="none")
    variables = pass_through(variable_shapes(model, 1, 33, 33, 3))
    image = np.random.default_rng(0).permutation(height * width).reshape(size).astype(np.float32) + 1
    x = jnp.broadcast_to(image[None, :, :, None], (1, *size, 3))
    expected = np.zeros(size, np.float32)
    for top in range(0, height, 32):
        for left in range(0, width, 32):
            block = image[top : top + 32, left : left + 32]
            row, column = np.unravel_index(np.argmax(block), block.shape)
            expected[top + row, left + column] = block.max()
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x)[0, :, :, 0], expected)


def test_the_parameter_count() -> None:
    """Encoder and decoder mirror each other, a norm instead of a bias in all but the classifier."""
    variables = variable_shapes(create_model("segnet_vgg16", lowering="direct"), 1, 33, 33, 3)
    channels = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    encoder = list(pairwise(channels))
    # Reversed, without the one from 64 to the image: the classifier takes its place.
    decoder = [(b, a) for a, b in reversed(encoder[1:])]
    layers = sum(9 * a * b + 2 * b for a, b in encoder + decoder)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))
    assert count == layers + 9 * 64 * 21 + 21 == 29_447_189
    assert variables["params"]["decoder"]["conv4_1"]["conv"]["kernel"].shape == (3, 3, 512, 256)
    assert set(variables["params"]["decoder"]) == {
        "conv5_3", "conv5_2", "conv5_1", "conv4_3", "conv4_2", "conv4_1", "conv3_3", "conv3_2", "conv3_1", "conv2_2",
        "conv2_1", "conv1_2",
    }  # fmt: skip


@pytest.mark.parametrize("size", [(33, 33), (65, 98)])
def test_logits_have_the_size_of_any_image(size: tuple[int, int]) -> None:
    model = create_model("segnet_vgg16", num_classes=5, width=1 / 64)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="coarse_logits"), variable_shapes(model, 1, 33, 33, 3), x
    )
    assert logits.shape == (2, *size, 5)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_other_output_strides_are_refused(output_stride: int) -> None:
    with pytest.raises(UserError, match=f"output_stride={output_stride}: SegNet unpools every pooling of stride 2"):
        create_model("segnet_vgg16", width=1 / 64, output_stride=output_stride)
