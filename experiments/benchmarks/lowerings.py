"""The times of all lowerings of each convolution in the networks, forward and with its gradient."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.ops.atrous import Lowering, conv2d
from deeplab_jax.ops.observe import Convolution, observe_convolutions
from experiments.benchmarks import networks, peers
from experiments.benchmarks.networks import Network
from experiments.benchmarks.session import Session
from experiments.benchmarks.timing import Contestant, Race, race, statistics, summarize

TOO_SLOW = 10.0
CLOSE = 0.15  # "auto" may take longer than the best lowering by this share, or by the measured spread.
# The computation of each task; "gradient" includes the forward pass.
DIRECTIONS = {"inference": "forward", "training": "gradient"}
QUICK_SHAPES = 3


def measure(session: Session) -> None:
    """Race the lowerings of every shape."""
    alone = peers.missing("torch")
    for task, shapes in shapes_in_use(session).items():
        for convolution, count in shapes.items():
            for dtype in networks.dtypes(session):
                direction = DIRECTIONS[task]
                name = f"{task} {direction}: {spell(convolution)}, {dtype}"
                settings = {"task": task, "direction": direction, "dtype": dtype, "alone": alone}
                session.row("lowerings", name, settings, partial(compare, session, convolution, count))


def shapes_in_use(session: Session) -> dict[str, Counter[Convolution]]:
    """Collect the convolutions of all networks, by task ("inference", "training")."""
    shapes: dict[str, Counter[Convolution]] = {"inference": Counter(), "training": Counter()}
    for network in networks.networks(session):
        for side in networks.inference_sides(session):
            shapes["inference"].update(collect(network, 1, side, train=False))
        shapes["training"].update(collect(network, *networks.training_batch(session, network), train=True))
    most = QUICK_SHAPES if session.quick else None
    return {task: Counter(dict(islice(found.items(), most))) for task, found in shapes.items()}


def collect(network: Network, batch: int, side: int, *, train: bool) -> Counter[Convolution]:
    """Count a network's convolutions on a batch, by shape, without computing them."""
    model = networks.create(network, lowering="direct")  # All lowerings have the same shapes; this is traced fastest.
    variables, found = abstract_variables(model), list[Convolution]()
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    apply = partial(
        model.apply, train=train, mutable=["batch_stats"] if train else False, rngs={"dropout": jax.random.key(0)}
    )
    with observe_convolutions(found.append):
        jax.eval_shape(apply, variables, images)
    return Counter(c for c in found if not c.transposed)


def compare(
    session: Session, c: Convolution, count: int, *, task: str, direction: str, dtype: str, alone: str | None
) -> dict[str, Any]:
    """Race the lowerings and PyTorch.

    Returns:
      `count`, the uses of the convolution in the networks; the race, as `summarize` returns it; `same_program`, the
      lowerings whose program is that of "auto"; and the `verdict`.
    """
    inputs = arrays(c, dtype)
    programs = {
        name: jax.jit(partial(compute, c, name, direction)).lower(*inputs).compile() for name in get_args(Lowering)
    }
    texts = {name: instructions(program.as_text() or "") for name, program in programs.items()}
    contestants: dict[str, Contestant] = {
        # A lowering that does not cover the shape has the program of "direct", which need not run twice.
        name: partial(_run, program, inputs)
        for name, program in programs.items()
        if name in ("auto", "direct") or texts[name] != texts["direct"]
    }
    if not alone:
        contestants |= {f"torch {memory}": torch_convolution(c, direction, dtype, memory) for memory in peers.FORMATS}
    result = race(contestants, rounds=session.repeats, too_slow=TOO_SLOW, keep=("auto",))
    same = [name for name in texts if name != "auto" and texts[name] == texts["auto"]]
    return {"count": count, **summarize(result, ours="auto"), "same_program": same, **verdict(result, same)}


def instructions(program: str) -> str:
    """Return the text of a compiled program without the names and origins of its values, to compare programs."""
    lines = [line for line in program.splitlines() if line.startswith(("  ", "%", "ENTRY"))]
    body = "\n".join(line if line.startswith("  ") else line.split(" (")[0] for line in lines)
    body = re.sub(r", metadata=\{[^}]*\}", "", body)
    numbers: dict[str, int] = {}
    return re.sub(r"%[\w.-]+", lambda name: f"%{numbers.setdefault(name[0], len(numbers))}", body)


