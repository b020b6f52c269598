"""Strides that become rates: how a classification network keeps its resolution (DeepLabv3, sec. 3.1 and 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FirstUnitRate = Literal["previous", "stage"]


@dataclass(frozen=True)
class Stage:
    """How one stage runs at the chosen output stride.

    Attributes:
      stride: stride of its first unit, 1 where it was turned into a rate.
      rate: atrous rate of the stage's convolutions after that unit's stride.
      first_rate: rate of the convolution whose stride was removed.
      output_stride: input pixels per sample after the stage.
    """

    stride: int
    rate: int
    first_rate: int
    output_stride: int


def dilate_stages(
    strides: Sequence[int], *, start: int, output_stride: int, first_unit_rate: FirstUnitRate
) -> list[Stage]:
    """Keep the strides until the output stride is reached; from there on, multiply the rates instead.

    With `first_unit_rate="previous"` the convolution whose own stride is removed keeps the rate of the stage before,
    since it samples the map that stage left. Then the features at output stride 16 are exactly every second sample of
    those at 8, with the same weights. With "stage" it already takes the new rate, as in some peers, and that equality
    is lost.

    Args:
      strides: nominal stride of each stage.
      start: stride at which the first of them begins.
      output_stride: a power of 2 between `start` and the product of `start` and all strides.
      first_unit_rate: see above.

    Returns:
      One `Stage` for each stride.

    Raises:
      ValueError: the output stride cannot be had with these stages.
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
            stages.append(Stage(1, rate, previous if first_unit_rate == "previous" else rate, reached))
    return stages
