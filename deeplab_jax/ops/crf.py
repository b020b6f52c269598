"""Mean-field inference in a fully connected CRF (DenseCRF), which sharpens class probabilities along image edges.

The model is that of Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (NIPS 2011), as DeepLabv1 (sec. 3.2) and DeepLabv2 (sec. 3.3) use it. The unary energy of a pixel is
-log probability, the label compatibility is Potts's, and every pair of pixels i, j is joined by two kernels of
positions p (pixels) and colours I (levels 0 to 255):

    appearance  w1 exp(-|p_i - p_j|^2 / 2 sigma_alpha^2 - |I_i - I_j|^2 / 2 sigma_beta^2)
    smoothness  w2 exp(-|p_i - p_j|^2 / 2 sigma_gamma^2)

One iteration updates all pixels at once: `Q_i(k) ~ p_i(k) exp(sum over kernels and pixels j of w k(i, j) Q_j(k))`.
Potts's compatibility is a penalty for neighbours that disagree; this formula has a reward for those that agree. The two
differ by the same number for every class, and the normalisation over classes removes it.

Descriptions differ on two points. Here both follow the authors' published code (and its wrapper pydensecrf), because
the published weights and bandwidths were found with it:

- Kernels are normalised symmetrically: k(i, j) becomes k(i, j) / sqrt(s_i s_j), where s_i is the sum over j of k(i, j).
  So weights mean the same at all bandwidths and image sizes.
- The sums include j = i, which the paper leaves out. This matters for pixels of a rare colour: their own term keeps s_i
  away from 0, and they keep the label from the network.

One thing does not follow the authors' code: it filters on a permutohedral lattice. Here there are an exact form and a
fast form that approximates it; see `mean_field`.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Filter = Callable[[jax.Array], jax.Array]

# Queries and sources of one block of the exact form: its kernel takes 16 MiB.
BLOCK = 2048
# The fast form. Measured on CamVid (`experiments.crf_study`): labels equal the exact form's on 99.7% of the pixels.
PIXELS_PER_CELL = 84
MOST_CELLS = 8192  # The kernel between cells takes 4 * cells^2 bytes. Images of a megapixel and more get larger cells.
NEAR_CELLS = 32
# exp(-40) = 4e-18 changes no sum, and smaller exponents give subnormal numbers, which slow some processors tenfold.
LEAST_EXPONENT = -40.0


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Parameters of the CRF. The defaults are those that other implementations give for DeepLabv2's ResNet-101.

    Its VGG-16 has (w1, w2, alpha, beta, gamma) = (4, 2, 65, 3, 2); DeepLab-LargeFOV's scripts have (4, 3, 49, 5, 3).

    Attributes:
      iterations: iterations of the mean field; 0 only scales the probabilities of a pixel so that their sum is 1.
      appearance_weight: w1.
      position_bandwidth: sigma_alpha in pixels.
      colour_bandwidth: sigma_beta in levels (0 to 255).
      smoothness_weight: w2.
      smoothness_bandwidth: sigma_gamma in pixels.
      method: "fast" or "exact"; see `mean_field`.

    Raises:
      ValueError: a bandwidth is not positive, the number of iterations is negative, or the method is unknown.
    """

    iterations: int = 10
    appearance_weight: float = 4.0
    position_bandwidth: float = 67.0
    colour_bandwidth: float = 3.0
    smoothness_weight: float = 3.0
    smoothness_bandwidth: float = 1.0
    method: Literal["fast", "exact"] = "fast"

    def __post_init__(self) -> None:
        for name in ("position_bandwidth", "colour_bandwidth", "smoothness_bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations}: give 0 or more")
        if self.method not in ("fast", "exact"):
            raise ValueError(f"method={self.method!r}: choose 'fast' or 'exact'")


DEFAULT = DenseCRF()


def mean_field(
    probabilities: jax.Array, image: jax.Array, mask: jax.Array | None = None, *, crf: DenseCRF = DEFAULT
) -> jax.Array:
    """Return the class probabilities of every pixel after mean-field inference.

    Both methods sum the smoothness kernel over all pixels by one matrix product per axis, because it is separable. They
    differ in the appearance kernel:

    - "exact" sums over all pairs of pixels, block by block. Memory is bounded; time grows with the square of the number
      of pixels.
    - "fast" groups pixels of similar position and colour into cells. It sums pairs of pixels in neighbouring cells
      exactly, and the other pairs between the means of their cells. Images of up to 3,800 pixels have no other pairs.

    Args:
      probabilities: float `[H, W, K]`, not negative; they need not sum to 1.
      image: uint8 `[H, W, 3]`, RGB, of the same size.
      mask: bool `[H, W]`; None is all True. Pixels where it is False, such as padding, do not influence others and keep
        their own probabilities.
      crf: parameters.

    Returns:
      float32 `[H, W, K]`, which sum to 1 over the classes.

    Raises:
      ValueError: shapes that do not fit.
    """
    shape = probabilities.shape[:2]
    if image.shape != (*shape, 3) or (mask is not None and mask.shape != shape):
        raise ValueError(
            f"probabilities {probabilities.shape}, image {image.shape}, mask {None if mask is None else mask.shape}: "
            "expected [H, W, K], [H, W, 3] and [H, W]"
        )
    return _mean_field(probabilities, image, jnp.ones(shape, bool) if mask is None else mask, crf)