def verdict(result: Race, same: Iterable[str]) -> dict[str, Any]:
    """Return a comparison of "auto" with the best lowering of a race: `best`, the fastest lowering; `auto_over_best`,
    the ratio of their medians; `spread`, the larger of their spreads; and `close`, whether the ratio is within `CLOSE`
    or this spread, or the best is of `same`, the lowerings with the program of "auto".
    """
    lowerings = [name for name in get_args(Lowering) if name != "auto" and name in result.seconds]
    times = {name: statistics(result.seconds[name]) for name in ("auto", *lowerings)}
    # Where all other lowerings were left out as too slow, "auto" is the best.
    best = min(lowerings or ["auto"], key=lambda name: times[name]["median"])
    over = times["auto"]["median"] / times[best]["median"]
    spread = max(times["auto"]["spread"], times[best]["spread"])
    close = best in same or over <= 1 + max(CLOSE, spread)
    return {"best": best, "auto_over_best": round(over, 4), "spread": spread, "close": close}


def arrays(c: Convolution, dtype: str) -> tuple[jax.Array, ...]:
    """Return a random map, kernel and cotangent."""
    rng = np.random.default_rng(0)
    shapes = (c.inputs, c.kernel, c.outputs)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes)


def compute(
    c: Convolution, lowering: Lowering, direction: str, x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> Any:
    """Return the convolution, with "gradient" also the gradients of the map and the kernel."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(
            x,
            kernel,
            rate=c.rate,
            stride=c.stride,
            padding=c.padding,
            feature_group_count=c.groups,
            lowering=lowering,
        )

    if direction == "forward":
        return convolve(x, kernel)
    y, backward = jax.vjp(convolve, x, kernel)
    return y, *backward(cotangent)


def torch_convolution(c: Convolution, direction: str, dtype: str, memory: str) -> Contestant:
    """Return PyTorch's convolution of the same shape in a memory format."""
    t, functional = peers.torch(), peers.torch().nn.functional
    images, weights, gradients = (np.asarray(array, np.float32) for array in arrays(c, dtype))
    # The kernel is HWIO. Seen as images [N, H, W, C], with N the outputs and C the inputs, it becomes PyTorch's OIHW.
    x, kernel, cotangent = (
        peers.images_for(array, memory, dtype) for array in (images, weights.transpose(3, 0, 1, 2), gradients)
    )
    (top, bottom), (left, right) = c.padding
    symmetric = top == bottom and left == right

    def convolve() -> Any:
        padded = x if symmetric else functional.pad(x, (left, right, top, bottom))
        padding = (top, left) if symmetric else (0, 0)
        return functional.conv2d(padded, kernel, stride=c.stride, padding=padding, dilation=c.rate, groups=c.groups)

    def forward() -> Any:
        with t.inference_mode():
            return convolve()

    def gradient() -> Any:
        y = convolve()
        return y, *t.autograd.grad(y, (x, kernel), cotangent)

    if direction == "gradient":
        x.requires_grad_(True)
        kernel.requires_grad_(True)
    return peers.blocking({"forward": forward, "gradient": gradient}[direction])


def spell(c: Convolution) -> str:
    """Return a shape in one line. Stride and padding are left out where they are the usual ones."""
    kind = "depthwise " if c.groups > 1 else ""
    sides = "x".join(map(str, c.inputs))
    stride = f", stride {c.stride}" if c.stride > 1 else ""
    usual = tuple((side, side) for side in (c.rate * (taps - 1) // 2 for taps in c.kernel[:2]))
    padding = "" if c.padding == usual else f", padding {c.padding}"
    return f"{sides} {kind}{c.kernel[0]}x{c.kernel[1]} -> {c.kernel[3]}, rate {c.rate}{stride}{padding}"


def _run(program: Callable[..., Any], inputs: tuple[jax.Array, ...]) -> Any:
    return jax.block_until_ready(program(*inputs))
