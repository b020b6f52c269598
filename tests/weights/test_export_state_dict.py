"""State dicts for smp and mmsegmentation without these packages: what comes in goes out as it was, or is refused."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model, describe, from_description
from deeplab_jax.weights.convert import convert
from deeplab_jax.weights.export_state_dict import PEERS, export_state_dict
from deeplab_jax.weights.folder import save
from deeplab_jax.weights.importers import smp
from deeplab_jax.weights.peer_networks import normalisation
from tests.support.tiny import filled
from tests.weights.importers.test_mmsegmentation import NETWORKS, generate

FAST = ("mmseg_deeplabv3plus_resnet18_b", "mmseg_pspnet_resnet18_v1c")
# The options of smp's DeepLabV3Plus, from its importer; the shapes are those of `smp.DeepLabV3Plus("mobilenet_v2")`.
SMP = {
    "aspp_channels": 32,
    "head_convs": ((3, 32),),
    "decoder_convs": ((3, 32),),
    "separable": True,
    "aspp_separable": True,
    "depthwise_norm": False,
    "first_unit_rate": "stage",
    "norm_epsilon": 1e-5,
    "align_corners": True,
    "aspp_rates": (12, 24, 36),
}
ON_MOBILENET: dict[str, Any] = {**SMP, "last_channels": 1280}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name, _, _ in NETWORKS]
)
def test_mmsegmentations_tensors_come_back_as_they_were(name: str) -> None:
    """Their names, shapes, types and values, for networks whose state dicts the real code has written."""
    tensors = generate(name)
    model, variables, _ = convert(tensors)
    exported = export_state_dict(model, variables, kind="mmsegmentation")
    assert exported.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert exported[key].dtype == tensor.dtype and exported[key].flags["C_CONTIGUOUS"], key
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)


def test_the_order_of_concatenated_inputs_is_theirs() -> None:
    """mmsegmentation's pyramid puts the pooled image first, ours puts it last."""
    model, variables, _ = convert(generate(FAST[0]))
    kernel = np.zeros((3, 3, 5 * 128, 128), np.float32)
    kernel[:, :, 4 * 128 :] = 1  # Those of the pooled image.
    variables["params"]["context"]["projection"]["conv"]["kernel"] = kernel
    theirs = export_state_dict(model, variables, kind="mmsegmentation")["decode_head.bottleneck.conv.weight"]
    assert theirs.shape == (128, 640, 3, 3)
    assert theirs[:, :128].all() and not theirs[:, 128:].any()


def test_the_command_says_how_to_build_theirs(tmp_path: Any, capsys: Any) -> None:
    model = create_model("deeplabv3plus_mobilenet_v2", num_classes=3, output_stride=16, **ON_MOBILENET)
    save(tmp_path / "model", model, filled(model), {})
    words = ["export", "--model", str(tmp_path / "model"), "--format", "smp", "--out", str(tmp_path / "a.safetensors")]
    assert main(words) == 0
    _, builds, takes = capsys.readouterr().out.splitlines()
    assert builds == (
        "it fits smp.DeepLabV3Plus('mobilenet_v2', encoder_weights=None, encoder_depth=5, encoder_output_stride=16, "
        "decoder_channels=32, decoder_aspp_separable=True, decoder_atrous_rates=(12, 24, 36), in_channels=3, classes=3)"
    )
    assert takes == "its input: images of -1 to 1, minus the mean (0, 0, 0), divided by (1, 1, 1)"
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "a.safetensors").items()}
    assert shapes["encoder.features.18.0.weight"] == (1280, 320, 1, 1)
    found = smp.recognise(shapes, output_stride=16)
    assert found is not None and found.name == "deeplabv3plus_mobilenet_v2"
    assert main([*words, "--argmax"]) == 2
    assert "--argmax: a state dict has none" in capsys.readouterr().err


