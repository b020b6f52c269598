"""`predict` for a program."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax.errors import UserError, spell
from deeplab_jax.extensions import allow
from deeplab_jax.files import at_home
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.tasks.arguments import check_choice, check_names

if TYPE_CHECKING:
    from deeplab_jax.evaluate.image_list import Found
    from deeplab_jax.evaluate.outputs import Outputs

Say = Callable[[str], Any]
Outcomes = Iterator[tuple[Path, Path, UserError | None]]  # An input, its first file, and why it failed.


@dataclass
class Predictions:
    """What `predict` has done.

    Attributes:
      folder: where the files are.
      files: the first file that was written for each image or video: its class ids or, of a video, its overlay.
      failed: why an image or a video could not be predicted.
      page: the page that shows all images, if there is one.
    """

    folder: Path
    files: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    page: Path | None = None

    def add(self, outcomes: Outcomes, fail: Say) -> None:
        """Add what was done with images or videos; `fail` receives why one failed."""
        for path, file, error in outcomes:
            if error is None:
                self.files[path] = file
            else:
                self.failed[path] = str(error)
                fail(str(error))


def predict(
    model: str | Path | tuple[Segmenter, Variables, dict[str, Any]],
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    checkpoint: str = "best",
    module: str = "",
    channels: Sequence[int] = (),
    batch_size: int | None = None,
    probabilities: str = "",
    confidence: bool = False,
    ids: str = "classes",
    polygons: bool = False,
    say: Say = print,
    warn: Say | None = None,
    fail: Say | None = None,
    **how: Any,
) -> Predictions:
    """Segment images and videos, write the predictions, and return what was written.

    A file that cannot be read does not end the run: it is in `failed`.

    Args:
      model: what `load` takes, or what it returns.
      checkpoint, module: see `load`.
      images: a file or folder, or several.
      out: folder for the predictions; folders below a folder are kept.
      channels: bands of the files, if not the model's.
      batch_size: images that run together; by default 1 on CPUs, otherwise 8.
      probabilities, confidence, polygons: see `evaluate.outputs.Outputs`.
      ids: "classes", or "dataset" for the values of the data set's own masks.
      say, warn, fail: receive lines about what was done, what is missing, and each file that failed.
      how: how the model runs: fields of `Protocol` such as `output_stride`, `scales`, `flip` and `window`, but none
        that concerns labels.

    Raises:
      UserError: anything in the model, the paths or the arguments that the user can fix.
    """
    from deeplab_jax.evaluate.image_list import find_images, is_video
    from deeplab_jax.evaluate.outputs import KINDS, Outputs, label_set
    from deeplab_jax.evaluate.page import PAGE, Page
    from deeplab_jax.evaluate.predictor import predict_files
    from deeplab_jax.evaluate.protocol import Protocol, check_used
    from deeplab_jax.evaluate.video import check_videos, predict_video
    from deeplab_jax.labels import to_stored
    from deeplab_jax.terminal import note
    from deeplab_jax.weights.by_name import load

    warn, fail = warn or note, fail or note
    check_names(how, [one.name for one in fields(Protocol)])
    check_choice("probabilities", probabilities, ("", *KINDS))
    check_choice("ids", ids, ("classes", "dataset"))
    allow(module)
    folder, dataset_ids = at_home(out), ids == "dataset"
    more = {"--probabilities": probabilities, "--confidence": confidence, "--polygons": polygons}
    if dataset_ids:
        _check_alone(more)
    found = find_images([images] if isinstance(images, str | Path) else images, out=folder)
    pictures = [each for each in found if not is_video(each.path)]
    videos = [each.path for each in found if is_video(each.path)]
    check_videos(videos, folder)
    _say_unused(more, videos, warn)
    _check_rasterio(pictures, polygons, warn)
    protocol = Protocol(**how)
    check_used(protocol, how, labelled=False)
    network, variables, info = model if isinstance(model, tuple) else load(model, checkpoint=checkpoint, module=module)
    if channels:
        network = network.clone(preprocessing=replace(network.preprocessing, channels=tuple(channels)))
    labels = label_set(info, network, dataset_ids=dataset_ids)
    if dataset_ids and (shared := to_stored(labels)[1]):
        warn(f"several stored values stand for {spell(shared)}; the smallest is written")
    name = "a network" if isinstance(model, tuple) else Path(model).name
    page = Page(folder / PAGE, labels, title=f"Predictions of {name}") if pictures and not dataset_ids else None
    outputs, done = Outputs(folder, labels, probabilities, confidence, dataset_ids, page, polygons), Predictions(folder)
    run: dict[str, Any] = {"protocol": protocol, "batch_size": batch_size}
    files = partial(predict_files, network, variables, pictures, outputs, warn=warn, **run)
    done.add(_of_pictures(files, outputs), fail)
    if pictures:
        say(f"{len(done.files)} of {len(pictures)} images segmented into {folder}")
    if page is not None and done.files:
        done.page = page.write()
        say(f"to look at them, open {done.page}")
    done.add(_of_videos(partial(predict_video, network, variables, labels=labels, **run), videos, folder, say), fail)
    return done


def _check_alone(more: dict[str, Any]) -> None:
    """Raise a UserError for a flag that writes more than the ids of the data set."""
    if given := [flag for flag, value in more.items() if value]:
        raise UserError(f"--ids dataset: servers read every file in the folder; leave out {' and '.join(given)}")


def _say_unused(more: dict[str, Any], videos: Sequence[Path], warn: Say) -> None:
    """Say which flags do nothing for videos."""
    if videos and (unused := [flag for flag, value in more.items() if value]):
        warn(f"{spell(videos, limit=1)}: a video has its overlay alone, without {' and '.join(unused)}")


def _check_rasterio(pictures: "Sequence[Found]", polygons: bool, warn: Say) -> None:
    """Say what is missing for files with map coordinates; raise a UserError where polygons need it."""
    from deeplab_jax.evaluate import geo

    if polygons:
        geo.load_rasterio("--polygons")
    elif not geo.is_installed() and (on_map := [each.path for each in pictures if geo.has_ground(each.path)]):
        warn(
            f"{spell(on_map, limit=1)}: predicted without map coordinates; for a GeoTIFF of class ids, type "
            "pip install rasterio"
        )


def _of_pictures(predict: "Callable[..., Iterator[tuple[Found, UserError | None]]]", outputs: "Outputs") -> Outcomes:
    """Predict images by `predict_files`, with a progress bar."""
    from rich.console import Console

    from deeplab_jax.terminal import progress_bar

    with progress_bar(Console(stderr=True)) as progress:
        for each, error in predict(progress=progress):
            yield each.path, outputs.folder / outputs.files(each.name)[0], error


def _of_videos(predict: Callable[..., int], videos: Sequence[Path], folder: Path, say: Say) -> Outcomes:
    """Predict videos by `predict_video`, each with a progress bar, and say how fast that was."""
    from rich.console import Console

    from deeplab_jax.evaluate.video import overlay_name
    from deeplab_jax.terminal import progress_bar

    for video in videos:
        file, start = folder / overlay_name(video), time.perf_counter()
        try:
            with progress_bar(Console(stderr=True)) as progress:
                frames = predict(video, file, progress=progress)
        except UserError as error:
            yield video, file, error
            continue
        seconds = time.perf_counter() - start
        say(f"{video}: {frames} frames in {seconds:.1f} s, {frames / seconds:.1f} frames/s; written to {file}")
        yield video, file, None
