"""Receptive fields: by hand, as published, and where gradients are nonzero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deeplab_jax.analysis.receptive_field import Field, receptive_fields
from deeplab_jax.analysis.row_dependence import NOTHING, rows_seen
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.contexts.aspp import ASPP
from deeplab_jax.models.layers import LayerSettings
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.ops.atrous import conv2d
from deeplab_jax.ops.pooling import adaptive_average_pool, global_average_pool, max_pool, max_unpool
from deeplab_jax.ops.resize import resize_bilinear
from deeplab_jax.ops.transposed import conv_transpose2d

TRIALS = 10


def ones(kernel_size: int, channels: int = 1) -> jax.Array:
    return jnp.ones((kernel_size, kernel_size, channels, 1))


def conv(x: jax.Array, kernel_size: int = 3, **options) -> jax.Array:
    return conv2d(x, ones(kernel_size, x.shape[-1]), lowering="direct", **options)


def field_of(function, *, channels: int = 1) -> Field:
    return receptive_fields(lambda _, x: {"map": function(x)}, {}, channels=channels)["map"]


def rows(function, height: int, width: int = 5) -> np.ndarray:
    """First and last row that each row of a function's output depends on, `[2, h]`."""
    traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32))
    start = np.arange(height).reshape(1, height, 1, 1)
    (seen,) = rows_seen(traced, [np.stack([start, -start, 0 * start])])
    return seen.min(axis=(1, 3, 4))[:2] * np.array([[1], [-1]])


def gradient_rows(function, height: int, width: int = 5) -> np.ndarray:
    """The same from gradients, at random images, so that maxima and sums do not cancel."""
    size = jax.eval_shape(function, jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32)).shape[1]
    derivative = jax.jit(jax.jacrev(lambda x: function(x).sum(axis=(0, 2, 3))))
    found = np.zeros((TRIALS, size, height), bool)
    for trial in range(TRIALS):
        x = jax.random.uniform(jax.random.key(trial), (1, height, width, 1), minval=0.5, maxval=1.5)
        jacobian = derivative(x)
        found[trial] = np.abs(np.asarray(jacobian)).sum(axis=(1, 3, 4)) > 1e-9
    seen = found.any(axis=0)
    found = np.array([seen.argmax(axis=1), height - 1 - seen[:, ::-1].argmax(axis=1)])
    return np.where(seen.any(axis=1), found, [[NOTHING], [-NOTHING]])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x, (1, 1)),
        (lambda x: conv(x), (3, 1)),
        (lambda x: conv(conv(x)), (5, 1)),
        (lambda x: conv(x, rate=12), (25, 1)),
        # 5 + 4 (7 - 1), as two layers; the second samples every fourth pixel.
        (lambda x: conv(conv(x, 5, stride=4), 7), (29, 4)),
        (lambda x: max_pool(conv(x, 7, stride=2), window=3, stride=2), (11, 4)),
        (lambda x: max_pool(x, window=2, stride=2), (2, 2)),
        (lambda x: max_pool(x, window=2, stride=1, rate=3), (4, 1)),
        (lambda x: x[:, ::2], (1, 2)),
        # VGG's conv3_3: two 3x3, pool, two 3x3, pool, three 3x3.
        (lambda x: conv(conv(conv(tiled(conv(conv(tiled(conv(conv(x))))))))), (40, 4)),
        # Between two samples 4 apart, a pixel depends on both.
        (lambda x: resize_bilinear(conv(x, stride=4), x.shape[1:3], align_corners=True), (7, 1)),
        (lambda x: jnp.concatenate([conv(x), conv(x, rate=6)], axis=-1), (13, 1)),
        (lambda x: x + lax.stop_gradient(conv(x, 5)), (5, 1)),
        (lambda x: jnp.mean(x, axis=2, keepdims=True), (1, 1)),
        (lambda x: jnp.mean(x, axis=1, keepdims=True) + x, (None, 1)),
        (lambda x: x * global_average_pool(x), (None, 1)),
        (lambda x: jnp.cumsum(x, axis=1), (None, 1)),
        # A third of the image is no number of pixels.
        (lambda x: resize_bilinear(adaptive_average_pool(x, 3), x.shape[1:3], align_corners=True) + x, (None, 1)),
    ],
)
def test_fields_by_hand(function, expected) -> None:
    assert field_of(function) == Field(*expected)


def tiled(x: jax.Array) -> jax.Array:
    return max_pool(x, window=2, stride=2)


