"""Export for programs that have JAX, or only a StableHLO compiler, but not this package.

An exported model is a zip file of two entries:

- `model.stablehlo`: the function with its weights, as `jax.export` serialises it;
- `metadata.json`: its inputs and outputs.

`README.md` in this folder has the lines by which a program with JAX reads it. For other compilers
`exported.mlir_module()` is the StableHLO text. Export for one platform then: for several, the function takes a
platform's number first. JAX promises to read such files for six months after the version in the metadata; keep the
model folder beside them.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.contexts.pyramid_pooling import PyramidPooling, SpatialPyramidContext
from deeplab_jax.models.decision import THRESHOLD, decide, to_probabilities
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter, Variables
from deeplab_jax.provenance import version_of

STABLEHLO_FILE = "model.stablehlo"
METADATA_FILE = "metadata.json"
FORMAT = 1
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Run = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Signature:
    """What an exported function takes and returns.

    Attributes:
      size: height and width of the images. None leaves both free, from 33 pixels up; PSPNet, SPP, U-Net without padding
        and image pyramids need a fixed size. A fixed size runs faster: on a CPU, convolutions of large rates then leave
        out their padding.
      batch: images per call; None leaves it free.
      preprocess: whether to take images as stored instead of floats as from `model.preprocessing`: uint8 of 0 to 255,
        or float32 of the values in `model.preprocessing.stored_range` if that is set.
      argmax: whether to return class ids `[N, H, W]`, uint8 up to 256 classes and int32 beyond, instead of float32
        logits `[N, H, W, num_classes]`. For one logit, 0 and 1; for several labels a pixel, 0 or 1 for each,
        `[N, H, W, num_classes]`.
      threshold: with `argmax` and sigmoids: an object is where its probability is above it.
    """

    size: tuple[int, int] | None = None
    batch: int | None = None
    preprocess: bool = False
    argmax: bool = False
    threshold: float = THRESHOLD

    def check(self, model: Segmenter) -> None:
        """Raise a UserError unless this network can be exported so."""
        if self.threshold != THRESHOLD and model.activation == "sigmoid" and not self.argmax:
            raise UserError(f"threshold={self.threshold}: it is for class ids; add --argmax, or leave it out")
        if not 0 < self.threshold < 1 or (self.threshold != THRESHOLD and model.activation == "softmax"):
            raise UserError(
                f"threshold={self.threshold}: give one above 0 and below 1, for the class ids of a network with "
                "sigmoids, or leave it out"
            )
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch={self.batch}: give at least 1, or leave it out for any number of images")
        if self.size is None:
            _check_free_size(model)
        elif (fitting := tuple(model.fitting_side(side) for side in self.size)) != tuple(self.size):
            height, width = self.size
            raise UserError(f"size={height}x{width}: does not fit this network; {fitting[0]}x{fitting[1]} would")

    def images(self, model: Segmenter) -> jax.ShapeDtypeStruct:
        """Return the shape, with names for free sizes, and the type of what goes in."""
        height, width = self.size or ("h", "w")
        limits = [] if self.size else [f"{side} >= {SMALLEST_SIDE}" for side in ("h", "w")]
        text = f"{self.batch or 'b'}, {height}, {width}, {model.in_channels}"
        dtype = jnp.uint8 if self.preprocess and not model.preprocessing.stored_range else jnp.float32
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(text, constraints=limits), dtype)


def export_stablehlo(
    model: Segmenter,
    variables: Mapping[str, Any],
    signature: Signature,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    info: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a network exported for inference; the module's docstring describes the file.

    Batch norm is folded and an auxiliary head left out. If the model's `lowering` is "auto", one file contains for each
    platform the lowering that suits it.

    Args:
      model, variables: from `load`.
      signature: what goes in and comes out.
      platforms: where it will run: "cpu", "cuda", "rocm", "tpu".
      info: from `load`; its class names and palette go into the metadata.

    Returns:
      The zip file's content.

    Raises:
      UserError: a signature that the network cannot have, or an impossible platform.
    """
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise UserError(f"platforms={tuple(platforms)}: give one or more of {', '.join(PLATFORMS)}")
    function, images, metadata = exported_function(model, variables, signature, info=info)
    exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(images)
    metadata["platforms"] = list(exported.platforms)
    metadata["calling_convention_version"] = exported.calling_convention_version
    return pack({STABLEHLO_FILE: bytes(exported.serialize()), METADATA_FILE: json.dumps(metadata, indent=1).encode()})


