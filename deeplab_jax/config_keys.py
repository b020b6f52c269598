"""Every key of a configuration, once: its type, default, limits and meaning.

A section holds the keyword arguments of one function. If it serves several functions, it consists of one class for
each. To add a key, add its line here and the argument in the function that uses it.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, get_origin

from ml_collections import ConfigDict

LARGEST = 2**31 - 1
SMALLEST = 1e-12  # The smallest number other than 0.
BELOW_1 = math.nextafter(1, 0)
LONGEST_SIDE = 2**15  # pixels
LARGEST_BATCH = 2**16


def key(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    give: str = "",
    most: int = LARGEST,
    free: bool = False,
    without: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Declare a key.

    Args:
      default: its value in `base`.
      low, high: the limits of a number, both included, and of each number in a list; None: no limit.
      give: text that a message shows instead of these limits.
      most: the largest number of values in a list.
      free: whether two starts of one run may differ in it: it changes numbers only by rounding, or only says when the
        run is evaluated or saved, when it ends, or what happens after a fault.
      without: for options: keys that are not allowed, because they have their own place, each with what to do instead.
    """
    kinds = {"low": low, "high": high, "give": give, "most": most, "free": free, "without": without}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=kinds)
    return field(default=default, metadata=kinds)


@dataclass(frozen=True)
class Model:
    """`create_model`."""

    name: str = "deeplabv3plus_resnet50"  # one of model_names(); its options go under `options`
    output_stride: int = 0  # in training; 0: that of the architecture
    options: Mapping[str, Any] = key(
        {},
        without={
            "name": "config.model.name is its place",
            "num_classes": "the data set's classes decide it",
            "output_stride": "config.model.output_stride is its place",
            "module": "config.module is its place",
            "channels": "config.data.channels chooses the bands of images",
            "stored_range": "config.data.value_range is its place",
        },
    )


@dataclass(frozen=True)
class Source:
    """`open_source`, once for each split."""

    name: str = "scenes"  # one of catalog.SOURCES
    dir: str = key("", free=True)  # folder of the data
    channels: tuple[int, ...] = key((), 0, 65535)  # bands of an image file, from 0; empty: RGB as a viewer shows it
    # Stored values that become 0 and 255; empty: the full range of the files' integers.
    value_range: tuple[float, ...] = key((), give="two values, low and high, such as 0,4095", most=2)
    train_split: str = "train"
    val_split: str = "val"
    # Further arguments of the data set's opener.
    options: Mapping[str, Any] = key(
        {},
        without={
            "name": "config.data.name is its place",
            "dir": "config.data.dir is its place",
            "split": "config.data.train_split and config.data.val_split are its places",
            "strict": "each command sets it",
            "module": "config.module is its place",
            "channels": "config.data.channels is its place",
            "value_range": "config.data.value_range is its place",
        },
    )


@dataclass(frozen=True)
class Papers:
    """`augment`: the papers' augmentation."""

    crop_size: tuple[int, ...] = key((513, 513), 1, LONGEST_SIDE)  # height, width in pixels
    scale_range: tuple[float, float] = key((0.5, 2.0), 0.01, 100)  # factors of random scaling
    scale_step: float = key(0.25, 0, 100)  # 0: continuous
    flip: bool = True  # left-right, with probability 1/2
    color_jitter: float = key(0.0, 0, BELOW_1, give="0 (none) to below 1")  # 0 as in the papers


@dataclass(frozen=True)
class Loader:
    """`training_batches`."""

    threads: int = key(4, 1, 1024, free=True)  # number of threads that read and augment
    workers: int = key(0, 0, 1024, free=True)  # number of processes that do so instead of threads; 0: none
    timeout: float = key(600.0, 0.001, 10**9, free=True)  # seconds to wait for a batch before the run stops


