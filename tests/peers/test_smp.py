"""Logits of segmentation_models_pytorch's networks, with random weights and statistics, against those converted."""

from typing import Any

import jax
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.export_state_dict import PEERS, export_state_dict, write_state_dict
from tests.peers.parity import (
    assert_same_logits,
    import_peer,
    random_images,
    randomise,
    run_ours,
    run_peer,
    state_dict,
)

smp = import_peer("segmentation_models_pytorch")

CLASSIFICATION = {"classes": 3}


def network(architecture: str, encoder: str, **options: Any) -> Any:
    return randomise(getattr(smp, architecture)(encoder, encoder_weights=None, classes=5, **options))


def compare(
    architecture: str, encoder: str, size: tuple[int, int], *, stride: int | None = None, **options: Any
) -> None:
    if stride is not None:
        options["encoder_output_stride"] = stride
    peer = network(architecture, encoder, **options)
    images = random_images(*size)
    expected = run_peer(peer, images)
    if "aux_params" in options:
        expected, _ = expected
    assert_same_logits(run_ours(state_dict(peer), images, output_stride=stride), expected)


# At output stride 8, 256x320 pixels are 32x40 samples, on which a rate of 36 still reaches others.
@pytest.mark.parametrize(
    ("architecture", "encoder", "size"),
    [
        pytest.param("DeepLabV3", "resnet18", (256, 320), marks=pytest.mark.slow),
        ("DeepLabV3Plus", "mobilenet_v2", (64, 96)),
        pytest.param("PSPNet", "resnet50", (96, 128), marks=pytest.mark.slow),
        pytest.param("Unet", "mobilenet_v2", (64, 96), marks=pytest.mark.slow),
    ],
)
def test_as_made_by_default(architecture: str, encoder: str, size: tuple[int, int]) -> None:
    compare(architecture, encoder, size)


@pytest.mark.parametrize(
    ("architecture", "encoder", "stride", "options"),
    [
        pytest.param(
            "DeepLabV3",
            "resnet18",
            16,
            {"decoder_aspp_separable": True, "decoder_channels": 64},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "DeepLabV3Plus",
            "resnet18",
            8,
            {"decoder_aspp_separable": False, "decoder_channels": 64},
            marks=pytest.mark.slow,
        ),
        ("DeepLabV3", "mobilenet_v2", 8, {"encoder_depth": 4, "decoder_channels": 32, "aux_params": CLASSIFICATION}),
        ("DeepLabV3Plus", "resnet18", 16, {"encoder_depth": 3, "decoder_channels": 32}),
        ("PSPNet", "resnet18", None, {"encoder_depth": 4, "upsampling": 16, "psp_out_channels": 32}),
        ("PSPNet", "mobilenet_v2", None, {"decoder_use_norm": False, "psp_out_channels": 32}),
        pytest.param(
            "Unet",
            "resnet18",
            None,
            {"decoder_use_norm": False, "decoder_channels": (32, 16, 16, 8, 8)},
            marks=pytest.mark.slow,
        ),
        ("Unet", "mobilenet_v2", None, {"encoder_depth": 4, "decoder_channels": (32, 16, 8, 8)}),
    ],
)
def test_as_made_otherwise(architecture: str, encoder: str, stride: int | None, options: dict[str, Any]) -> None:
    """Whatever the shapes tell: channels, separable convolutions, depth, norms, another classifier beside it."""
    compare(architecture, encoder, (96, 128), stride=stride, **options)


@pytest.mark.slow
def test_unet_takes_any_size() -> None:
    compare("Unet", "resnet34", (65, 97))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(512, 512), (256, 320)])
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "resnet101", "mobilenet_v2"])
@pytest.mark.parametrize(
    ("architecture", "stride"),
    [
        ("DeepLabV3", 8),
        ("DeepLabV3", 16),
        ("DeepLabV3Plus", 8),
        ("DeepLabV3Plus", 16),
        ("PSPNet", None),
        ("Unet", None),
    ],
)
def test_every_encoder_and_stride(architecture: str, stride: int | None, encoder: str, size: tuple[int, int]) -> None:
    compare(architecture, encoder, size, stride=stride)


def test_every_tensor_is_used_or_named() -> None:
    """PSPNet's encoder ends at stride 8, yet its state dict holds the rest."""
    tensors = state_dict(network("PSPNet", "mobilenet_v2", aux_params=CLASSIFICATION))
    _, _, info = convert(tensors)
    unused = [name for name in info["source"]["unused"] if not name.endswith("num_batches_tracked")]
    assert len(unused) + info["source"]["tensors"] + sum(n.endswith("num_batches_tracked") for n in tensors) == len(
        tensors
    )
    beyond = [f"encoder.features.{index}." for index in range(7, 19)]
    assert all(name.startswith(("classification_head.", *beyond)) for name in unused)
    assert info["source"]["random"] == info["source"]["mismatched"] == []