def exported_function(
    model: Segmenter,
    variables: Mapping[str, Any],
    signature: Signature,
    *,
    info: Mapping[str, Any] | None = None,
    fold: bool = True,
) -> tuple[Run, jax.ShapeDtypeStruct, dict[str, Any]]:
    """Return the function of images to export with its weights inside, what goes in, and the metadata, for any format.

    The arguments are those of `export_stablehlo`; `fold` is whether batch norms are folded.

    Raises:
      UserError: a signature that the network cannot have.
    """
    signature.check(model)
    inference_model, variables = _for_inference(model, variables) if fold else (model, dict(variables))
    images, function = signature.images(model), _function(inference_model, variables, signature)
    result = jax.eval_shape(function, images)
    return function, images, _metadata(model, signature, images, result, info or {})


def _check_free_size(model: Segmenter) -> None:
    """Raise a UserError for a network that computes regions, views or sizes, for which it needs numbers."""
    if model.valid or model.pyramid is not None or isinstance(model.context, PyramidPooling | SpatialPyramidContext):
        name = describe(model)["name"]
        raise UserError(f"{name}: cannot be exported for images of any size; give one, such as {size_flag(model)}")


def size_flag(model: Segmenter) -> str:
    """Return a flag that gives the images of an export a size that fits."""
    side = model.fitting_side(513)
    return f"--size {side}x{side}"


def _for_inference(model: Segmenter, variables: Mapping[str, Any]) -> tuple[Segmenter, Variables]:
    """Fold batch norm, and drop the auxiliary head, whose weights the file does not need."""
    model, variables = fold_norm(model, variables)
    params = {name: tree for name, tree in variables["params"].items() if name != "aux_head"}
    return model.clone(aux_features=None), {**variables, "params": params}


def _function(model: Segmenter, variables: Variables, signature: Signature) -> Run:
    def run(images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, _prepared(model, images) if signature.preprocess else images)
        if not signature.argmax:
            return logits
        # The largest logit has the largest probability, so a softmax need not be computed.
        decided = logits if model.activation == "softmax" else to_probabilities(model, logits)
        ids = decide(model, decided, signature.threshold)
        return ids.astype(jnp.uint8 if model.label_classes <= 256 else jnp.int32)

    return run


def _prepared(model: Segmenter, images: jax.Array) -> jax.Array:
    """Preprocess images as stored."""
    if stored := model.preprocessing.stored_range:
        low, high = stored
        images = jnp.clip((images - low) * (255.0 / (high - low)), 0.0, 255.0)
    return model.preprocessing(images)


def _meaning(model: Segmenter, signature: Signature) -> tuple[str, str]:
    """Return the name of the output, and its meaning."""
    if model.activation == "softmax":
        meanings = "class ids", "logits; softmax over the last axis gives probabilities"
    elif model.multilabel:
        meanings = (
            f"0 or 1 for each label: 1 where its probability is above {signature.threshold}",
            "logits of labels that do not exclude each other; the sigmoid of each is its probability",
        )
    else:
        meanings = (
            f"class ids: 1 where the object's probability is above {signature.threshold}, else 0",
            "the object's logit; its sigmoid is the object's probability",
        )
    return ("classes", meanings[0]) if signature.argmax else ("logits", meanings[1])


def _metadata(
    model: Segmenter, signature: Signature, images: Any, result: Any, info: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metadata: inputs and outputs of the function, with the names b, h and w for free sizes."""
    reading, (name, meaning) = model.preprocessing, _meaning(model, signature)
    low, high = (reading.stored_range or (0, 255)) if signature.preprocess else reading.value_range
    described = {
        "name": "images",
        **_array(images),
        "colours": f"bands {', '.join(map(str, reading.bands))} of a file, from 0" if reading.bands else "RGB",
        "value_range": [low, high],
        "normalised": "within the function"
        if signature.preprocess
        else "by the caller: (image - mean) / std in value_range",
        "smallest_side": model.fitting_side(1),
    }
    returned = {
        "name": name,
        **_array(result),
        "meaning": meaning,
        "covers": "the centre of the images" if model.valid else "the images",
    }
    return {
        "format": FORMAT,
        "input": described,
        "preprocessing": vars(reading),
        "output": returned,
        "num_classes": model.num_classes,
        **{key: info[key] for key in ("class_names", "palette") if key in info},
        "output_stride": model.output_stride,
        "model": describe(model),
        "versions": {"deeplab_jax": version_of("deeplab_jax"), "jax": jax.__version__},
    }


def _array(aval: Any) -> dict[str, Any]:
    return {"shape": [side if isinstance(side, int) else str(side) for side in aval.shape], "dtype": str(aval.dtype)}


def pack(entries: Mapping[str, bytes]) -> bytes:
    """Pack files uncompressed, because compression does not shrink weights. `ZipInfo` dates every entry alike, so the
    same files give the same bytes.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()