@partial(jax.jit, static_argnums=3)
def _mean_field(probabilities: jax.Array, image: jax.Array, mask: jax.Array, crf: DenseCRF) -> jax.Array:
    points = _points(image)
    bandwidths = (crf.position_bandwidth, crf.colour_bandwidth)
    appearance: Filter = (
        partial(_exact_sums, points, points, bandwidths=bandwidths)
        if crf.method == "exact"
        else _fast_sums(points, mask.ravel(), bandwidths=bandwidths)
    )
    filters = [
        (crf.appearance_weight, _normalised(lambda x: appearance(x.reshape(-1, x.shape[-1])).reshape(x.shape), mask)),
        (crf.smoothness_weight, _normalised(partial(_smoothness_sums, bandwidth=crf.smoothness_bandwidth), mask)),
    ]
    filters = [(weight, kernel) for weight, kernel in filters if weight != 0]
    probabilities = probabilities.astype(jnp.float32)
    unary = -jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))

    def iterate(_: int, current: jax.Array) -> jax.Array:
        messages = (weight * kernel(current) for weight, kernel in filters)
        return jax.nn.softmax(sum(messages, -unary))

    return jax.lax.fori_loop(0, crf.iterations, iterate, jax.nn.softmax(-unary))


class _Points(NamedTuple):
    """Positions `[..., 2]` in pixels and colours `[..., 3]` in levels.

    Both are whole numbers, so squared distances of pixels are exact in float32 (up to 2,800 pixels a side).
    """

    position: jax.Array
    colour: jax.Array

    def map(self, function: Filter) -> "_Points":
        return _Points(function(self.position), function(self.colour))


def _points(image: jax.Array) -> _Points:
    height, width = image.shape[:2]
    position = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)
    colour = image.astype(jnp.float32) - 128
    return _Points(position.reshape(-1, 2).astype(jnp.float32), colour.reshape(-1, 3))


def _normalised(sums: Filter, mask: jax.Array) -> Filter:
    """Return kernel sums that are normalised symmetrically, over the pixels of the mask."""
    ones = mask[..., None].astype(jnp.float32)
    norm = ones * jax.lax.rsqrt(jnp.maximum(sums(ones), jnp.finfo(jnp.float32).tiny))
    return lambda values: norm * sums(norm * values)