def test_one_logit_predicts_where_its_sigmoid_is_above_one_half() -> None:
    """`classes=1`, as in smp's own example of binary segmentation, through `segment` from the stored pixels on."""
    peer = randomise(smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=1))
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    mean, std = (np.float32(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs = run_peer(peer, (photo[None] / np.float32(255) - mean) / std).sigmoid().numpy()[0, 0]
    model, variables, info = convert(state_dict(peer))
    classes, probabilities = segment(model, variables, photo, return_probabilities=True)
    np.testing.assert_allclose(probabilities[..., 0], theirs, atol=1e-4)
    sure = np.abs(theirs - 0.5) > 1e-4
    np.testing.assert_array_equal(classes[sure], (theirs > 0.5)[sure])
    assert 0 < classes.mean() < 1 and info["class_names"] == ["background", "object"]


def test_a_folder_that_smp_saved(tmp_path: Any) -> None:
    peer = network("Unet", "resnet18")
    peer.save_pretrained(tmp_path)
    model, variables, info = convert(tmp_path)
    assert (info["source"]["kind"], model.num_classes) == ("smp", 5)
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, state_dict(peer)["segmentation_head.0.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "words"),
    [
        ("Unet", "resnext50_32x4d", {}, "the encoder is none of resnet18"),
        ("Unet", "resnet18", {"decoder_attention_type": "scse"}, "the decoder is none of DeepLabV3"),
        ("Unet", "resnet18", {"decoder_use_norm": "layernorm"}, "decoder_use_norm is neither batch norm nor none"),
        ("MAnet", "resnet18", {}, "the decoder is none of DeepLabV3"),
        ("FPN", "resnet18", {}, "the decoder is none of DeepLabV3"),
        ("Unet", "resnet18", {"encoder_depth": 2, "decoder_channels": (8, 8)}, "only encoder_depth 3, 4 and 5"),
    ],
)
def test_what_cannot_be_converted_says_so(architecture: str, encoder: str, options: dict[str, Any], words: str) -> None:
    tensors = state_dict(getattr(smp, architecture)(encoder, encoder_weights=None, **options))
    with pytest.raises(UserError) as error:
        convert(tensors)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("DeepLabV3Plus", {"decoder_atrous_rates": (6, 12, 18)}),
        pytest.param("DeepLabV3Plus", {"encoder_output_stride": 8}, marks=pytest.mark.slow),
        pytest.param(
            "DeepLabV3", {"encoder_output_stride": 16, "decoder_atrous_rates": (3, 5, 7)}, marks=pytest.mark.slow
        ),
        pytest.param("PSPNet", {}, marks=pytest.mark.slow),
        pytest.param("Unet", {}, marks=pytest.mark.slow),
    ],
)
def test_saved_folders_are_built_as_their_config_says(tmp_path, architecture: str, options: dict[str, Any]) -> None:
    peer = network(architecture, "mobilenet_v2", **options)
    peer.save_pretrained(tmp_path)
    images = random_images(128, 160)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert_same_logits(run_ours(source, images), run_peer(peer, images))


def test_a_field_that_cannot_be_built_is_refused(tmp_path) -> None:
    network("DeepLabV3Plus", "mobilenet_v2", upsampling=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: upsampling is 2"):
        convert(tmp_path)


@pytest.mark.parametrize("in_channels", [1, 2, 4, 5])
def test_weights_for_rgb_are_fitted_to_other_channels_as_there(in_channels: int) -> None:
    import torch

    from deeplab_jax.weights.fit_channels import fit_kernel

    encoder = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
    with torch.no_grad():
        before = encoder.conv1.weight.numpy().copy()
        encoder.set_in_channels(in_channels, pretrained=True)
        expected = encoder.conv1.weight.detach().numpy()
    ours = fit_kernel(before.transpose(2, 3, 1, 0), old=3, new=in_channels)
    np.testing.assert_allclose(ours, expected.transpose(2, 3, 1, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "encoder", "stride", "options"),
    [
        ("DeepLabV3Plus", "mobilenet_v2", 16, {"decoder_channels": 32, "decoder_atrous_rates": (6, 12, 18)}),
        ("PSPNet", "mobilenet_v2", None, {"decoder_use_norm": False, "psp_out_channels": 32}),
        ("Unet", "resnet18", None, {"encoder_depth": 4, "decoder_channels": (32, 16, 8, 8), "in_channels": 4}),
        pytest.param("DeepLabV3", "resnet18", 8, {}, marks=pytest.mark.slow),
        pytest.param("DeepLabV3", "mobilenet_v2", 8, {"encoder_depth": 4}, marks=pytest.mark.slow),
        pytest.param("DeepLabV3", "resnet18", 16, {"encoder_depth": 3}, marks=pytest.mark.slow),
        pytest.param("DeepLabV3Plus", "resnet50", 8, {"decoder_aspp_separable": False}, marks=pytest.mark.slow),
        pytest.param("PSPNet", "resnet50", None, {"encoder_depth": 4, "upsampling": 16}, marks=pytest.mark.slow),
        pytest.param("Unet", "mobilenet_v2", None, {}, marks=pytest.mark.slow),
    ],
)
def test_what_is_exported_loads_strictly_and_computes_the_same(
    architecture: str, encoder: str, stride: int | None, options: dict[str, Any], tmp_path: Any
) -> None:
    """Into the network that the printed call builds; every tensor that runs comes back as it was."""
    import torch

    stated = {} if stride is None else {"encoder_output_stride": stride}
    peer = network(architecture, encoder, **options, **stated)
    peer.save_pretrained(tmp_path)  # Its config.json states the rates.
    model, variables, info = convert(tmp_path)
    exported = export_state_dict(model, variables, kind="smp")
    fresh = eval(PEERS["smp"].network(model), {"smp": smp}).eval()
    fresh.load_state_dict(torch.load(write_state_dict(tmp_path / "a.pth", exported), weights_only=True), strict=True)
    for name, tensor in state_dict(peer).items():
        if name not in info["source"]["unused"]:
            np.testing.assert_array_equal(exported[name], tensor, err_msg=name)
    images = np.random.default_rng(0).normal(size=(1, 96, 128, model.in_channels)).astype(np.float32)
    expected = run_peer(peer, images)
    assert torch.equal(run_peer(fresh, images), expected)
    assert_same_logits(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images), expected)
