"""Prediction of videos: the classes over each frame."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deeplab_jax.data.image_files import MAX_PIXELS
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.claims import Claims
from deeplab_jax.evaluate.inference import predict_images
from deeplab_jax.evaluate.memory import names_what_fits
from deeplab_jax.evaluate.outputs import APART
from deeplab_jax.evaluate.pictures import drawable, overlay
from deeplab_jax.evaluate.predictor import check_whole, checked_batch_size
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.labels import LabelSet
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.preprocessing import Preprocessing
from deeplab_jax.models.segmenter import Segmenter, Variables

CODEC = "mp4v"
"""MPEG-4 Part 2: `opencv-python-headless` has no encoder for H.264."""
SHARE = 0.9  # Some formats only estimate the number of frames, so fewer than this share are missing.
USUAL_RATE = 25.0  # Frames a second of a file that does not state it.
# OpenCV reads these once. It and FFmpeg print remarks on damaged files, but the command says what is wrong in one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")  # A video can name addresses.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def overlay_name(path: Path) -> str:
    """Return the name of the file that is written for a video."""
    return f"{path.stem}_overlay.mp4"


def check_videos(videos: Sequence[Path], out: Path) -> None:
    """Raise a UserError if the overlay of a video would overwrite that of another, or a video."""
    claims = Claims(out, videos, fix=f"rename one of them, or {APART}")
    for video in videos:
        claims.claim(str(video), [overlay_name(video)])


def predict_video(
    model: Segmenter,
    variables: Variables,
    path: Path,
    out: Path,
    protocol: Protocol,
    *,
    labels: LabelSet,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the classes over each frame of a video as an MP4 file, and return the number of frames.

    Frame rate and size are kept, but of an odd width or height the last column or row is lost, because the codec has
    even sides. A rotation that the file states is applied. There is no sound. Memory holds one batch of frames. The
    file appears when it is complete.

    Args:
      model, variables: from `load`.
      path: the video.
      out: the file to write, `.mp4`; its folder exists.
      protocol: how the model runs.
      labels: the model's classes.
      batch_size: frames that run together; see `predict_files`.
      progress: called with the number of frames done and in all; the latter is what the file claims.

    Raises:
      UserError: the video cannot be read, is too large, has not the network's bands or does not fit into memory, or the
        file cannot be written. If the video ends early, the file holds the frames that can be read.
    """
    count = checked_batch_size(batch_size, protocol)
    fewer = "--batch_size 1" if count > 1 else ""
    model, variables = fold_norm(protocol.at_stride(model), variables)
    with _opened(path) as video:
        frames = _frames(video)
        first = next(frames, None)
        if first is None:
            raise UserError(f"{path}: no frame can be read; check that it is a video and whole")
        height, width = first.shape[:2]
        check_whole((height, width), protocol, name=str(path))
        size, claimed, done = protocol.run_size((height, width)), int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        frames = chain([first], frames)
        with _writer(out, _rate(video), (width // 2 * 2, height // 2 * 2)) as writer:
            while batch := list(islice(frames, count)):
                seen = [as_read(frame, model.preprocessing, name=str(path)) for frame in batch]
                with names_what_fits(str(path), protocol, (height, width), fewer=fewer):
                    predictions = predict_images(model, variables, seen, size, protocol, count=count)
                for frame, (classes, _) in zip(batch, predictions, strict=True):
                    ids, drawn = drawable(classes, labels)
                    shown = overlay(frame, ids, drawn.palette)[: height // 2 * 2, : width // 2 * 2]
                    writer.write(np.ascontiguousarray(shown[..., ::-1]))
                done += len(batch)
                if progress is not None:
                    progress(done, max(done, claimed))
    if done < SHARE * claimed:
        raise UserError(f"{path}: only {done} of its {claimed} frames can be read; {out} holds these")
    return done


def as_read(frame: np.ndarray, preprocessing: Preprocessing, *, name: str) -> np.ndarray:
    """Return a frame uint8 `[H, W, 3]` as a network reads an image file: its bands, and levels 0 to 255.

    Raises:
      UserError: the network reads bands that a video has not.
    """
    bands = preprocessing.bands
    if max(bands, default=0) > 2:
        raise UserError(f"{name}: a video has 3 bands, and the network reads {bands}; give --channels or image files")
    return preprocessing.levels(frame[..., list(bands)] if bands else frame)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield an opened video."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        width, height = (video.get(key) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if not video.isOpened():
            raise UserError(f"{path}: not a video that can be read; check that it is whole, or save it as MP4")
        if width * height > MAX_PIXELS:
            raise UserError(f"{path}: frames of {width * height:.0f} pixels, and {MAX_PIXELS} are the limit; shrink it")
        yield video
    finally:
        video.release()


def _frames(video: Any) -> Iterator[np.ndarray]:
    """Yield the frames uint8 `[H, W, 3]` RGB, as a player shows them: OpenCV turns them by what the file states."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def _rate(video: Any) -> float:
    rate = float(video.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < 1000 else USUAL_RATE


def _is_whole(file: Path) -> bool:
    """Return whether a written video can be opened: OpenCV does not say that the disk is full, and its index, at the
    end of the file, is then missing.
    """
    video = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
    try:
        return bool(video.isOpened() and video.read()[0])
    finally:
        video.release()


@contextmanager
def _writer(out: Path, rate: float, size: tuple[int, int]) -> Iterator[Any]:
    """Yield a writer of frames (blue, green, red); `out` is replaced at the end, if the block does not fail."""
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".video") as folder:
            fresh = Path(folder, out.name)  # The suffix tells OpenCV the format.
            writer = cv2.VideoWriter(str(fresh), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODEC), rate, size)
            try:
                if not writer.isOpened():
                    raise UserError(
                        f"{out}: OpenCV cannot write {CODEC} frames of {size[0]}x{size[1]} here; predict its frames "
                        "as images"
                    )
                yield writer
            finally:
                writer.release()
            if not _is_whole(fresh):
                raise UserError(f"{out}: cannot be written; free space or give another --out")
            os.replace(fresh, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free space or give another --out") from None
