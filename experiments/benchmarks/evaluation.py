"""Evaluation of whole images, against the same evaluation written for a peer, and the number of compilations over many
image sizes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.monitoring
import numpy as np

from deeplab_jax.data.source import Example
from deeplab_jax.evaluate.evaluator import evaluate
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.labels import LabelSet, colormap
from deeplab_jax.models.fold import fold_norm
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.ops.geometry import scaled_side
from experiments.benchmarks import networks, pairs, peers
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import per_second, race, summarize
from experiments.tables.networks import MULTI_SCALE

# The peers' output stride divides these sides, so nothing is padded at scale 1.
SIDE, QUICK_SIDE = 512, 64
SAME = 0.999  # Share of the pixels that must have the same class at scale 1.
PROTOCOLS: dict[str, tuple[tuple[float, ...], bool, int]] = {
    # name: scales, flip, images of one sample
    "single scale": ((1.0,), False, 4),
    "6 scales and flip": (MULTI_SCALE, True, 1),
}
QUICK_PROTOCOLS: dict[str, tuple[tuple[float, ...], bool, int]] = {
    "single scale": ((1.0,), False, 1),
    "2 scales and flip": ((1.0, 1.5), True, 1),
}
# Sizes (height, width) that are frequent in PASCAL VOC 2012: the longer side has 500 pixels.
VOC_SIZES = (
    *((375, 500), (500, 375), (333, 500), (500, 333), (334, 500), (332, 500), (500, 334), (500, 335), (374, 500)),
    *((335, 500), (400, 500), (500, 442), (500, 366), (331, 500), (281, 500), (500, 332), (357, 500), (338, 500)),
    *((500, 400), (486, 500)),
)
COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class RandomPictures:
    """A source of random images of given sizes (height, width)."""

    sizes: tuple[tuple[int, int], ...]
    name: str = "random pictures"

    @property
    def labels(self) -> LabelSet:
        return LabelSet(tuple(f"class {k}" for k in range(networks.CLASSES)), colormap(networks.CLASSES))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        rng, size = np.random.default_rng(index), self.sizes[index]
        label = rng.integers(0, networks.CLASSES, size, np.uint8)
        return {"image": rng.integers(0, 256, (*size, 3), np.uint8), "label": label, "name": self.describe(index)}

    def describe(self, index: int) -> str:
        return f"picture {index}"


def measure(session: Session) -> None:
    """Race both protocols, and count compilations."""
    network = networks.RESNET18 if session.quick else networks.MOBILENET
    side = QUICK_SIDE if session.quick else SIDE
    alone = pairs.why_alone(network)
    for protocol, (scales, flip, images) in (QUICK_PROTOCOLS if session.quick else PROTOCOLS).items():
        name = f"{network.name}, {protocol}, {side}x{side}"
        settings = {"network": network.name, "scales": scales, "flip": flip, "side": side, "images": images}
        session.row("evaluation", name, {**settings, "alone": alone}, partial(contest, session))
    sizes = VOC_SIZES[:2] if session.quick else VOC_SIZES
    counted = networks.TINY if session.quick else network
    name = f"compilations for {len(sizes)} sizes of VOC, padded"
    settings = {"network": counted.name, "sizes": sizes, "mode": "padded"}
    session.row("evaluation", name, settings, count_compilations)


def contest(
    session: Session,
    *,
    network: str,
    scales: tuple[float, ...],
    flip: bool,
    side: int,
    images: int,
    alone: str | None,
) -> dict[str, Any]:
    """Race the evaluation of a few images that are in memory."""
    source = RandomPictures(((side, side),) * images)
    pair = pairs.pair_of(network)
    model = networks.create(pair.network)
    folded, variables = fold_norm(model, pair.variables)
    variables = jax.device_put(variables)
    predicted: list[np.ndarray] = []

    def ours() -> Any:
        predicted.clear()
        return evaluate(
            folded,
            variables,
            source,
            Protocol(mode="exact", scales=scales, flip=flip),
            on_prediction=lambda _, classes: predicted.append(np.asarray(classes)),
        )["confusion_matrix"]

    contestants: dict[str, Callable[[], Any]] = {"ours": ours}
    if not alone:
        contestants |= {
            f"eager {memory}": PeerEvaluation(pair.peer, model, source, scales, flip, memory)
            for memory in peers.FORMATS
        }
    result = summarize(race(contestants, rounds=session.repeats))
    same = None if alone else _same(predicted, contestants["eager nchw"])
    # At other scales the peer's views are padded to a multiple of its output stride, so some classes differ.
    if same is not None and scales == (1.0,) and same < SAME:
        raise AssertionError(f"only {same:.4%} of the pixels have the peer's class")
    return {**result, "images_per_second": per_second(result, images), "same_classes": same}


class PeerEvaluation:
    """The same protocol, written for a PyTorch network: it averages probabilities over views, and counts the confusion
    matrix.

    Views are padded with zeros below and to the right, to a size that the network takes.
    """

    def __init__(
        self,
        peer: Any,
        model: Segmenter,
        source: RandomPictures,
        scales: tuple[float, ...],
        flip: bool,
        memory: str,
    ) -> None:
        self._network, self._source, self._memory = peers.on_device(peer, memory), source, memory
        self._stride = model.output_stride
        self._mean, self._std = (
            peers.torch().tensor(values, device=peers.device()).view(1, 3, 1, 1)
            for values in (model.preprocessing.mean, model.preprocessing.std)
        )
        self._views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
        self.predicted: list[np.ndarray] = []

    def __call__(self) -> np.ndarray:
        """Return the confusion matrix `[K, K]`."""
        t, classes = peers.torch(), networks.CLASSES
        confusion = t.zeros(classes * classes, dtype=t.int64, device=peers.device())
        self.predicted.clear()
        with t.inference_mode():
            for index in range(len(self._source)):
                example = self._source[index]
                predicted = self._outputs(example["image"]).argmax(1)[0]
                label = t.from_numpy(example["label"].astype(np.int64)).to(peers.device())
                counted = label < classes
                pairs_of_classes = label[counted] * classes + predicted[counted]
                confusion += t.bincount(pairs_of_classes, minlength=classes * classes)
                self.predicted.append(predicted.cpu().numpy())
        return confusion.cpu().numpy().reshape(classes, classes)

    def _outputs(self, image: np.ndarray) -> Any:
        """Return the sum of the views' probabilities, or the logits where there is a single view, `[1, K, H, W]`."""
        functional = peers.torch().nn.functional
        x = (peers.images_for(image[None], self._memory) / 255 - self._mean) / self._std
        size = x.shape[2:]
        total: Any = 0
        for scale, mirrored in self._views:
            height, width = (scaled_side(side, scale) for side in size)
            view = _resized(x, (height, width))
            view = view.flip(-1) if mirrored else view
            padding = (0, -width % self._stride, 0, -height % self._stride)
            logits = self._network(functional.pad(view, padding))[:, :, :height, :width]
            logits = logits.flip(-1) if mirrored else logits
            logits = _resized(logits, size)
            if len(self._views) == 1:
                return logits
            total = total + logits.softmax(1)
        return total


def count_compilations(*, network: str, sizes: tuple[tuple[int, int], ...], mode: Literal["padded"]) -> dict[str, Any]:
    """Evaluate one image of each size, and return the number of compilations."""
    model = networks.create(networks.BY_NAME[network])
    variables: Variables = networks.random_variables(model)
    model, variables = fold_norm(model, variables)
    jax.clear_caches()
    with compilations() as programs:
        results = evaluate(model, variables, RandomPictures(sizes), Protocol(mode=mode))
    sizes_run = results["protocol"]["sizes_run"]
    return {"compilations": len(programs), "programs": dict(Counter(programs)), "sizes_run": sizes_run}


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Yield a list that gets the names of the programs which the back end compiles in this context."""
    programs: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            programs.append(str(kwargs.get("fun_name", "unknown")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def _resized(images: Any, size: tuple[int, int]) -> Any:
    if images.shape[2:] == size:  # PyTorch would compute the same map again.
        return images
    return peers.torch().nn.functional.interpolate(images, size, mode="bilinear", align_corners=True)


def _same(ours: list[np.ndarray], theirs: Any) -> float:
    return float(np.mean([np.mean(a == b) for a, b in zip(ours, theirs.predicted, strict=True)]))
