"""Write the names and shapes of the tensors in every published file from the peers' networks:

    python -m tests.peers.published_tensors

It needs the packages that `make peers` installs. The networks of mmsegmentation, TensorFlow and KerasHub are not built
so. Their lists are put together from those that the real code gave (`tests/weights/importers/golden`).
"""

import argparse
from pathlib import Path

from deeplab_jax.weights.formats.tflite import read_tflite
from deeplab_jax.weights.published import PUBLISHED
from tests.peers import published_peers
from tests.peers.parity import import_peer
from tests.weights.importers.golden import read_shapes
from tests.weights.published_tensors import FILE, Shapes, shapes_of, write_lists

TFLITE = "tensorflow/deeplabv3_257_mv_gpu"
IMAGENET = 1001  # With TensorFlow's background.
# The golden list of the same network, whose number of classes may be another.
SLIM = {
    "deeplabv3_mnv2_dm05_pascal_trainaug": ("mobilenet_v2_050", 21),
    "deeplabv3_mnv2_dm05_pascal_trainval": ("mobilenet_v2_050", 21),
    "deeplabv3_mnv2_pascal_train_aug": ("mobilenet_v2", 21),
    "deeplabv3_mnv2_pascal_trainval": ("mobilenet_v2", 21),
    "deeplabv3_mnv2_cityscapes_train": ("mobilenet_v2", 19),
    "deeplabv3_pascal_train_aug": ("xception65", 21),
    "deeplabv3_pascal_trainval": ("xception65", 21),
    "deeplabv3_cityscapes_train": ("xception65", 19),
    "deeplabv3_xception_ade20k_train": ("xception65", 151),
    "deeplabv3_mnv2_ade20k_train": ("mobilenet_v2_decoder", 151),
}
SLIM_BACKBONES = {
    "xception_41.imagenet": ("xception41", "xception_41"),
    "xception_65.imagenet": ("xception65", "xception_65"),
    "xception_65.coco": ("xception65", "xception_65"),
    "xception_71.imagenet": ("xception71", "xception_71"),
    "resnet_v1_50_beta.imagenet": ("resnet50_beta", "resnet_v1_50"),
    "resnet_v1_101_beta.imagenet": ("resnet101_beta", "resnet_v1_101"),
}
# The golden lists of the backbone, of the stem if it is another, and of the heads.
B18, B101 = "deeplabv3plus_resnet18_b", "deeplabv3plus_resnet101_b"
C50 = "deeplabv3plus_resnet50_v1c"
MMSEG = {
    "deeplabv3plus_r18b_cityscapes": (B18, "", B18, 19),
    "deeplabv3plus_r50b_cityscapes": ("pspnet_resnet50_b", "", B101, 19),
    "deeplabv3plus_r101b_cityscapes": (B101, "", B101, 19),
    "deeplabv3plus_r101_voc": (B101, C50, C50, 21),
    "deeplabv3plus_r101_ade20k": (B101, C50, C50, 150),
    "deeplabv3plus_r50_loveda": (C50, "", C50, 7),
    "deeplabv3plus_r50_potsdam": (C50, "", C50, 6),
    "deeplabv3plus_r50_vaihingen": (C50, "", C50, 6),
    "deeplabv3plus_r50_isaid": (C50, "", C50, 16),
}


def of_peer(name: str) -> Shapes:
    """Return the list of a network that can be built here."""
    torch = import_peer("torch")
    with torch.device("meta"):
        network = published_peers.make(name)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def of_slim(name: str) -> Shapes:
    """Return the list of one of TensorFlow's checkpoints."""
    if name in SLIM:
        golden, classes = SLIM[name]
        shapes = read_shapes(f"slim_{golden}")
        logits = {f"logits/semantic/{key}": shapes[f"logits/semantic/{key}"] for key in ("weights", "biases")}
        return shapes | {key: (*shape[:-1], classes) for key, shape in logits.items()}
    golden, scope = SLIM_BACKBONES[name]
    shapes = {key: shape for key, shape in read_shapes(f"slim_{golden}").items() if key.startswith(f"{scope}/")}
    return shapes | {f"{scope}/logits/weights": (1, 1, 2048, IMAGENET), f"{scope}/logits/biases": (IMAGENET,)}


def of_mmsegmentation(name: str) -> Shapes:
    """Return the list of one of mmsegmentation's networks."""
    backbone, stem, heads, classes = MMSEG[name]
    stems = ("backbone.conv1.", "backbone.bn1.", "backbone.stem.")
    shapes = {}
    for golden, wanted in (
        (stem or backbone, lambda key: key.startswith(stems)),
        (backbone, lambda key: key.startswith("backbone.") and not key.startswith(stems)),
        (heads, lambda key: not key.startswith("backbone.")),
    ):
        shapes |= {key: shape for key, shape in read_shapes(f"mmseg_{golden}").items() if wanted(key)}
    return {key: (classes, *shape[1:]) if ".conv_seg." in key else shape for key, shape in shapes.items()}


def of_tflite() -> Shapes:
    """Return the list of the official `.tflite`, or the kept one where that file is not here."""
    file = Path(__file__).parents[3] / "shared" / "weights" / PUBLISHED[TFLITE].file
    if not file.is_file():
        return shapes_of(TFLITE)
    return {key: value.shape for key, value in read_tflite(file).tensors.items()}


def list_of(name: str) -> Shapes:
    """Return the list of an entry."""
    owner, _, model = name.partition("/")
    if name == TFLITE:
        return of_tflite()
    if owner == "keras":
        return read_shapes("keras_hub_resnet50_p5")
    if owner == "tensorflow":
        return of_slim(model)
    return of_mmsegmentation(model) if owner == "mmsegmentation" else of_peer(name)


def main() -> None:
    """Write the lists."""
    assert __doc__
    argparse.ArgumentParser(prog="tests.peers.published_tensors", description=__doc__.partition(":")[0]).parse_args()
    write_lists({name: list_of(name) for name in PUBLISHED})
    print(f"written to {FILE} ({FILE.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