@dataclass(frozen=True)
class Augment:
    """`augment`: what happens to a training image in addition to the papers' scaling, crop and mirroring."""

    # Probability of each option below that states none; each is drawn alone. These are always done: quarter_turns,
    # resize, keep_ratio, cat_max_ratio.
    probability: float = key(0.5, 0, 1)
    vertical_flip: bool = False  # with probability 1/2
    quarter_turns: bool = False  # 0, 90, 180 or 270 degrees
    rotation: float = key(0.0, 0, 180)  # largest angle in degrees, either way
    perspective: float = key(0.0, 0, 0.2)  # largest shift of a crop's corner, as a share of the side
    elastic: float = key(0.0, 0, 1000)  # standard deviation of smooth displacements, in pixels; 10 as in U-Net
    elastic_grid: int = key(3, 2, 100)  # points along each side of a crop between which they are interpolated
    # Pixels before random scaling: of the shorter side, or (height, width); empty: the image's own.
    resize: tuple[int, ...] = key(
        (), 1, LONGEST_SIDE, most=2, give="the shorter side, such as 512, or height and width, such as 512,1024"
    )
    keep_ratio: bool = False  # largest size within `resize`, turned as the image is, without distortion
    cat_max_ratio: float = key(1.0, SMALLEST, 1)  # of a class in a crop, else it is drawn again; 0.75 in mmsegmentation
    # Factors 1 - this to 1 + this, as the next two; these three and the hue are drawn as one.
    brightness: float = key(0.0, 0, BELOW_1)
    contrast: float = key(0.0, 0, BELOW_1)
    saturation: float = key(0.0, 0, BELOW_1)  # RGB only
    hue: float = key(0.0, 0, 180)  # largest angle in degrees, either way; RGB only
    gamma: float = key(0.0, 0, 10)  # exponents 1 / (1 + this) to 1 + this
    blur: float = key(0.0, 0, 100)  # largest standard deviation of a Gaussian, in pixels
    noise: float = key(0.0, 0, 255)  # largest standard deviation, in levels of 0 to 255
    jpeg: int = key(0, 0, 100)  # lowest quality; 0: no compression; for 8 bits, grey or RGB
    cutout: int = key(0, 0, 1000)  # number of rectangles of the mean colour
    cutout_size: float = key(0.2, SMALLEST, 1)  # their largest sides, as shares of the crop's
    cutout_ignored: bool = False  # whether their pixels are ignored in the loss
    mosaic: float = key(0.0, 0, 1)  # probability that four crops share the place of one
    copy_paste: float = key(0.0, 0, 1)  # probability that a crop gets pixels of another, image and label
    copy_paste_classes: tuple[int, ...] = key((), 0, 254)  # ids; empty: those that class_temperature prefers


@dataclass(frozen=True)
class Sampling:
    """`sampling_of`: which images are drawn."""

    class_temperature: float = key(0.0, 0, 1000)  # rare classes more often, 0.01 as in DAFormer; 0: all images alike
    class_pixels: int = key(3000, 0)  # an image shows a class with more pixels than these, and a crop with half as many


@dataclass(frozen=True)
class Skipping:
    """`skipped_examples`."""

    on_error: str = key("stop", free=True)  # if a training image cannot be read; "skip" takes the next one
    # Share of the training images that may be skipped.
    max_skipped: float = key(0.01, 0, 1, free=True, give="a share of the examples, 0 to 1")


@dataclass(frozen=True)
class Data(Sampling, Skipping, Loader, Papers, Source):
    """The training data, and how they are read."""

    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class Schedule:
    """`make_schedule`."""

    learning_rate: float = key(0.007, 0)
    schedule: str = "poly"  # one of schedules.SCHEDULES: poly, cosine, one_cycle, step, constant
    power: float = key(0.9, 0)  # exponent of the poly schedule: learning_rate * (1 - step / steps) ** power
    milestones: tuple[int, ...] = key((), 1, most=32)  # of "step": steps at which the rate falls
    factor: float = key(0.1, 0)  # of "step": by which it is multiplied there
    warmup_steps: int = key(0, 0)  # linear increase from 0; of "one_cycle" the rise, 0: 30% of the steps


@dataclass(frozen=True)
class Updates:
    """`make_optimizer`."""

    name: str = "sgd"  # one of optimizer.NAMES: sgd, adam, adamw, lamb, lion
    momentum: float = key(0.9, 0)  # sgd only
    nesterov: bool = False
    # Decay of the two moving averages (sgd has none); empty: 0.9 and 0.999, or 0.99 for lion.
    betas: tuple[float, ...] = key((), 0, BELOW_1, give="two numbers from 0 to below 1", most=2)
    weight_decay: float = key(4e-5, 0)
    no_decay: tuple[str, ...] = (r"(scale|bias)$",)  # patterns of parameters that do not decay
    clip_norm: float = key(0.0, 0)  # largest global norm of the gradient; 0: no clipping
    multipliers: tuple[tuple[str, float], ...] = key((), 0)  # (pattern, factor) of the learning rate
    layer_decay: float = key(1.0, SMALLEST, 1)  # factor of the rate from each backbone stage to the one before it
    freeze: tuple[str, ...] = ()  # patterns of parameters that do not change