def test_a_field_larger_than_the_first_images() -> None:
    """Three 3x3 at rate 1000: 6001 pixels, and 12001 for six; beyond that it counts as the whole image."""

    def chain(x, count):
        for _ in range(count):
            x = conv(x, rate=1000)
        return x

    assert field_of(lambda x: chain(x, 3)) == Field(6001, 1)
    assert field_of(lambda x: chain(x, 20)).pixels is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: conv(x, stride=2),
        lambda x: conv(x, rate=3),
        lambda x: conv(x, stride=2, padding="SAME"),
        lambda x: conv(x, 3, padding=((2, 0), (1, 1))),
        lambda x: conv(x, padding="VALID"),
        lambda x: conv_transpose2d(x, jnp.ones((4, 4, 1, 1)), stride=2),
        lambda x: conv_transpose2d(x, jnp.ones((2, 2, 1, 1)), stride=3)[:, 1:-1],
        lambda x: max_pool(x, window=3, stride=2),
        lambda x: resize_bilinear(x, (9, 5), align_corners=True),
        lambda x: resize_bilinear(x, (9, 5), align_corners=False),
        lambda x: resize_bilinear(x, (29, 7), align_corners=True),
        lambda x: resize_bilinear(conv(x, stride=4), (14, 5), align_corners=False),
        lambda x: adaptive_average_pool(x, 4),
        lambda x: jnp.broadcast_to(global_average_pool(x), x.shape) * jax.nn.relu(conv(x)),
        lambda x: jnp.pad(x, ((0, 0), (3, 2), (0, 0), (0, 0)), mode="symmetric"),
        lambda x: jnp.repeat(x, 2, axis=1),
        lambda x: jnp.concatenate([x[:, 5:], x[:, :5]], axis=1),
        lambda x: jnp.stack([x[:, :7], x[:, 7:]], axis=2).reshape(1, 14, 5, 1),
        lambda x: jnp.split(conv(x), 2, axis=1)[1],
        lambda x: x.reshape(1, 7, 2, 5, 1).max(axis=2),
        lambda x: jnp.cumsum(x, axis=1),
        lambda x: jnp.cumsum(x, axis=1)[:, ::-1],
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 4, 1, 1), (1, 3, 1, 1), ((0, 0), (1, 2), (0, 0), (0, 0))),
        lambda x: lax.cumsum(x, axis=1, reverse=True),
        lambda x: jnp.swapaxes(jnp.swapaxes(x, 1, 2) * 2, 1, 2) ** 2,
        lambda x: conv2d(x, ones(3), rate=2, stride=2, lowering="auto"),
        lambda x: conv2d(x, ones(3), rate=2, lowering="taps"),
        lambda x: jax.checkpoint(lambda x: conv(jnp.tanh(x)))(x),
    ],
)
def test_rows_are_those_with_a_gradient(function) -> None:
    """At every row of the output, the borders included."""
    np.testing.assert_array_equal(rows(function, 14), gradient_rows(function, 14))


def test_unpooling_sees_what_decided_where() -> None:
    """Gradients do not show it, but the place of a value depends on the rows that were compared."""
    function = lambda x: max_unpool(max_pool(x, window=2, stride=2), x)  # noqa: E731
    np.testing.assert_array_equal(rows(function, 6), [[0, 0, 2, 2, 4, 4], [1, 1, 3, 3, 5, 5]])


def test_a_tiny_network_against_its_gradient() -> None:
    """Strides, rates, a pyramid of rates and a resize together."""

    def network(images):
        low = jax.nn.relu(conv(images, 5, stride=2))
        x = jax.nn.relu(conv(max_pool(low, window=3, stride=2), rate=2))
        x = jnp.concatenate([conv(x, 1), conv(x, rate=3)], axis=-1)
        x = resize_bilinear(x, low.shape[1:3], align_corners=True)
        return resize_bilinear(conv(jnp.concatenate([x, low], axis=-1)), images.shape[1:3], align_corners=True)

    field = field_of(network)
    seen, gradient = rows(network, 65, 9), gradient_rows(network, 65, 9)
    np.testing.assert_array_equal(seen, gradient)
    inner = (seen[0] > 0) & (seen[1] < 64)
    assert field.pixels == (seen[1] - seen[0] + 1)[inner].max()


def features(name: str, **options) -> dict[str, Field]:
    model = create_model(name, **options)
    apply = lambda v, x: {k: a for k, (a, _) in model.apply(v, x, method="features").items()}  # noqa: E731
    return receptive_fields(apply, abstract_variables(model))