def _smoothness_sums(values: jax.Array, *, bandwidth: float) -> jax.Array:
    """Return the sums of `[H, W, K]` with the position kernel, which is a product of one matrix per axis."""
    rows, columns = (
        jnp.asarray(np.exp(-0.5 * (np.subtract.outer(np.arange(n), np.arange(n)) / bandwidth) ** 2), jnp.float32)
        for n in values.shape[:2]
    )
    values = jnp.einsum("yh,hwk->ywk", rows, values, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("xw,ywk->yxk", columns, values, precision=jax.lax.Precision.HIGHEST)


def _kernel(queries: _Points, sources: _Points, bandwidths: tuple[float, float]) -> jax.Array:
    """Return the appearance kernel `[Q, S]` between points `[Q, .]` and `[S, .]`."""

    def exponents(a: jax.Array, b: jax.Array, bandwidth: float) -> jax.Array:
        product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
        return (product - 0.5 * jnp.sum(a * a, -1)[:, None] - 0.5 * jnp.sum(b * b, -1)[None, :]) / bandwidth**2

    total = exponents(queries.position, sources.position, bandwidths[0])
    total += exponents(queries.colour, sources.colour, bandwidths[1])
    return jnp.exp(jnp.maximum(total, LEAST_EXPONENT))


def _exact_sums(queries: _Points, sources: _Points, values: jax.Array, *, bandwidths: tuple[float, float]) -> jax.Array:
    """Return the sums of the sources' values `[S, K]` with the kernel at each query, `[Q, K]`."""

    def blocks(x: jax.Array) -> jax.Array:
        size = min(BLOCK, x.shape[0])
        return jnp.pad(x, ((0, -x.shape[0] % size), (0, 0))).reshape(-1, size, x.shape[1])

    source_blocks = (sources.map(blocks), blocks(values))

    def at_queries(block: _Points) -> jax.Array:
        def add(total: jax.Array, source: tuple[_Points, jax.Array]) -> tuple[jax.Array, None]:
            return total + _weighted_sum(_kernel(block, source[0], bandwidths), source[1]), None

        return jax.lax.scan(add, jnp.zeros((block.colour.shape[0], values.shape[1])), source_blocks)[0]

    sums = jax.lax.map(at_queries, queries.map(blocks))
    return sums.reshape(-1, values.shape[1])[: queries.colour.shape[0]]


def _weighted_sum(kernel: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.matmul(kernel, values, precision=jax.lax.Precision.HIGHEST)


def _fast_sums(points: _Points, mask: jax.Array, *, bandwidths: tuple[float, float]) -> Filter:
    """Return a function that approximates the sums of values `[N, K]` with the kernel between all pixels of the mask.

    Every cell reads its `NEAR_CELLS` nearest cells (and itself) pixel by pixel, and the others as their means.
    """
    count = mask.size
    cells = min(MOST_CELLS, 2 ** max(0, round(math.log2(count / PIXELS_PER_CELL))))
    scaled = jnp.concatenate([points.position / bandwidths[0], points.colour / bandwidths[1]], axis=-1)
    members = _cells(scaled, mask, cells)

    def by_cell(values: jax.Array) -> jax.Array:
        """Return `[N, ...]` as `[cells, capacity, ...]`, zero where a cell has fewer pixels."""
        return jnp.concatenate([values, jnp.zeros_like(values[:1])])[members]

    sizes = jnp.sum(members < count, axis=1)
    means = jnp.sum(by_cell(scaled), axis=1) / jnp.maximum(sizes, 1)[:, None]
    distances = sum((means[:, None, axis] - means[None, :, axis]) ** 2 for axis in range(scaled.shape[1]))
    # Images smaller than their padding have cells without pixels, which come last.
    near = jax.lax.top_k(-jnp.where(sizes[None, :] > 0, distances, jnp.inf), min(NEAR_CELLS, cells))[1]
    far_kernel = jnp.exp(jnp.maximum(-0.5 * distances, LEAST_EXPONENT)).at[jnp.arange(cells)[:, None], near].set(0)
    members_points = points.map(by_cell)

    def sums(values: jax.Array) -> jax.Array:
        members_values = by_cell(values)
        far = _weighted_sum(far_kernel, jnp.sum(members_values, axis=1))

        def at_cell(cell: tuple[_Points, jax.Array, jax.Array]) -> jax.Array:
            queries, neighbours, total = cell
            sources = members_points.map(lambda x: x[neighbours].reshape(-1, x.shape[-1]))
            kernel = _kernel(queries, sources, bandwidths)
            return total[None] + _weighted_sum(kernel, members_values[neighbours].reshape(-1, values.shape[1]))

        at_members = jax.lax.map(at_cell, (members_points, near, far))
        return jnp.zeros((count + 1, values.shape[1])).at[members].set(at_members)[:count]

    return sums


def _cells(features: jax.Array, mask: jax.Array, cells: int) -> jax.Array:
    """Group the points of the mask into cells by median splits along the axis of largest extent (a k-d tree).

    Args:
      features: `[N, D]`.
      mask: bool `[N]`.
      cells: a power of 2.

    Returns:
      int32 `[cells, ceil(N / cells)]`: the points of each cell, filled up with N. Points outside the mask are in no
      cell, and do not change the cells of the others.
    """
    count = mask.size
    outside = cells  # Larger than the number of any node, so that segment sums and scatters drop it.

    def split(_: int, node: jax.Array) -> jax.Array:
        extent = jax.ops.segment_max(features, node, cells) - jax.ops.segment_min(features, node, cells)
        own = jnp.minimum(node, cells - 1)
        key = jnp.take_along_axis(features, jnp.argmax(extent, axis=1)[own][:, None], axis=1)[:, 0]
        rank, sizes = _ranks(node, key, cells)
        return jnp.where(mask, 2 * node + (rank >= (sizes[own] + 1) // 2), outside)

    node = jax.lax.fori_loop(0, cells.bit_length() - 1, split, jnp.where(mask, 0, outside))
    rank, _ = _ranks(node, jnp.zeros(count), cells)
    members = jnp.full((cells, -(-count // cells)), count, jnp.int32)
    return members.at[node, rank].set(jnp.arange(count, dtype=jnp.int32), mode="drop")


def _ranks(node: jax.Array, key: jax.Array, nodes: int) -> tuple[jax.Array, jax.Array]:
    """Return each point's rank by key within its node, and the sizes of the nodes."""
    positions = jnp.arange(node.size)
    sizes = jax.ops.segment_sum(jnp.ones_like(node), node, nodes)
    starts = jnp.cumsum(sizes) - sizes
    _, _, order = jax.lax.sort((node, key, positions), num_keys=2)
    sorted_rank = positions - starts[jnp.minimum(node[order], nodes - 1)]
    return jnp.zeros_like(node).at[order].set(sorted_rank), sizes
