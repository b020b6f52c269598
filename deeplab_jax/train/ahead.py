"""Compilation ahead of time: what the programs of a configuration need on devices that need not be there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
from ml_collections import ConfigDict

from deeplab_jax import files
from deeplab_jax.analysis.compiled import read_compiled
from deeplab_jax.analysis.targets import Target, compiler_version, devices_of
from deeplab_jax.config_values import check
from deeplab_jax.data.catalog import SOURCES
from deeplab_jax.data.sets.multilabel import MULTILABEL
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate.windows import Size
from deeplab_jax.files import read_json, write_json
from deeplab_jax.labels import PUBLISHED_SETS
from deeplab_jax.models.catalog import describe
from deeplab_jax.train.from_config import build_model, open_split
from deeplab_jax.train.lower import Lowered, lower_evaluation, lower_prediction, lower_training

FORMAT = 1  # of a stored report; a change of what it holds makes another one
MOST_IMAGES = 4096
Report = dict[str, Any]
Watch = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Ahead:
    """One program of a configuration for one target.

    Attributes:
      config: from `load_config`.
      target: from `parse_target`.
      kind: "training", "evaluation" or "prediction".
      size: height and width of a predicted image.
      num_classes: of the model; 0: those of the data set, which is opened unless its classes are known.
      folder: of stored reports; None stores none.
      watch: makes the context in which XLA works, from a text that says what it does.
    """

    config: ConfigDict
    target: Target
    kind: str = "training"
    size: Size = (513, 513)
    num_classes: int = 0
    folder: Path | None = None
    watch: Watch = nullcontext

    def report(self, images: int = 0) -> Report:
        """Compile the program for so many images of a call, or the configuration's number.

        Returns:
          What the program needs, JSON: `fits`, and `why` it does not; where it fits, the fields of `Compiled`,
          `bounds` in seconds, and what `estimated` returns.

        Raises:
          UserError: a configuration or a target that cannot be.
        """
        begin = perf_counter()
        lowered, model = self.lower(images)
        about = {"target": self.target.name, **lowered.about, "model": describe(model), "chip_memory": self.limit()}
        file = self._file(lowered)
        stored = _stored(file)
        found = stored or self._compile(lowered, round(perf_counter() - begin, 1))
        if file and not stored:
            with suppress(OSError):  # Without a writable folder, only time is lost.
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, found)
        return {**about, **found, **self.estimated(found, lowered.about)}

    def lower(self, images: int = 0) -> tuple[Lowered, Any]:
        """Return the program for so many images of a call, and the model."""
        config = self.config.copy_and_resolve_references()
        devices = devices_of(self.target)
        unit = self.unit()
        if images > MOST_IMAGES and self.kind != "training":
            raise UserError(f"{images} images of a call: give at most {MOST_IMAGES}")
        if self.kind == "evaluation" and images % unit:  # A training says so itself.
            fewer = [images - images % unit] if images > unit else []
            near = " or ".join(map(str, [*fewer, images - images % unit + unit]))
            raise UserError(f"{images} images of a call: {unit} devices take equal shares, so use {near}")
        if images and self.kind == "training":
            config.train.batch_size = images
        check(config)
        classes, multilabel = classes_of(config, self.num_classes)
        model = build_model(config, num_classes=classes, multilabel=multilabel)
        if self.kind == "training":
            return lower_training(config, model, devices), model
        if self.kind == "evaluation":
            if images:
                config.evaluate.batch_size = images // unit
            return lower_evaluation(config, model, devices), model
        return lower_prediction(model, self.size, devices[0], images=images or 1), model

    def unit(self) -> int:
        """Return the number that divides the images of a call."""
        devices = devices_of(self.target)
        first = sum(device.process_index == devices[0].process_index for device in devices)
        t = self.config.train
        if self.kind == "training":
            return (t.devices or len(devices)) // t.space * t.accumulate
        return (self.config.evaluate.devices or t.devices or first) if self.kind == "evaluation" else 1

    def limit(self) -> int:
        """Return the bytes of a device that a program may use."""
        if self.target.chip:
            return int(self.target.chip.hbm_gib * 2**30)
        if self.target.name == "cpu":
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(jax.devices(self.target.name)[0].memory_stats()["bytes_limit"])

    def estimated(self, found: Report, about: Report) -> Report:
        """Return what the estimates come to: `seconds` of a call by the largest bound, `images_per_second`, and the
        `hours` of all steps of a training whose number is configured; nothing where the chip's speed is not known.
        """
        if not found["fits"] or not found["bounds"]:
            return {}
        seconds = max(found["bounds"].values())
        t = self.config.train
        counted = self.kind == "training" and not t.epochs  # The steps of epochs depend on the data.
        hours = {"hours": seconds * t.steps / 3600} if counted else {}
        return {"estimated": {"seconds": seconds, "images_per_second": about["images"] / seconds, **hours}}

    def largest(self) -> tuple[int, list[Report]]:
        """Return the most images of a call that fit, 0 for none, and the reports of all numbers that were tried."""
        tried: list[Report] = []

        def fits(images: int) -> bool:
            tried.append(self.report(images))
            return tried[-1]["fits"]

        start = self.config.train.batch_size if self.kind == "training" else self.unit()
        return bisect(fits, unit=self.unit(), start=start), tried

    def _compile(self, lowered: Lowered, seconds: float) -> Report:
        begin = perf_counter()
        versions = {"jax": jax.__version__, "compiler": compiler_version(self.target)}
        about = lowered.about
        try:
            with (
                self.watch(f"{about['kind']}, {about['images']} images, {self.target.name}: XLA compiles"),
                _uncached(),
            ):
                compiled = lowered.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"fits": False, "why": str(error).splitlines()[0], "versions": versions}
        took = {"lower": seconds, "compile": round(perf_counter() - begin, 1)}
        needs = read_compiled(compiled, lowered.arguments)
        limit = self.limit()
        return {
            "fits": needs.total_memory <= limit or self.target.chip is not None,  # For a chip, the compiler decides.
            "why": "" if needs.total_memory <= limit else f"{needs.total_memory} bytes are more than {limit}",
            **needs.to_json(),
            "bounds": needs.bounds(self.target.chip) if self.target.chip else {},
            "seconds_of_compilation": took,
            "versions": versions,
        }

    def _file(self, lowered: Lowered) -> Path | None:
        """Return where the report of a program is stored: by its text, the target and the compiler."""
        if self.folder is None:
            return None
        # The names of the modules are no part of the text, but of the report.
        names = repr(jax.tree.structure(lowered.lowered.in_tree))
        parts = (
            FORMAT,
            lowered.lowered.as_text(),
            names,
            self.target.name,
            compiler_version(self.target),
            jax.__version__,
            self.limit(),
        )
        return self.folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"


@contextmanager
def _uncached() -> Iterator[None]:
    """Keep programs out of JAX's own store, whatever they take: for a topology it can write them and not read them."""
    key = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[key]
    jax.config.update(key, 1e9)
    try:
        yield
    finally:
        jax.config.update(key, before)