@pytest.mark.slow
def test_published_fields_of_resnets() -> None:
    """Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks" (Distill, 2019): 483 for ResNet-50
    in the form whose strides sit in the last units. torchvision's strides in first units see less.
    """
    plain = {"output_stride": 32, "multi_grid": (1, 1, 1)}
    by_hand = 11 + 3 * 8 + (8 + 3 * 16) + (16 + 5 * 32) + (32 + 2 * 64)
    assert features("deeplabv3_resnet50", **plain)["conv5"] == Field(by_hand, 32)
    assert features("deeplabv3_resnet50", first_unit_rate="last_unit", **plain)["conv5"] == Field(483, 32)
    # Two 3x3 in each of eight units, the first of a stage with the stride.
    assert features("deeplabv3_resnet18", output_stride=32, multi_grid=(1, 1))["conv5"] == Field(435, 32)
    # The authors' form has three 3x3 for the 7x7, 4 pixels more.
    beta = features("deeplabv3_resnet50_beta", **plain)
    assert (beta["stem"], beta["conv5"]) == (Field(11, 2), Field(487, 32))


@pytest.mark.slow
def test_published_field_of_resnet101() -> None:
    options = {"output_stride": 32, "multi_grid": (1, 1, 1), "first_unit_rate": "last_unit"}
    assert features("deeplabv3_resnet101", **options)["conv5"] == Field(1027, 32)


def test_published_field_of_vgg16() -> None:
    """212 after pool5, and 404 at FCN's fc6, whose 7x7 samples lie 32 pixels apart."""
    found = features("fcn8s_vgg16")
    assert (found["pool5"], found["context"]) == (Field(212, 32), Field(404, 32))


def test_rates_for_strides_keep_the_field() -> None:
    """Atrous convolution keeps the field of view (DeepLabv3, sec. 3.1), to the pixel with "previous"."""
    fields = [features("deeplabv3_resnet18", output_stride=stride, multi_grid=(1, 1)) for stride in (8, 32)]
    assert {each["conv5"].pixels for each in fields} == {435}
    assert [each["conv5"].stride for each in fields] == [8, 32]


def test_a_pyramid_without_image_pooling_sees_its_largest_rate() -> None:
    model = ASPP(4, (6, 12, 18), image_pooling=False, settings=LayerSettings())
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, output_stride=16, train=False), jnp.zeros((1, 65, 65, 3))
    )
    apply = lambda v, x: {"map": model.apply(v, x, output_stride=8, train=False)}  # noqa: E731
    # Twice the rates at output stride 8.
    assert receptive_fields(apply, shapes)["map"] == Field(2 * 36 + 1, 1)


def test_field_of_a_decoder() -> None:
    """The resize sees two coarse samples, 16 pixels apart; two 3x3 at stride 4 span 16 pixels more, and then three."""
    model = create_model("deeplabv3plus_resnet18", image_pooling=False)
    apply = lambda v, x: {  # noqa: E731
        "context": model.apply(v, x, method="features")["context"][0],
        "coarse": model.apply(v, x, method="coarse_logits"),
        "logits": model.apply(v, x),
    }
    found = receptive_fields(apply, abstract_variables(model))
    context = found["context"].pixels
    assert context == features("deeplabv3_resnet18")["conv5"].pixels + 2 * 18 * 16
    # Five samples at stride 4 reach over 16 pixels: at most three coarse samples, or two of them exactly.
    assert found["coarse"] == Field(context + 2 * 16, 4)
    # A pixel between two coarse logits sees six samples.
    assert found["logits"] == Field(context + 2 * 16, 1)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(NotImplementedError, match="'sort'"):
        field_of(lambda x: jnp.sort(x, axis=1))
    with pytest.raises(NotImplementedError, match="'conv_general_dilated' where more than its map depends"):
        field_of(lambda x: conv2d(x, x[0, :3, :3, :, None], lowering="direct"))


def test_a_product_of_two_large_maps_is_not_followed() -> None:
    def attention(x):
        flat = x.reshape(-1, x.shape[-1])
        return (flat @ flat.T @ flat).reshape(x.shape)

    with pytest.raises(NotImplementedError, match="a product of two maps is too large"):
        field_of(lambda x: attention(jnp.concatenate([x] * 60, axis=2)))


def test_a_map_without_the_image_has_no_field() -> None:
    with pytest.raises(ValueError, match="map: does not depend on the image"):
        field_of(lambda x: jnp.zeros((1, 4, 4, 1)))