@dataclass(frozen=True)
class Optimizer(Updates, Schedule):
    """The update of the parameters, and its learning rate."""


@dataclass(frozen=True)
class Objective:
    """`summed_loss`."""

    loss: str = "cross_entropy"  # one of ops.losses.LOSSES, or a sum such as "cross_entropy + 0.5*dice"
    class_weights: tuple[float, ...] = key((), 0)  # factor of each class in the loss
    top_k: float = key(1.0, SMALLEST, 1, give="a share of the pixels, above 0 and up to 1")  # the hardest, in the loss
    aux_weight: float = key(0.5, 0)  # weight of the auxiliary head's loss, if the model has one
    upsample_logits: bool = True  # loss at the labels' size; False: labels are shrunk to the logits instead
    space: int = key(1, 1, free=True)  # devices that share the rows of an image; other devices have other images
    remat: bool = key(False, free=True)  # True: less memory for more time; see `summed_loss`


@dataclass(frozen=True)
class Step:
    """`train_step`."""

    accumulate: int = key(1, 1)  # micro-batches of one update, each with its own batch norm statistics
    # Decay of an average of the weights, which is evaluated and saved beside them.
    ema_decay: float = key(0.0, 0, BELOW_1, give="0 (no average) to below 1, such as 0.999")
    ema_debias: bool = False  # True: that average leaves the initial weights out, so it serves short runs too


@dataclass(frozen=True)
class LossOptions:
    """The losses of `ops.losses.LOSSES`: each takes the options that it has as arguments."""

    smoothing: float = key(0.0, 0, BELOW_1, give="0 (none) to below 1")  # of labels: share spread over all classes
    boundary_width: int = key(3, 1, 1000)  # pixels from a boundary of classes up to which a pixel is near
    boundary_weight: float = key(5.0, 0)  # factor of the loss of near pixels
    focal_gamma: float = key(2.0, 0, 100)  # exponent; 0: the cross-entropy
    # For sigmoids: the weight of label 1; label 0 has 1 minus it. 0: no weights. The paper uses 0.25.
    focal_alpha: float = key(0.0, 0, BELOW_1)
    # With a probability of the label below this, a pixel is hard.
    ohem_threshold: float = key(0.7, SMALLEST, BELOW_1, give="a probability above 0 and below 1")
    ohem_min_kept: int = key(100_000, 1)  # pixels for each image of a batch that are kept at least, the hardest
    region_smooth: float = key(0.0, 0)  # pixels added to both parts of dice, jaccard and tversky
    tversky_alpha: float = key(0.3, 0, 1000)  # factor of false positives
    tversky_beta: float = key(0.7, 0, 1000)  # factor of false negatives
    tversky_gamma: float = key(1.0, 0.01, 100)  # exponent of each class's loss; 0.75: focal Tversky


NOT_NEVER = "at least 1; more than config.train.steps means only at the end"


@dataclass(frozen=True)
class Train(Step, Objective):
    """The loop."""

    loss_options: LossOptions = field(default_factory=LossOptions)
    steps: int = key(30_000, 1)
    epochs: float = key(0.0, 0, 10**6)  # passes over the training images, which then decide `steps`; 0: `steps` decides
    batch_size: int = key(16, 1)  # images of one update, over all devices
    devices: int = key(0, 0, free=True)  # to train on; 0: all
    shard_state: bool = key(False, free=True)  # True: parameters and optimizer state are split over devices
    seed: int = key(0, 0)
    log_every: int = key(20, 1, give=NOT_NEVER, free=True)
    evaluate_every: int = key(2_000, 1, give=NOT_NEVER, free=True)
    checkpoint_every: int = key(1_000, 1, give=NOT_NEVER, free=True)
    patience: int = key(0, 0, free=True)  # evaluations without a better mIoU after which the run ends; 0: it does not
    keep: int = key(2, 1, free=True)  # newest checkpoints; the best one is kept as well
    pictures: int = key(4, 0, free=True)  # validation images drawn at each evaluation
    trackers: tuple[str, ...] = key((), free=True)  # further places for the record: "wandb", "mlflow"
    # Seconds without a sign of the other processes, if any, before they count as lost.
    timeout: float = key(900.0, SMALLEST, give="seconds, more than config.data.timeout has", free=True)
    skip_nonfinite: int = key(0, 0, free=True)  # updates that may be skipped, their loss or gradient not being finite