def bisect(fits: Callable[[int], bool], *, unit: int, start: int) -> int:
    """Return the largest multiple of `unit`, up to `MOST_IMAGES`, for which `fits` is true; 0 where it is for none.

    What fits must also fit at fewer. The search doubles from `start`, then halves the gap.
    """
    low, high, tried = 0, MOST_IMAGES // unit + 1, max(1, start // unit)
    doubling = True
    while high - low > 1:
        tried = min(tried, high - 1)
        if fits(tried * unit):
            low = tried
        else:
            high, doubling = tried, False
        tried = 2 * low if doubling else (low + high) // 2
    return low * unit


def classes_of(config: ConfigDict, count: int = 0) -> tuple[int, bool]:
    """Return the number of classes of a configuration's data, or `count` where it is given, and whether a pixel can
    have several; without its files where they are known.
    """
    options = config.data.options.to_dict()
    if not count and config.data.name in SOURCES:
        count = len(options.get("class_names") or ())
    if count:
        return count, config.data.name == MULTILABEL
    known = PUBLISHED_SETS.get(config.data.name) if not options and not config.data.dir else None
    labels = known or open_split(config, config.data.train_split).labels
    return labels.num_classes, labels.multilabel


def cache_folder() -> Path | None:
    """Return the folder of stored reports, beside that of compiled programs; None without a home folder."""
    with suppress(RuntimeError):
        return files.cache_folder("compile")
    return None


def _stored(file: Path | None) -> Report | None:
    if file is None:
        return None
    with suppress(OSError, ValueError):
        found = read_json(file)
        return found if isinstance(found, dict) and "fits" in found else None
    return None
