"""Prediction of image files: indexed PNGs and overlays."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from deeplab_jax.data.images import read_image, write_image, write_mask
from deeplab_jax.data.source import Example, list_images
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.inference import pad_images, predict_classes
from deeplab_jax.evaluate.pictures import flattened, overlay
from deeplab_jax.evaluate.protocol import DEFAULT, Protocol, Size
from deeplab_jax.labels import MAX_CLASSES, LabelSet, colormap
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables

Palette = Sequence[tuple[int, int, int]]

LONGEST_WHOLE = 2**14
"""Longest side of an image, in pixels, that runs whole: the matrix that resizes logits along it has side² / output
stride entries.
"""


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the named image files and those in the named folders, in order.

    Raises:
      UserError: a path that does not exist, a folder without images, or two images with the same name for their
        predictions.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = list_images(path)
            if not images:
                raise UserError(f"{path}: no image in this folder; give one that holds JPEG or PNG files")
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
    claimed: dict[str, Path] = {}
    for image in found:
        for name in output_names(image.stem):
            other = claimed.setdefault(name, image)
            if other != image:
                raise UserError(
                    f"{image}: its prediction would overwrite that of {other} ({name}); predict them into different "
                    "--out folders"
                )
    return found


def output_names(stem: str) -> tuple[str, str]:
    """Return the names of a prediction's two files: class ids, and the overlay."""
    return f"{stem}.png", f"{stem}_overlay.png"


def predict_files(
    model: Segmenter,
    variables: Variables,
    paths: Sequence[Path],
    out_dir: Path,
    protocol: Protocol = DEFAULT,
    *,
    palette: Palette | None = None,
    names: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Path, UserError | None]]:
    """Predict image files one by one, and write `NAME.png` (class ids with the palette) and `NAME_overlay.png`. Where a
    pixel can have several labels, write `LABEL/NAME.png` for each, 0 or 1, as the data set `multilabel` reads them.

    An unreadable image does not end the run. Images are predicted whole. The protocol's `resize`, `crop` and `trimap`
    concern only labelled examples and are not used here.

    Yields:
      Each path, with None or the reason why it failed.

    Raises:
      UserError: an output stride at which the model cannot run, more classes than an 8-bit image can store, or a
        prediction that would overwrite an image.
    """
    if model.label_classes + model.multilabel > MAX_CLASSES:
        raise UserError(
            f"the model has {model.label_classes} classes; predictions are written as 8-bit images, which hold "
            f"{MAX_CLASSES}: use deeplab_jax.segment"
        )
    model = protocol.at_stride(model)
    check_outputs(paths, out_dir)
    if model.multilabel:
        for folder in label_folders(names or tuple(map(str, range(model.num_classes)))):
            check_outputs(paths, out_dir / folder)
    labels = _label_set(model, palette, names)
    make_folder(out_dir)
    model, variables = fold_norm(model, variables)
    for done, path in enumerate(paths, start=1):
        try:
            image = read_image(path)
            size = image.shape[0], image.shape[1]
            check_whole(size, protocol, name=str(path))
        except UserError as error:
            yield path, error
            continue
        images, sizes = pad_images([image], protocol.run_size(size))
        classes = predict_classes(model, variables, images, sizes, protocol)
        write_prediction(out_dir, path.stem, image, np.asarray(classes[0, : size[0], : size[1]]), labels)
        if progress is not None:
            progress(done, len(paths))
        yield path, None


def check_whole(size: Size, protocol: Protocol, *, name: str) -> None:
    """Raise a UserError if an image has a side too long to run whole."""
    if max(size) > LONGEST_WHOLE and not protocol.window:
        raise UserError(
            f"{name}: an image of {size[1]}x{size[0]} pixels; sides of more than {LONGEST_WHOLE} cannot run whole; "
            "give --window 513,513"
        )


def check_outputs(paths: Iterable[Path], out_dir: Path) -> None:
    """Raise a UserError if a prediction would overwrite one of the images."""
    images = {path.resolve() for path in paths}
    for image in paths:
        for name in output_names(image.stem):
            if (out_dir / name).resolve() in images:
                raise UserError(f"{out_dir / name}: an image that a prediction would overwrite; give another --out")


def make_folder(folder: Path) -> None:
    """Create the folder of predictions, or raise a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --out") from None


def _label_set(model: Segmenter, palette: Palette | None, names: Sequence[str]) -> LabelSet:
    """Return what is known of a model's classes, with numbers for names and the usual colours where nothing is."""
    count, several = model.label_classes, model.multilabel
    colours = tuple(palette) if palette else colormap(count + several)[several:]
    return LabelSet(tuple(names) or tuple(map(str, range(count))), colours, multilabel=several)


def write_prediction(out_dir: Path, stem: str, image: np.ndarray, classes: np.ndarray, labels: LabelSet) -> None:
    """Write `STEM.png` and `STEM_overlay.png`; of several labels a pixel, `LABEL/STEM.png` for each."""
    file, shown = (out_dir / name for name in output_names(stem))
    ids = classes.astype(np.uint8)
    if labels.multilabel:
        for k, folder in enumerate(label_folders(labels.names)):
            make_folder(out_dir / folder)
            write_mask(out_dir / folder / file.name, ids[..., k], ((0, 0, 0), labels.palette[k]))
        ids, labels = flattened(ids, labels)
    else:
        write_mask(file, ids, labels.palette)
    write_image(shown, overlay(image, ids, labels.palette))


def label_folders(names: Sequence[str]) -> list[str]:
    """Return a name of a folder for each label: its own, with "_" for what is no letter, digit, "-" or space. Where two
    would be the same, each gets its number.
    """
    folders = [re.sub(r"[^\w -]", "_", name).strip() or "_" for name in names]
    return folders if len(set(folders)) == len(folders) else [f"{k}_{name}" for k, name in enumerate(folders)]


def prediction_writer(out_dir: Path, labels: LabelSet) -> Callable[[Example, np.ndarray], None]:
    """Return a function that `evaluate` calls with each example and its classes, which writes them."""

    def write(example: Example, classes: np.ndarray) -> None:
        make_folder(out_dir)
        write_prediction(out_dir, example["name"].replace("/", "_"), example["image"], classes, labels)

    return write
