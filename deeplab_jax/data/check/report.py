"""The results of a check of a data set, as data and as text."""

import collections
import dataclasses
import math
from typing import Any, Literal

import numpy as np

from deeplab_jax.data.check.bands import BandStatistics
from deeplab_jax.data.levels import RANGE, spell_range
from deeplab_jax.data.source import spell_value_map
from deeplab_jax.labels import IGNORE_LABEL

MAX_PER_KIND = 10
"""How many findings of one kind a report lists; it counts the rest."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault, or one thing that may be a fault.

    Attributes:
      severity: `error` stops training or makes it useless, `warning` may be intended.
      kind: name by which findings are grouped and counted.
      file: the file, or the name of the example or data set.
      value: the wrong value as text.
      message: one line, without the file, that says what was found and how to fix it.
    """

    severity: Literal["error", "warning"]
    kind: str
    file: str
    value: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of a check.

    Attributes:
      name: the data set.
      class_names: names of the C classes; the tuples below follow their order.
      checked: number of examples checked.
      total: number of examples in the data set.
      findings: errors first, at most `MAX_PER_KIND` of each kind.
      counts: number of findings of each kind, with the unlisted ones.
      class_pixels: pixels of each class.
      class_shares: their share of the pixels of which it is known whether they have the class.
      class_images: number of images that show each class.
      ignored_pixels: pixels with the ignore label.
      smallest, largest: (width, height) that bound the images' sizes; None if no image could be read.
      class_weights: suggestion for the loss, see `median_frequency_weights`; empty for a split that is not trained on.
      value_map: suggested `{stored value: class id or 255}`, if the values found need another one than the present one.
      bands: what the images' bands hold, of each type of values.
      turned_images, turned_masks: number of files that an EXIF orientation turns.
      value_range: suggested `config.data.value_range` (low, high); None if the present one fits, and for other
        sources than a `PairSource`.
    """

    name: str
    class_names: tuple[str, ...]
    checked: int
    total: int
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    class_pixels: tuple[int, ...]
    class_shares: tuple[float, ...]
    class_images: tuple[int, ...]
    ignored_pixels: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    class_weights: tuple[float, ...]
    value_map: dict[int, int] | None
    bands: tuple[BandStatistics, ...]
    turned_images: int
    turned_masks: int
    value_range: tuple[float, float] | None

    @property
    def ok(self) -> bool:
        """Return whether there are no errors; warnings do not count."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return all fields in a form for `json.dump`."""
        return {**dataclasses.asdict(self), "ok": self.ok}


def format_report(report: Report) -> str:
    """Return the report as plain text, a few screens at most."""
    lines = [f"{report.name}: {report.checked} of {report.total} examples checked"]
    if report.smallest and report.largest:
        lines[0] += ", images from {}x{} to {}x{}".format(*report.smallest, *report.largest)
    listed = collections.Counter(finding.kind for finding in report.findings)
    for kind in listed:
        lines += [str(finding) for finding in report.findings if finding.kind == kind]
        if report.counts[kind] > listed[kind]:
            lines.append(f"  and {report.counts[kind] - listed[kind]} more: {kind}")
    if report.value_map is not None:
        flag = spell_value_map(report.value_map, len(report.class_names))
        lines.append(f"suggestion (stored value, class id; 255 is ignored): {flag}")
    if report.turned_images or report.turned_masks:
        lines.append(
            f"turned by an EXIF orientation, and read as a viewer displays them: "
            f"{_plural(report.turned_images, 'image')}, {_plural(report.turned_masks, 'mask')}"
        )
    lines += _bands(report)
    width = max(len(name) for name in report.class_names)
    weights = [f" {weight:>8.3f} {math.sqrt(weight):>6.3f}" for weight in report.class_weights]
    heads = f" {'weight':>8} {'sqrt':>6}" if weights else ""
    lines += ["", f"{'class':>5}  {'':{width}} {'pixels':>13} {'share':>8} {'images':>7}{heads}"]
    for i, name in enumerate(report.class_names):
        lines.append(
            f"{i:>5}  {name:{width}} {report.class_pixels[i]:>13} {report.class_shares[i]:>8.3%} "
            f"{report.class_images[i]:>7}{weights[i] if weights else ''}"
        )
    lines.append(f"{IGNORE_LABEL:>5}  {'(ignored)':{width}} {report.ignored_pixels:>13}")
    errors = sum(report.counts[kind] for kind in {f.kind for f in report.findings if f.severity == "error"})
    warnings = sum(report.counts.values()) - errors
    return "\n".join([*lines, "", f"{_plural(errors, 'error')}, {_plural(warnings, 'warning')}"])


def _bands(report: Report) -> list[str]:
    if not report.bands:
        return []
    heads = " ".join(f"{head:>9}" for head in ("minimum", "maximum", "mean", "std", "1%", "99%"))
    lines = ["", f"{'band':>5} {'type':>8} {heads} {'images':>7}"]
    for one in report.bands:
        numbers = (one.minimum, one.maximum, one.mean, one.std, one.p1, one.p99)
        lines.append(f"{one.band:>5} {one.kind:>8} {' '.join(f'{number:>9.5g}' for number in numbers)} {one.images:>7}")
    if report.value_range is not None:
        lines.append(f"suggestion for these values: {RANGE}={spell_range(report.value_range)}")
    return lines


def _plural(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def median_frequency_weights(class_pixels: np.ndarray, pixels_where_present: np.ndarray) -> np.ndarray:
    """Return class weights median(f) / f with f = `class_pixels / pixels_where_present`; 1 for an absent class.

    From Eigen and Fergus 2015 ("Predicting depth, surface normals and semantic labels"), as used on CamVid by SegNet.

    Args:
      class_pixels: `[C]` pixels of each class.
      pixels_where_present: `[C]` valid pixels of all images that show the class.

    Returns:
      float64 `[C]`.
    """
    present = class_pixels > 0
    weights = np.ones(len(class_pixels))
    if present.any():
        frequency = class_pixels[present] / pixels_where_present[present]
        weights[present] = np.median(frequency) / frequency
    return weights
