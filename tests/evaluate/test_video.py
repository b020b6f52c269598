"""Prediction of videos: frames, size, rate, and files that are no video."""

import dataclasses
import resource

import cv2
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import video as video_module
from deeplab_jax.evaluate.inference import segment
from deeplab_jax.evaluate.outputs import label_set
from deeplab_jax.evaluate.pictures import overlay
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.evaluate.video import as_read, check_videos, predict_video
from deeplab_jax.labels import colormap
from tests.support.tiny import MadeUp, tiny_model, tiny_models

RATE, SIZE, COUNT = 12.5, (48, 64), 7
EXACT = Protocol(mode="exact")


@pytest.fixture(scope="module")
def made():
    with tiny_models():
        return tiny_model("cascade_tiny")


def test_an_overlay_overwrites_no_other_file(tmp_path):
    videos = [tmp_path / "clip.mp4", tmp_path / "clip.mov"]
    with pytest.raises(
        UserError, match=r"clip\.mov: its prediction would overwrite that of .*clip\.mp4 \(clip_overlay\.mp4\)"
    ):
        check_videos(videos, tmp_path / "out")
    with pytest.raises(UserError, match=r"clip_overlay\.mp4: an input that a prediction would overwrite"):
        check_videos([videos[0], tmp_path / "clip_overlay.mp4"], tmp_path)
    check_videos([videos[0], tmp_path / "clip_overlay.mp4"], tmp_path / "out")


def write_video(file, codec):
    source = MadeUp((SIZE,) * COUNT)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*codec), RATE, SIZE[::-1])
    assert writer.isOpened()
    for index in range(COUNT):
        writer.write(source[index]["image"][..., ::-1])
    writer.release()
    return file


def read_video(file):
    """The frames in RGB, and the rate."""
    video, frames = cv2.VideoCapture(str(file)), []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.array(frames), video.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("avi", "MJPG"), ("mkv", "mp4v"), ("mov", "mp4v")])
def test_each_frame_is_predicted(made, tmp_path, suffix, codec) -> None:
    clip, out, progress = write_video(tmp_path / f"clip.{suffix}", codec), tmp_path / "clip_overlay.mp4", []
    done = predict_video(
        *made,
        clip,
        out,
        EXACT,
        labels=label_set({}, made[0]),
        batch_size=3,
        progress=lambda *call: progress.append(call),
    )
    assert done == COUNT and progress == [(3, COUNT), (6, COUNT), (7, COUNT)]
    (frames, _), (written, rate) = read_video(clip), read_video(out)
    assert rate == RATE and written.shape == frames.shape == (COUNT, *SIZE, 3)
    for frame, shown in zip(frames, written, strict=True):  # The codec loses a little.
        expected = overlay(np.ascontiguousarray(frame), segment(*made, frame), colormap(4))
        assert np.abs(shown.astype(int) - expected).mean() < 8 < 20 < np.abs(255 - shown.astype(int) - expected).mean()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([clip.name, out.name])


def test_a_turned_video_is_shown_as_a_player_does(made, tmp_path, monkeypatch) -> None:
    """The matrix in the track header of an MP4 file turns it by 90 degrees (ISO/IEC 14496-12, 8.3.2)."""
    clip = write_video(tmp_path / "clip.mp4", "mp4v")
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one, minus_one, fixed = (1 << 16), (-1 & 0xFFFFFFFF) << 16 & 0xFFFFFFFF, 1 << 30
    values = (0, one, 0, minus_one, 0, 0, SIZE[0] << 16, 0, fixed)
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in values)
    clip.write_bytes(data)
    predict_video(*made, clip, tmp_path / "out.mp4", EXACT, labels=label_set({}, made[0]))
    assert read_video(tmp_path / "out.mp4")[0].shape == (COUNT, SIZE[1], SIZE[0], 3)


def test_what_is_no_video_is_one_line(made, tmp_path, capfd, monkeypatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(UserError, match=r"clip\.mp4: not a video that can be read"):
        predict_video(*made, tmp_path / "clip.mp4", tmp_path / "out.mp4", EXACT, labels=label_set({}, made[0]))
    assert capfd.readouterr().err == ""
    clip = write_video(tmp_path / "large.mp4", "mp4v")
    monkeypatch.setattr(video_module, "MAX_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.mp4: frames of 3072 pixels, and 100 are the limit"):
        predict_video(*made, clip, tmp_path / "out.mp4", EXACT, labels=label_set({}, made[0]))


def test_a_failure_leaves_the_older_file(made, tmp_path, monkeypatch) -> None:
    clip, out = write_video(tmp_path / "clip.mp4", "mp4v"), tmp_path / "out.mp4"
    out.write_bytes(b"older")
    monkeypatch.setattr(video_module, "overlay", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_video(*made, clip, out, EXACT, labels=label_set({}, made[0]))
    assert out.read_bytes() == b"older" and sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


def test_a_frame_is_read_as_an_image_file_is(made, tmp_path) -> None:
    frame = MadeUp((SIZE,))[0]["image"]
    preprocessing = made[0].preprocessing
    assert as_read(frame, preprocessing, name="clip") is frame
    turned = as_read(frame, dataclasses.replace(preprocessing, channels=(2, 0, 0)), name="clip")
    np.testing.assert_array_equal(turned, frame[..., [2, 0, 0]])
    grey = as_read(frame, preprocessing.for_channels(1), name="clip")
    np.testing.assert_array_equal(grey, frame[..., :1])
    stretched = as_read(
        np.full((1, 1, 3), 40, np.uint8), dataclasses.replace(preprocessing, stored_range=(0, 50)), name=""
    )
    assert stretched.dtype == np.float32 and stretched.max() == pytest.approx(204)
    four = made[0].clone(preprocessing=preprocessing.for_channels(4))
    clip = write_video(tmp_path / "clip.mp4", "mp4v")
    with pytest.raises(UserError, match=r"clip\.mp4: a video has 3 bands, and the network reads \(0, 1, 2, 3\)"):
        predict_video(four, made[1], clip, tmp_path / "out.mp4", EXACT, labels=label_set({}, four))
    assert not (tmp_path / "out.mp4").exists()


def test_a_video_that_ends_early_is_said_after_what_there_is(made, tmp_path) -> None:
    clip = write_video(tmp_path / "clip.avi", "MJPG")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"clip\.avi: only [1-4] of its {COUNT} frames can be read; .*out\.mp4 holds"):
        predict_video(*made, clip, tmp_path / "out.mp4", EXACT, labels=label_set({}, made[0]))
    assert 1 <= len(read_video(tmp_path / "out.mp4")[0]) < COUNT


def test_a_full_disk_leaves_the_older_video(made, tmp_path) -> None:
    """OpenCV writes nothing more, and says nothing."""
    clip, out = write_video(tmp_path / "clip.mp4", "mp4v"), tmp_path / "out.mp4"
    out.write_bytes(b"older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"out\.mp4: cannot be written; free space or give another --out"):
            predict_video(*made, clip, out, EXACT, labels=label_set({}, made[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == b"older"


def test_out_of_memory_names_the_video_and_what_fits(made, tmp_path, monkeypatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    clip = write_video(tmp_path / "clip.mp4", "mp4v")
    monkeypatch.setattr(video_module, "predict_images", full)
    for size, fix in ((1, "a machine with more memory"), (2, "--batch_size 1")):
        with pytest.raises(UserError, match=rf"clip\.mp4: out of memory at 64x48 pixels; give {fix}"):
            predict_video(*made, clip, tmp_path / "out.mp4", EXACT, labels=label_set({}, made[0]), batch_size=size)
