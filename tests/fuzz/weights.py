"""Foreign weights read by `convert`, and model folders read by `summarize`, `convert`, `export` and `predict`."""

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.weights.folder import MODEL_FILE, WEIGHTS_FILE, flatten_variables
from deeplab_jax.weights.importers.imagenet import mobilenet_v2_rules
from deeplab_jax.weights.tensor_map import TORCH, path_of, their_name
from tests.fuzz.cases import Case, Family, Sound
from tests.fuzz.damage import damaged, damaged_json
from tests.fuzz.networks import image_file, model_folder
from tests.weights.formats.test_tflite import write_tflite
from tests.weights.formats.torch_writer import archive, legacy, tensor

DATA = Path(__file__).resolve().parents[1] / "weights" / "formats" / "data"
CHECKPOINT = "model.ckpt"
INDEX = "model.safetensors.index.json"


class Seeds(NamedTuple):
    """Foreign files, and the files of folders: TensorFlow checkpoints, and a network in parts."""

    files: list[bytes]
    folders: list[dict[str, bytes]]


class Network(NamedTuple):
    """A model folder, and an image for it."""

    model: Path
    image: Path


def seeds(folder: Path) -> Seeds:
    """Make or read a file of every format."""
    tensors = {
        "conv.weight": np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3),
        "conv.bias": np.zeros(4, np.float32),
    }
    files = [(DATA / f"torch_2_13_{layout}.bin").read_bytes() for layout in ("archive", "legacy")]
    files += [archive({"state_dict": tensors}), legacy(tensors), save(tensors), bytes(write_tflite())]
    checkpoints = [
        {f"{CHECKPOINT}{file.suffix}": file.read_bytes() for file in (DATA / "tf_checkpoint").glob(f"{name}.*")}
        for name in ("saver", "object", "partitioned")
    ]
    part = "model-1.safetensors"  # Damage also puts one value in the place of another.
    index = {"metadata": {"this": INDEX}, "weight_map": dict.fromkeys(tensors, part)}
    return Seeds(files, [*checkpoints, {INDEX: json.dumps(index).encode(), part: save(tensors)}])


def network(folder: Path) -> Network:
    """Make a model folder."""
    return Network(model_folder(folder), image_file(folder))


def mobilenet_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the tensors of torchvision's MobileNetV2."""
    shapes: dict[str, tuple[int, ...]] = {"features.18.0.weight": (1280, 320, 1, 1)}
    variables = flatten_variables(abstract_variables(create_model("deeplabv3plus_mobilenet_v2")))
    for name, leaf in variables.items():
        if path_of(name).startswith("backbone/"):
            theirs, how = their_name(name, rules=mobilenet_v2_rules(), layout=TORCH)
            shapes[theirs] = how.their_shape(leaf.shape)
    return shapes


def make_foreign(seeds: Seeds, folder: Path, rng: random.Random) -> Case:
    """Damage a file of another code base."""
    source = folder / "weights.bin"
    if rng.random() < 0.25:
        files = rng.choice(seeds.folders)
        hurt = rng.choice(list(files))
        for name, content in files.items():
            if name == hurt:
                content = damaged_json(content.decode(), rng) if name == INDEX else damaged(content, rng)
            (folder / name).write_bytes(content)
        source = rng.choice((folder, folder / (INDEX if INDEX in files else CHECKPOINT)))
    else:
        source.write_bytes(damaged(rng.choice(seeds.files), rng))
    return Case(["convert", str(source), f"--out={folder / 'out'}"])


def make_known(seeds: dict[str, tuple[int, ...]], folder: Path, rng: random.Random) -> Case:
    """Damage names, shapes and types of a network that is known; every tensor repeats one number."""
    shapes = dict(seeds)
    kinds = dict.fromkeys(shapes, "FloatStorage")
    for _ in range(0 if isinstance(rng, Sound) else rng.randrange(3)):
        name = rng.choice(list(shapes))
        match rng.randrange(5):
            case 0:
                del shapes[name], kinds[name]
            case 1:
                kinds[name] = rng.choice(("LongStorage", "BoolStorage", "HalfStorage", "ComplexFloatStorage", "Laugh"))
            case 2:
                shapes[name] = shapes[name][:-1]
            case 3:
                shapes[name] = tuple(rng.choice((0, 1, side, side + 1)) for side in shapes[name])
            case _:
                shapes[f"{name}{rng.choice(('.', '.x', '0'))}"], kinds[f"{name}."] = shapes[name], "FloatStorage"
    content = {
        name: tensor("0", kinds.get(name, "FloatStorage"), 1, 0, shape, (0,) * len(shape))
        for name, shape in shapes.items()
    }
    number = rng.choice((b"\0\0\0\x3f", b"\0\0\xc0\x7f", b"\xff" * 4))
    file = folder / "weights.pth"
    file.write_bytes(archive({"state_dict": content}, extra={"data/0": number * 4}))
    words = ["convert", str(file), f"--out={folder / 'out'}", *rng.choice(([], ["--not_strict"], ["--kind=imagenet"]))]
    return Case(words)


def make_folder(seeds: Network, folder: Path, rng: random.Random) -> Case:
    """Damage a model folder."""
    model = folder / "model"
    shutil.copytree(seeds.model, model)
    if rng.random() < 0.7:
        file = model / MODEL_FILE
        file.write_bytes(damaged_json(file.read_text("utf-8"), rng))
    else:
        file = model / WEIGHTS_FILE
        file.write_bytes(damaged(file.read_bytes(), rng))
    out = f"--out={folder / 'out'}"
    verbs = (
        ["summarize", str(model), "--size=65"],
        ["convert", str(model), out],
        ["predict", f"--model={model}", out, str(seeds.image)],
        [
            "export",
            f"--model={model}",
            f"{out}.zip",
            "--format=stablehlo",
            *rng.choice(([], ["--argmax", "--size=33x35"])),
        ],
        ["export", f"--model={model}", f"{out}.pth", "--format=torchvision"],
    )
    return Case(rng.choice(verbs))


FAMILIES = {
    "foreign": Family(seeds, make_foreign, 20),
    "known": Family(mobilenet_shapes, make_known, 0.2),
    "folders": Family(network, make_folder, 3, alone=False),
}
