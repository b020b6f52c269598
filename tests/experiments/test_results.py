"""The multiply-adds that a table states."""

from deeplab_jax import multiply_adds
from deeplab_jax.models.catalog import create_model
from experiments.run.results import multi_view_multiply_adds
from tests.support.tiny import tiny_models


def test_scales_and_flip() -> None:
    with tiny_models():
        model = create_model("cascade_tiny")
    single = [multiply_adds(model, *size, counting="valid").total for size in ((65, 97), (33, 49), (97, 145))]
    scales = {"scales": (1.0, 0.5, 1.5), "counting": "valid"}
    assert multi_view_multiply_adds(model, 65, 97, **scales) == sum(single)
    assert multi_view_multiply_adds(model, 65, 97, flip=True, **scales) == 2 * sum(single)
    smallest = multiply_adds(model, 33, 33).total  # 65 at 0.25 has 17 pixels, and a network takes 33.
    assert multi_view_multiply_adds(model, 65, 65, scales=(0.25,)) == smallest
