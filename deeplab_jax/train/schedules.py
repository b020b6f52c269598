"""Schedules: the learning rate of each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from deeplab_jax import config_keys
from deeplab_jax.errors import UserError, did_you_mean, kind_and_text

Schedule = Callable[[Any], Any]

# The one-cycle policy (Smith and Topin, 2018) with the numbers of fastai, PyTorch and optax.
RISE, START, END = 0.3, 25.0, 1e4
POWER, FACTOR = config_keys.Schedule.power, config_keys.Schedule.factor


def make_schedule(
    learning_rate: float,
    *,
    steps: int,
    schedule: str = "poly",
    power: float = POWER,
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    factor: float = FACTOR,
) -> Schedule:
    """Return the function from a step, counted from 0, to its learning rate.

    Args:
      learning_rate: the largest.
      steps: end of the schedule.
      schedule: one of `SCHEDULES`:
        "poly": `learning_rate * (1 - step / steps) ** power` (DeepLabv3, sec. 4.1);
        "cosine": half a cosine, from `learning_rate` to 0 (SGDR without restarts; Loshchilov and Hutter, 2017);
        "one_cycle": a cosine from `learning_rate` / 25 up to `learning_rate`, and one down to a 10,000th of the start;
        "step": `learning_rate`, times `factor` at each of the milestones;
        "constant": `learning_rate`.
      power: of "poly".
      warmup_steps: "one_cycle" rises for so many steps, or for 30% of all if it is 0. The others are multiplied by a
        linear increase from 0 to 1. They count from step 0, not from the end of the warm-up, so that a warm-up changes
        nothing after it.
      milestones: of "step", from 1, ascending: the first steps with a smaller rate.
      factor: of "step".

    Raises:
      UserError: an unknown schedule, an option of another one, or milestones that are missing, do not ascend or lie
        behind the end.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"config.optimizer.schedule={schedule!r}: {did_you_mean(schedule, SCHEDULES)}")
    for key, value, default, owner in (("power", power, POWER, "poly"), ("factor", factor, FACTOR, "step")):
        if value != default and schedule != owner:
            raise UserError(
                f"config.optimizer.{key}={value}: the schedule {schedule!r} has none; leave it at {default}, or set "
                f"config.optimizer.schedule={owner} too"
            )
    check_milestones(milestones, schedule, steps=steps)
    shape = SCHEDULES[schedule](
        learning_rate, steps=steps, power=power, rise=warmup_steps, milestones=milestones, factor=factor
    )
    if not warmup_steps or schedule == "one_cycle":
        return shape
    return lambda step: shape(step) * optax.linear_schedule(0.0, 1.0, warmup_steps)(step)


def checked_schedule(schedule: Schedule) -> Schedule:
    """Return a schedule of the user's own.

    Raises:
      UserError: it is no function from a traced step to one number.
    """
    try:
        shape = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jax.numpy.int32)).shape
    except Exception as error:
        raise UserError(
            f"schedule: {kind_and_text(error)[:200]}; give a function of JAX operations from a step to its learning "
            "rate, such as optax.cosine_decay_schedule(0.1, 1000)"
        ) from error
    if shape != ():
        raise UserError(f"schedule: it returns an array of shape {shape}; return one number for a step")
    return schedule


def _one_cycle(learning_rate: float, *, steps: int, rise: int, **_: Any) -> Schedule:
    peak = min(rise or max(1, round(RISE * steps)), steps)
    fall = {steps: 1 / (START * END)} if peak < steps else {}
    return optax.piecewise_interpolate_schedule("cosine", learning_rate / START, {peak: START, **fall})


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "poly": lambda rate, *, steps, power, **_: optax.polynomial_schedule(rate, 0.0, power, steps),
    "cosine": lambda rate, *, steps, **_: optax.cosine_decay_schedule(rate, steps),
    "one_cycle": _one_cycle,
    "step": lambda rate, *, milestones, factor, **_: optax.piecewise_constant_schedule(
        rate, dict.fromkeys(milestones, factor)
    ),
    "constant": lambda rate, **_: optax.constant_schedule(rate),
}


def check_milestones(milestones: Sequence[int], schedule: str, *, steps: int) -> None:
    """Raise a UserError unless there are milestones, ascending and within the run, just where the schedule has a use
    for them.
    """
    what = f"config.optimizer.milestones={tuple(milestones)}"
    if schedule != "step" and milestones:
        raise UserError(f"{what}: the schedule {schedule!r} has none; set config.optimizer.schedule=step too")
    if schedule == "step" and (not milestones or list(milestones) != sorted(set(milestones))):
        raise UserError(f"{what}: give the steps at which the learning rate falls, ascending, such as (20000,25000)")
    if schedule == "step" and milestones[-1] >= steps:
        raise UserError(f"{what}: the run has {steps} steps; give earlier ones, such as ({steps // 2},)")
