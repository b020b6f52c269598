"""Strides turned into rates: how a classification network keeps its resolution (DeepLabv3, sec. 3.1 and 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

FirstUnitRate = Literal["previous", "stage", "last_unit", "next_stage"]


@dataclass(frozen=True)
class Stage:
    """How one stage runs at the given output stride.

    Attributes:
      stride: stride at the start of the stage; 1 if it was turned into a rate.
      rate: atrous rate of the stage's convolutions after that stride.
      first_rate: rate of the first unit's spatial convolution, which may have lost its stride.
      output_stride: input pixels per sample after the stage.
    """

    stride: int
    rate: int
    first_rate: int
    output_stride: int


class UnitPlan(NamedTuple):
    """How one residual unit runs.

    Attributes:
      stride: of the unit.
      first_rate: rate of the spatial convolution that carries the stride.
      rate: rate of a spatial convolution after it.
    """

    stride: int
    first_rate: int
    rate: int


def plan_units(
    stage: Stage, following: Stage | None, grid: Sequence[int], *, first_unit_rate: FirstUnitRate
) -> list[UnitPlan]:
    """Return how the units of a stage run, one for each number of its multi-grid, which multiplies the rates.

    Args:
      stage: of `dilate_stages`.
      following: the next stage, None for the last. With "last_unit" its stride is in this stage's last unit, and what
        follows there has its rate.
      grid: the multi-grid.
      first_unit_rate: see `dilate_stages`.
    """
    strides, rates = [1] * len(grid), [stage.rate] * len(grid)
    if first_unit_rate != "last_unit":
        strides[0] = stage.stride
    elif following is not None:
        strides[-1], rates[-1] = following.stride, following.rate
    first_rates = [stage.first_rate, *[stage.rate] * (len(grid) - 1)]
    return [
        UnitPlan(stride, first * factor, rate * factor)
        for stride, first, rate, factor in zip(strides, first_rates, rates, grid, strict=True)
    ]


def dilate_stages(
    strides: Sequence[int], *, start: int, output_stride: int, first_unit_rate: FirstUnitRate
) -> list[Stage]:
    """Keep the strides until the output stride is reached. From there on, multiply the rates instead.

    If a stage loses its stride, its first unit follows one of four conventions:

    - "previous": the convolution that lost its stride keeps the rate of the stage before, because it samples that
      stage's map (torchvision's ResNets). Then the features at output stride 16 are exactly every second sample of
      those at 8, with the same weights.
    - "last_unit": the stride is in the last unit of the stage before (the papers, the authors' "beta" ResNets). The
      convolution there keeps that stage's rate, and every unit of this stage takes the new rate. The features agree as
      with "previous".
    - "stage": the stride is in the first unit, and every convolution of the stage takes the new rate
      (segmentation_models_pytorch, torchvision's MobileNetV3). The features do not agree.
    - "next_stage": the stride is in the first unit, and the whole stage keeps the rate before it. The next stage takes
      the new rate (jfzhang95's MobileNetV2). The features do not agree.

    Args:
      strides: nominal stride of each stage.
      start: stride at the start of the first stage.
      output_stride: a power of 2 between `start` and the product of `start` and all strides.
      first_unit_rate: see above.

    Returns:
      One `Stage` for each stride.

    Raises:
      ValueError: these stages cannot reach the output stride.
    """
    nominal = [start]
    for stride in strides:
        nominal.append(nominal[-1] * stride)
    if output_stride not in nominal:
        raise ValueError(
            f"output_stride={output_stride}: this backbone offers {', '.join(str(n) for n in sorted(set(nominal)))}"
        )
    stages, reached, rate = [], start, 1
    for stride in strides:
        if reached * stride <= output_stride:
            reached *= stride
            stages.append(Stage(stride, rate, rate, reached))
        else:
            previous, rate = rate, rate * stride
            first_rate = rate if first_unit_rate in ("stage", "last_unit") else previous
            stages.append(Stage(1, previous if first_unit_rate == "next_stage" else rate, first_rate, reached))
    return stages
