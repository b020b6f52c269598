"""The protocol of an evaluation: everything that changes its number, as one record.

Two modes:

- `exact` runs the model on the image alone. Every image size is one compilation.
- `padded` is the authors' protocol: preprocessed images are padded with zeros (the mean pixel) at the bottom and right
  to one of a few sizes, and the logits are cut back. Padding changes the borders and image-level features a little, but
  there are only as many compilations as sizes. Sizes of k * 16 + 1 pixels put the corners of every feature map on
  pixels, as `align_corners=True` assumes.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import index
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from deeplab_jax import config_keys
from deeplab_jax.config_keys import LONGEST_SIDE
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.evaluate.windows import BLENDS, Size
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.models.catalog import check_output_stride
from deeplab_jax.models.decision import THRESHOLD
from deeplab_jax.models.segmenter import SMALLEST_SIDE, Segmenter
from deeplab_jax.ops.crf import DenseCRF

Around = Literal["labels", "void"]
Value = TypeVar("Value")

MODES = ("padded", "exact")
OF_WINDOWS = ("overlap", "blend")
OF_LABELS = ("resize", "crop", "trimap", "trimap_around", "boundary", "calibration", "bootstrap", "per_image")
PAD_STEP = 128
SMALLEST_SCALE, LARGEST_SCALE = 0.01, 16.0  # Memory has no bound beyond these.
SWEEP = tuple(step / 20 for step in range(1, 20))  # The thresholds that an evaluation compares: 0.05 to 0.95.
MOST_SAMPLES = 100_000
MOST_VALUES = 32  # The most scales, and widths of a trimap: each costs a pass.


class View(NamedTuple):
    """One view of an image: its scale, and whether it is mirrored."""

    scale: float
    mirrored: bool


@dataclasses.dataclass(frozen=True)
class Protocol(config_keys.Protocol):
    """What an evaluation computes. Batches, devices and threads change no number, but for the last digits of a
    calibration, so they are not part of it.

    Attributes:
      mode: "padded" or "exact"; see the module's docstring.
      pad_to: (height, width) of each size to pad to; empty: see `padded_size`.
      output_stride: output stride of the model; 0: its own.
      scales: scales of an image; the class probabilities of all views are averaged.
      flip: whether to add the mirrored image.
      window: (height, width) of a sliding window; empty: images run whole.
      overlap: smallest overlap of neighbouring windows, as a share of a window: 0 to below 1.
      blend: weight of a pixel in the mean of the windows: "uniform", or "gaussian", which counts the centre of a window
        more than its edges; see `windows.window_weights`.
      crf: whether a fully connected CRF on the image refines the class probabilities. True becomes the default
        parameters.
      threshold: for a model with sigmoids: an object is where its probability is above it.
      resize: shorter side of the evaluated image and labels, in pixels; 0: the labels' own resolution.
      crop: (height, width) of the evaluated centre; empty: all.
      trimap: widths, in pixels, of bands around boundaries, each with its own mIoU; see `boundary`.
      trimap_around: the kind of boundary there: "labels" (any change of label) or "void" (VOC's strips of void pixels).
      boundary: whether to evaluate the outlines of the classes too: Boundary IoU and boundary F-score, see `contours`.
      calibration: whether to count the probabilities too: how often those of each size are right, see `calibration`.
      bootstrap: number of resamples of the images from which intervals of the metrics come; 0: none. See `per_image`.
      per_image: whether to keep the counts of every image, from which other statistics can be made.

    The defaults are those of `config_keys.Protocol`. Sequences of any kind become tuples.

    Raises:
      UserError: a value that makes no sense.
    """

    crf: DenseCRF | bool = False

    def __post_init__(self) -> None:
        for key, choices in (("mode", MODES), ("blend", BLENDS), ("trimap_around", get_args(Around))):
            value = getattr(self, key)
            if value not in choices:
                raise UserError(f"{key}={value!r}: {did_you_mean(str(value), choices)}")
        for key, (settle, fix) in _RULES.items():
            value = getattr(self, key)
            try:
                object.__setattr__(self, key, settle(value))
            except (TypeError, ValueError, OverflowError):
                raise UserError(f"{key}={value!r:.100}: give {fix}") from None

    @property
    def views(self) -> tuple[View, ...]:
        """The views of an image whose class probabilities are averaged."""
        return tuple(View(scale, mirrored) for scale in self.scales for mirrored in (False, True)[: 1 + self.flip])

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds, ascending, that an evaluation of sigmoids compares; the protocol's own is among them."""
        return tuple(sorted({*SWEEP, self.threshold}))

    def at_stride(self, model: Segmenter) -> Segmenter:
        """Return the model at the output stride of the protocol.

        Raises:
          UserError: the model cannot run at it, has no use for the protocol's threshold, or takes images on which the
            CRF cannot run.
        """
        if model.activation == "softmax" and self.threshold != THRESHOLD:
            raise UserError(
                f"threshold={self.threshold}: the model has a softmax, and its most probable class wins; leave this out"
            )
        if self.crf and model.in_channels != 3:
            raise UserError(
                f"crf: it compares the colours of RGB images, and the model takes {model.in_channels} channels; leave "
                "it out"
            )
        if not self.output_stride:
            return model
        model = model.clone(output_stride=self.output_stride)
        check_output_stride(model)
        return model

    def run_size(self, size: Size) -> Size:
        """Return the (height, width) at which an image of a given size runs."""
        if self.mode == "exact":
            return max(size[0], SMALLEST_SIDE), max(size[1], SMALLEST_SIDE)
        return padded_size(size, self.pad_to)

    def slides(self, size: Size) -> bool:
        """Return whether a window slides over an image that runs at this size, because it does not hold it."""
        return bool(self.window) and (size[0] > self.window[0] or size[1] > self.window[1])

    def to_json(self) -> dict[str, Any]:
        """Return the protocol's part of `metrics.json`; `evaluate` adds the results."""
        words = [f"centre crop {self.crop[0]}x{self.crop[1]}"] if self.crop else []
        words += ["sliding window"] if self.window else []
        return {
            "scales": list(self.scales),
            "flip": self.flip,
            "window": list(self.window),
            "overlap": self.overlap if self.window else None,
            "blend": self.blend if self.window else None,
            "crf": dataclasses.asdict(self.crf) if isinstance(self.crf, DenseCRF) else None,
            "mode": self.mode,
            "pad_to": [list(size) for size in self.pad_to] if self.mode == "padded" else None,
            "view": ", ".join(words) or "whole image",
            "label_resolution": f"shorter side {self.resize}" if self.resize else "original",
            "ignore_label": IGNORE_LABEL,
        }


def check_used(protocol: Protocol, given: Collection[str], *, labelled: bool = True) -> None:
    """Raise a UserError for a given field that changes nothing, because no window slides or images have no labels."""
    for key in given:
        if key in OF_WINDOWS and not protocol.window:
            raise UserError(
                f"{key}={getattr(protocol, key)!r}: no window slides; give --window 513,513 too, or leave this out"
            )
        if key in OF_LABELS and not labelled:
            raise UserError(
                f"{key}={getattr(protocol, key)!r}: it concerns labels, which only evaluate reads; leave it out"
            )


def split_section(section: Mapping[str, Any]) -> tuple[Protocol, dict[str, Any]]:
    """Return the protocol of a config's `evaluate` section, and how to run it, as arguments of `evaluate`."""
    keys = {field.name for field in dataclasses.fields(Protocol)}
    protocol = Protocol(**{key: value for key, value in section.items() if key in keys})
    return protocol, {key: value for key, value in section.items() if key not in keys}


def padded_size(size: Size, pad_to: Sequence[Size]) -> Size:
    """Return the smallest of the sizes `pad_to` that holds an image; if none does, the next multiple of 128, plus 1, of
    each side.
    """
    fitting = [(height, width) for height, width in pad_to if height >= size[0] and width >= size[1]]
    if fitting:
        return min(fitting, key=lambda s: s[0] * s[1])
    height, width = (-(-(side - 1) // PAD_STEP) * PAD_STEP + 1 for side in size)
    return max(height, PAD_STEP + 1), max(width, PAD_STEP + 1)


# Each of these returns a value in its own type. Where the value makes no sense, it raises a ValueError, TypeError or
# OverflowError.


def _whole(value: Any) -> int:
    if isinstance(value, bool):  # `index` takes it for 0 or 1.
        raise TypeError
    return index(value)


def _pair(values: Any) -> tuple[int, ...]:
    sides = () if values is None else tuple(map(_whole, values))
    return _checked(sides, len(sides) in (0, 2) and min(sides, default=1) >= 1)


def _window(values: Any) -> tuple[int, ...]:
    sides = _pair(values)
    return _checked(sides, min(sides, default=SMALLEST_SIDE) >= SMALLEST_SIDE)


def _sizes(values: Any) -> tuple[tuple[int, ...], ...]:
    sizes = tuple(map(_pair, values))
    return _checked(sizes, all(size and max(size) <= LONGEST_SIDE for size in sizes))


def _scales(values: Any) -> tuple[float, ...]:
    scales = tuple(map(float, values))
    good = all(SMALLEST_SCALE <= scale <= LARGEST_SCALE for scale in scales)
    return _checked(scales, good and 1 <= len(scales) <= MOST_VALUES)


def _widths(values: Any) -> tuple[int, ...]:
    widths = tuple(map(_whole, values))
    return _checked(widths, min(widths, default=1) >= 1 and len(set(widths)) == len(widths) <= MOST_VALUES)


def _share(value: Any) -> float:
    return _checked(float(value), 0 <= value < 1)


def _probability(value: Any) -> float:
    return _checked(float(value), 0 < value < 1)


def _side(value: Any) -> int:
    return _checked(_whole(value), 0 <= value <= LONGEST_SIDE)


def _samples(value: Any) -> int:
    return _checked(_whole(value), 0 <= value <= MOST_SAMPLES)


def _flag(value: Any) -> bool:
    return _checked(bool(value), value in (True, False))


def _crf(value: Any) -> DenseCRF | bool:
    value = DenseCRF() if value is True else value or False
    return _checked(value, value is False or isinstance(value, DenseCRF))


def _checked(value: Value, good: bool) -> Value:
    if not good:
        raise ValueError
    return value


_RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pad_to": (_sizes, f"heights and widths from 1 to {LONGEST_SIDE} pixels, such as ((513, 513),)"),
    "output_stride": (_whole, "a whole number such as 8 or 16, or 0 for the model's own"),
    "scales": (
        _scales,
        f"one or more positive factors, at most {MOST_VALUES}, from {SMALLEST_SCALE} to {LARGEST_SCALE:g}",
    ),
    "flip": (_flag, "true or false"),
    "window": (_window, f"a height and a width of at least {SMALLEST_SIDE} pixels, such as 513,513"),
    "overlap": (_share, "a share of a window from 0 to below 1, such as 0.5"),
    "crf": (_crf, "true, false or a DenseCRF"),
    "threshold": (_probability, "a probability above 0 and below 1, such as 0.5"),
    "resize": (_side, f"the pixels of the shorter side, up to {LONGEST_SIDE}, or 0 for none"),
    "crop": (_pair, "a height and a width in pixels, such as (513, 513)"),
    "trimap": (_widths, f"up to {MOST_VALUES} widths of at least 1 pixel, each once"),
    "boundary": (_flag, "true or false"),
    "calibration": (_flag, "true or false"),
    "bootstrap": (_samples, f"a number of resamples such as 1000, up to {MOST_SAMPLES}, or 0 for none"),
    "per_image": (_flag, "true or false"),
}
DEFAULT = Protocol()
