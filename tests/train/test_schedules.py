"""Schedules: each by hand at its corners, and what makes no sense."""

import math

import numpy as np
import optax
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.train.schedules import SCHEDULES, make_schedule


def assert_rates(schedule, by_hand) -> None:
    for step, value in by_hand.items():
        assert float(schedule(step)) == pytest.approx(value, rel=1e-5, abs=1e-9), step


def test_poly_by_hand() -> None:
    by_hand = {0: 0.007, 1: 0.007 * 0.99**0.9, 50: 0.007 * 0.5**0.9, 99: 0.007 * 0.01**0.9, 100: 0.0, 101: 0.0}
    assert_rates(make_schedule(0.007, steps=100), by_hand)


def test_cosine_by_hand() -> None:
    by_hand = {0: 0.2, 25: 0.1 * (1 + math.cos(math.pi / 4)), 50: 0.1, 100: 0.0, 120: 0.0}
    assert_rates(make_schedule(0.2, steps=100, schedule="cosine"), by_hand)


def test_one_cycle_by_hand() -> None:
    """It starts at a 25th, has its peak after 30% of the steps or after the warm-up, and ends at a 250,000th."""
    rise, half = 0.2 / 25, 0.1 * (1 + 1 / 250_000)
    schedule = make_schedule(0.2, steps=100, schedule="one_cycle")
    assert_rates(schedule, {0: rise, 15: (0.2 + rise) / 2, 30: 0.2, 65: half, 100: 0.2 / 250_000, 101: 0.2 / 250_000})
    assert_rates(make_schedule(0.2, steps=100, schedule="one_cycle", warmup_steps=29), {0: rise, 29: 0.2})
    whole = optax.cosine_onecycle_schedule(100, 0.2)
    assert_rates(schedule, {step: float(whole(step)) for step in range(101)})


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 0), (3, 3), (2, 100)])
def test_one_cycle_of_a_few_steps_only_rises_as_far_as_it_can(steps, warmup) -> None:
    schedule = make_schedule(0.25, steps=steps, schedule="one_cycle", warmup_steps=warmup)
    rates = [float(schedule(step)) for step in range(steps)]
    assert rates == sorted(rates) and rates[0] == pytest.approx(0.01) and max(rates) <= 0.25


def test_steps_by_hand() -> None:
    schedule = make_schedule(1.0, steps=100, schedule="step", milestones=(10, 20), factor=0.5)
    assert_rates(schedule, {0: 1.0, 9: 1.0, 10: 0.5, 19: 0.5, 20: 0.25, 200: 0.25})


def test_constant() -> None:
    assert_rates(make_schedule(0.3, steps=4, schedule="constant"), {0: 0.3, 3: 0.3, 100: 0.3})


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_a_warm_up_changes_nothing_after_it(name) -> None:
    options = {"steps": 20, "schedule": name, "milestones": (6,) if name == "step" else ()}
    bare, warmed = make_schedule(0.1, **options), make_schedule(0.1, warmup_steps=4, **options)
    assert float(warmed(0)) == 0.0
    assert float(warmed(1)) == pytest.approx(0.25 * float(bare(1)))
    assert float(warmed(3)) == pytest.approx(0.75 * float(bare(3)))
    for step in (4, 5, 19):
        assert np.float32(warmed(step)) == np.float32(bare(step))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "config.optimizer.schedule='cosin': did you mean cosine"),
        ({"schedule": "step"}, r"milestones=\(\): give the steps .* such as \(20000,25000\)"),
        ({"schedule": "step", "milestones": (20, 10)}, r"milestones=\(20, 10\): give the steps .* ascending"),
        ({"schedule": "step", "milestones": (10, 10)}, r"milestones=\(10, 10\): give the steps .* ascending"),
        ({"schedule": "step", "milestones": (10, 100)}, r"milestones=\(10, 100\): the run has 100 steps; .*\(50,\)"),
        (
            {"milestones": (10,)},
            r"milestones=\(10,\): the schedule 'poly' has none; set .*schedule=step",
        ),
        (
            {"schedule": "cosine", "power": 3.0},
            r"power=3\.0: the schedule 'cosine' has none; leave it at 0\.9, or set .*schedule=poly",
        ),
        ({"factor": 0.5}, r"factor=0\.5: the schedule 'poly' has none; leave it at 0\.1, or set .*schedule=step"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        make_schedule(0.1, steps=100, **options)
