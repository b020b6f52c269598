"""ImageNet classifiers, torchvision's and timm's ResNets of the same names, as backbones of our own networks.

Only the backbone (for VGG-16 also fc6 and fc7) is theirs. The rest starts at random, and the options are our defaults.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deeplab_jax.models.catalog import default_output_stride
from deeplab_jax.models.preprocessing import IMAGENET, Preprocessing
from deeplab_jax.weights.formats.read import mapping_of
from deeplab_jax.weights.importers.saved_config import Config, mean_and_std, refused
from deeplab_jax.weights.importers.torch_names import (
    COUNTERS,
    is_mobilenet_v3,
    mobilenet_v2_rules,
    mobilenet_v3_rules,
    resnet_rules,
    which_resnet,
)
from deeplab_jax.weights.published import ENCODERS
from deeplab_jax.weights.tensor_map import Names, Rule, Shapes, TensorMap

Tensors = Mapping[str, np.ndarray]

FEATURES = "features."
VGG_UNITS = (2, 2, 3, 3, 3)
# The linear layers that FCN turns into convolutions, and the side of each one's input map.
VGG_MATRICES = {"classifier.0": 7, "classifier.3": 1}
# fc6, fc7 and the logits: torchvision's matrices, and timm's, which are convolutions.
VGG_CLASSIFIERS = (
    ("classifier.0", "classifier.3", r"^classifier\.6\."),
    ("pre_logits.fc1", "pre_logits.fc2", r"^head\."),
)
ALL_BUT_BACKBONE = r"(?!backbone/)"
ONLY_BACKBONE = "only the backbone is from the file, the rest starts at random"
# MobileNetV2's default here is its authors' training; torchvision trained differently.
MOBILENET_V2 = {"norm_epsilon": 1e-5, **IMAGENET.normalisation}
# Arguments of timm's `create_model` that leave the backbone as it is.
TIMM_ARGUMENTS = ("num_classes", "in_chans", "global_pool")


def recognise(shapes: Shapes, *, output_stride: int | None) -> TensorMap | None:
    """Describe a state dict of resnet18/34/50/101, mobilenet_v2, mobilenet_v3_large, vgg16 or vgg16_bn; return None for
    any other.
    """
    tensor_map = _recognise(shapes)
    if tensor_map is None or output_stride is None:
        return tensor_map
    return replace(tensor_map, output_stride=output_stride)


def _recognise(shapes: Shapes) -> TensorMap | None:
    resnet = which_resnet(shapes)
    # Wider ResNets and ResNeXt have the same names.
    if resnet and shapes.get("conv1.weight") and shapes.get("layer1.0.conv2.weight") == (64, 64, 3, 3):
        return _tensor_map(f"deeplabv3plus_{resnet}", resnet_rules(), unused=(r"^fc\.",))
    if is_mobilenet_v3(shapes, FEATURES):
        rules = mobilenet_v3_rules(FEATURES)
        return _tensor_map("deeplabv3plus_mobilenet_v3_large", rules, unused=(r"^classifier\.",))
    if shapes.get("features.18.0.weight") == (1280, 320, 1, 1):
        unused = (r"^features\.18\.", r"^classifier\.")
        return _tensor_map("deeplabv3plus_mobilenet_v2", mobilenet_v2_rules(), unused=unused, options=MOBILENET_V2)
    kernels = {name for name, shape in shapes.items() if name.startswith(FEATURES) and len(shape) == 4}
    for normalised in (False, True):
        names = vgg16_names(normalised=normalised)
        if kernels == {f"{conv}.weight" for conv, _ in names.values()}:
            return _vgg16(shapes, tuple(names.items()), normalised=normalised)
    return None


def apply_config(tensor_map: TensorMap, stated: Config) -> TensorMap:
    """Return a network with the images that timm's classifier was trained on, as `config.json` states them.

    The tensors tell the network, but for what has none of its own: the anti-aliased ResNets have exactly the tensors of
    the plain ones.

    Raises:
      UserError: another network, or a field that is not what it should be.
    """
    wanted = next(encoder for encoder, (network, _) in ENCODERS.items() if network == tensor_map.name)
    name = stated.get("architecture", wanted)
    if not re.fullmatch(rf"(tv_|ssl_|swsl_|gluon_)?{wanted}(_v1b)?", str(name)):
        raise refused("architecture", name, f"only {wanted} can be converted with these tensors")
    for argument, value in mapping_of(stated.get("model_args")).items():
        if argument not in TIMM_ARGUMENTS:
            known = ", ".join(TIMM_ARGUMENTS)
            raise refused(f"model_args.{argument}", value, f"of these only {known} can be converted")
    images, channels = mapping_of(stated.get("pretrained_cfg")), tensor_map.options.get("in_channels", 3)
    if not {"mean", "std"} <= images.keys():
        return tensor_map
    # The file has three channels, whatever the network has.
    found = Preprocessing(**mean_and_std(images, "mean", "std", 3)).for_channels(channels)
    return replace(tensor_map, options={**tensor_map.options, **found.normalisation})


def _vgg16(shapes: Shapes, rules: tuple[Rule, ...], *, normalised: bool) -> TensorMap:
    """VGG-16 with batch norm is SegNet's encoder. Without it, it is FCN-32s, with fc6 and fc7 if it has
    the classifier.
    """
    if normalised:
        unused = (r"^(classifier|pre_logits|head)\.",)
        return _tensor_map("segnet_vgg16", rules, unused=unused, prepare=move_biases_into_means)
    for fc6, fc7, logits in VGG_CLASSIFIERS:
        if matrix := shapes.get(f"{fc6}.weight"):
            return _tensor_map(
                "fcn32s_vgg16",
                (*rules, (r"context/fc6", (fc6, "")), (r"context/fc7", (fc7, ""))),
                unused=(logits,),
                absent=r"decoder/",
                options={"fc_channels": matrix[0]},
                prepare=shape_as_kernels,
                note="backbone, fc6 and fc7 are from the file, the logits start at random",
            )
    return _tensor_map("fcn32s_vgg16", rules)


def vgg16_names(*, normalised: bool) -> dict[str, Names]:
    """Return the places of VGG-16's convolutions and of their norms in torchvision's list of layers, by our paths."""
    names: dict[str, Names] = {}
    place = 0
    for stage, units in enumerate(VGG_UNITS, 1):
        for unit in range(1, units + 1):
            norm = f"{FEATURES}{place + 1}" if normalised else ""
            names[f"backbone/conv{stage}_{unit}"] = (f"{FEATURES}{place}", norm)
            place += 3 if normalised else 2  # and the ReLU
        place += 1  # the pooling
    return names


def move_biases_into_means(tensors: Tensors) -> dict[str, np.ndarray]:
    """Subtract the biases of vgg16_bn's convolutions, which come before the norms, from the running means: the same
    net.
    """
    prepared = dict(tensors)
    for conv, norm in vgg16_names(normalised=True).values():
        bias, mean = tensors.get(f"{conv}.bias"), tensors.get(f"{norm}.running_mean")
        if bias is not None and mean is not None and bias.shape == mean.shape:
            prepared[f"{norm}.running_mean"] = mean - prepared.pop(f"{conv}.bias")
    return prepared


def shape_as_kernels(tensors: Tensors) -> dict[str, np.ndarray]:
    """Give the classifier's matrices `[out, in]` the shape of kernels over their input maps (FCN, sec. 3.1)."""
    prepared = dict(tensors)
    for name, side in VGG_MATRICES.items():
        matrix = tensors.get(f"{name}.weight")
        if matrix is not None and matrix.ndim == 2 and matrix.shape[1] % side**2 == 0:
            prepared[f"{name}.weight"] = matrix.reshape(matrix.shape[0], matrix.shape[1] // side**2, side, side)
    return prepared


def _tensor_map(
    name: str,
    rules: tuple[Rule, ...],
    *,
    unused: tuple[str, ...] = (),
    absent: str = ALL_BUT_BACKBONE,
    options: Mapping[str, Any] | None = None,
    prepare: Callable[[Tensors], Tensors] | None = None,
    note: str = ONLY_BACKBONE,
) -> TensorMap:
    return TensorMap(
        name=name,
        num_classes=21,
        output_stride=default_output_stride(name),
        rules=rules,
        options=options or {},
        unused=(COUNTERS, *unused),
        absent=(absent,),
        notes=(note,),
        prepare=prepare,
    )