def test_values_that_a_model_leaves_to_their_defaults_are_said() -> None:
    model = create_model("deeplabv3_resnet18", num_classes=3, output_stride=8)
    assert PEERS["smp"].network(model) == (
        "smp.DeepLabV3('resnet18', encoder_weights=None, encoder_depth=5, encoder_output_stride=8, "
        "decoder_channels=256, decoder_aspp_separable=False, decoder_atrous_rates=(12, 24, 36), in_channels=3, "
        "classes=3)"
    )
    said = PEERS["mmsegmentation"].network(create_model("deeplabv3plus_resnet50", num_classes=3, output_stride=16))
    assert "decode_head.channels=256" in said and "decode_head.c1_channels=48" in said


def test_how_images_are_prepared_is_said_to_the_last_digit() -> None:
    options = {"mean": (0.48512345, 0.5, 0.0), "std": (1.0, 1.0, 1.0), "channels": (3, 2, 1), "stored_range": (0, 4095)}
    assert normalisation(create_model("fcn_resnet50", value_range=(0, 1), **options)) == (
        "bands 3, 2, 1 (from 0) of a file as images of 0 to 1, which stored values of 0 to 4095 become, "
        "minus the mean (0.48512345, 0.5, 0), divided by (1, 1, 1)"
    )


def test_mmsegmentations_config_is_named() -> None:
    options = {"norm_epsilon": 1e-5, "align_corners": False, "first_unit_rate": "previous", "multi_grid": (1, 1)}
    model = create_model("pspnet_resnet18", num_classes=6, output_stride=16, context_channels=128, **options)
    said = PEERS["mmsegmentation"].network(model)
    assert said.startswith("configs/_base_/models/pspnet_r50-d8.py with backbone.type='ResNet', backbone.depth=18, ")
    assert "backbone.strides=(1, 2, 2, 1), backbone.dilations=(1, 1, 1, 2)" in said
    assert "decode_head.align_corners=False" in said and "decode_head.channels=128" in said


def test_mmsegmentation_takes_aligned_corners() -> None:
    """Its config says them, as it does the rates."""
    model, variables, _ = convert(generate(FAST[1]))
    exported = export_state_dict(model, variables, kind="mmsegmentation")
    described = describe(model)
    aligned = from_description({**described, "options": {**described["options"], "align_corners": True}})
    same = export_state_dict(aligned, variables, kind="mmsegmentation")
    assert all(np.array_equal(same[name], tensor) for name, tensor in exported.items())
    assert "decode_head.align_corners=True" in PEERS["mmsegmentation"].network(aligned)


@pytest.mark.parametrize(
    ("kind", "name", "options", "words"),
    [
        ("smp", "deeplabv3plus_xception65", {}, "'deeplabv3plus_xception65' is none of smp's: deeplabv3_ENCODER"),
        ("mmsegmentation", "deeplabv3plus_mobilenet_v2", {}, "is none of mmsegmentation's: deeplabv3_RESNET"),
        ("smp", "deeplabv3plus_mobilenet_v2", {}, "smp's deeplabv3plus_mobilenet_v2: only encoder_depth 3, 4 and 5"),
        (
            "smp",
            "deeplabv3_mobilenet_v2",
            {},
            "deeplabv3_mobilenet_v2: only networks that come from smp can be exported",
        ),
        (
            "smp",
            "deeplabv3plus_mobilenet_v2",
            {**ON_MOBILENET, "align_corners": False},
            "align_corners=False, smp has align_corners=True",
        ),
        (
            "smp",
            "deeplabv3plus_mobilenet_v2",
            {**ON_MOBILENET, "aspp_rates": (6, 12)},
            "aspp_rates=[6, 12], smp has aspp_rates=(12, 24, 36)",
        ),
        ("smp", "deeplabv3plus_mobilenet_v2", {**ON_MOBILENET, "output_stride": 32}, "run at 8 or 16"),
        (
            "mmsegmentation",
            "deeplabv3_resnet18",
            {"separable": True, "projection_kernel": 3},
            "a separable pyramid without low-level features cannot be converted",
        ),
    ],
)
def test_other_networks_are_refused_in_one_line(kind: str, name: str, options: dict[str, Any], words: str) -> None:
    model = create_model(name, num_classes=3, **options)
    with pytest.raises(UserError) as error:
        export_state_dict(model, {}, kind=kind)
    assert words in str(error.value) and "\n" not in str(error.value)