@dataclass(frozen=True)
class Protocol:
    """The protocol of an evaluation. Its limits stand in `evaluate/protocol.py`, since a program can make one without a
    config.
    """

    mode: str = "padded"  # padded with the mean pixel, or "exact": no padding
    pad_to: tuple[tuple[int, int], ...] = ()  # sizes to pad to; empty: see `padded_size`
    output_stride: int = 0  # 0: the model's own
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, ...] = ()  # (height, width) of a sliding window; empty: whole image
    overlap: float = 1 / 3  # smallest overlap of windows, as a share of a window
    blend: str = "uniform"  # weight of a window's pixels; "gaussian": the centre counts more than the edges
    threshold: float = 0.5  # with sigmoids: the probability above which a pixel is of the object
    resize: int = 0  # pixels of the shorter side, labels too; 0: the labels' own resolution
    crop: tuple[int, ...] = ()  # (height, width) of the centre that is evaluated; empty: all
    # Widths in pixels of bands around boundaries, which are also evaluated.
    trimap: tuple[int, ...] = key((), free=True)
    trimap_around: str = key("labels", free=True)  # any change of label; "void": VOC's strips of void pixels
    boundary: bool = key(False, free=True)  # Boundary IoU and boundary F-score too
    calibration: bool = key(False, free=True)  # how often probabilities are right, too
    bootstrap: int = key(0, free=True)  # resamples of the images for intervals of the metrics, such as 1000
    per_image: bool = key(False, free=True)  # the counts of every image too


@dataclass(frozen=True)
class Evaluate(Protocol):
    """`evaluate`."""

    batch_size: int = key(1, 1, LARGEST_BATCH, free=True)  # images on each device
    devices: int = key(0, 0, free=True)  # of each process; 0: as many as train


@dataclass(frozen=True)
class Config:
    """All sections; a field that is a class is a section."""

    model: Model
    data: Data
    optimizer: Optimizer
    train: Train
    evaluate: Evaluate
    init: str = ""  # model folder, run directory, name of published weights or hf://owner/repo: the first weights
    init_scope: str = "all"  # the part taken from there; also "all_but_classifier", "backbone"
    module: str = ""  # Python file whose tables extend the package's; see `extensions`
    own: tuple[str, ...] = ()  # parts that a Python program gave as objects, such as "loss=mine"; `train` sets it


def defaults(section: Any = Config) -> ConfigDict:
    """Return a section, or all of them, with the default of every key. Options take any key."""
    made = ConfigDict({one.name: _default(one) for one in fields(section)})
    made.lock()
    for options in (made[one.name] for one in fields(section) if is_options(one)):
        options.unlock()
    return made


def arguments(section: Mapping[str, Any], of: Any) -> dict[str, Any]:
    """Return those keys of a section that one of its classes has, as keyword arguments."""
    return {one.name: section[one.name] for one in fields(of)}


def keys_of_sections() -> dict[str, Field[Any]]:
    """Return every key of a section, by a name such as `data.dir` or `data.augment.blur`."""
    return {name: one for name, one in _keys_of(Config).items() if "." in name}


def keys_called(flag: str) -> list[str]:
    """Return the keys that a flag may mean, by their last names or the first letters of the last: `train.steps` by
    `--steps`, `optimizer.learning_rate` by `--lr`.
    """
    called = flag.lstrip("-").replace("-", "_")
    letters = {name: "".join(word[0] for word in name.rpartition(".")[2].split("_")) for name in _keys_of(Config)}
    return [name for name, few in letters.items() if f".{name}".endswith(f".{called}") or called == few != few[0]]


def _keys_of(section: Any, prefix: str = "") -> dict[str, Field[Any]]:
    found = {}
    for one in fields(section):
        name = prefix + one.name
        found.update(_keys_of(one.type, f"{name}.") if is_dataclass(one.type) else {name: one})
    return found


FREE = tuple(f"config.{name}" for name, one in keys_of_sections().items() if one.metadata and one.metadata["free"])
"""Keys in which two starts of one run may differ, such as `config.data.dir`."""


def _default(one: Field[Any]) -> Any:
    if is_options(one):
        return ConfigDict({})
    return defaults(one.type) if is_dataclass(one.type) else one.default


def is_options(one: Field[Any]) -> bool:
    """Whether a key holds options of a model or a data set."""
    return get_origin(one.type) is Mapping
