"""Hugging Face transformers' MobileNetV2 for segmentation, whose logits are those before its caller's resize."""

import jax
import pytest

from deeplab_jax.weights.convert import convert
from tests.peers.parity import assert_same_logits, import_peer, random_images, randomise, run_peer, state_dict

transformers = import_peer("transformers")


def make_peer(*, width=1.0, output_stride=8):
    config = transformers.MobileNetV2Config(
        depth_multiplier=width, output_stride=output_stride, num_labels=21, semantic_loss_ignore_index=255
    )
    return randomise(transformers.MobileNetV2ForSemanticSegmentation(config))


@pytest.mark.parametrize(
    ("width", "output_stride", "size"),
    [
        (0.35, None, (97, 131)),
        (1.0, 16, (128, 98)),  # TensorFlow's SAME differs from symmetric padding at even sides.
        pytest.param(1.0, 8, (513, 513), marks=pytest.mark.slow),
        pytest.param(1.0, 32, (321, 241), marks=pytest.mark.slow),
        pytest.param(1.3, 16, (513, 513), marks=pytest.mark.slow),
    ],
)
def test_logits_before_the_resize(width, output_stride, size) -> None:
    peer = make_peer(width=width, output_stride=output_stride or 8)
    images = random_images(*size)
    model, variables, info = convert(state_dict(peer), output_stride=output_stride)
    assert info["source"]["kind"] == "transformers"
    assert model.backbone.width == width
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False, method="coarse_logits"))(variables, images)
    assert_same_logits(ours, run_peer(peer, images).logits)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
def test_a_saved_folder_is_a_source(tmp_path, epsilon) -> None:
    """The epsilon that `config.json` states is that of the backbone alone."""
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=21, layer_norm_eps=epsilon)
    peer = randomise(transformers.MobileNetV2ForSemanticSegmentation(config))
    peer.save_pretrained(tmp_path)
    images = random_images(65, 97)
    model, variables, _ = convert(tmp_path)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False, method="coarse_logits"))(variables, images)
    assert_same_logits(ours, run_peer(peer, images).logits)
