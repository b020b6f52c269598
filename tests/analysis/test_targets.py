"""Targets of a compilation: their names, the chips they mean, and what a wrong one is told."""

import importlib.util

import jax
import pytest

from deeplab_jax.analysis.targets import CHIPS, Target, devices_of, parse_target
from deeplab_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "shape"),
    [("v5e:1x1", (1, 1)), ("v5e:4x4", (4, 4)), ("v6e:2x4", (2, 4)), ("v4:2x2x1", (2, 2, 1)), ("v5p:1x1x1", (1, 1, 1))],
)
def test_a_slice(text, shape) -> None:
    target = parse_target(text)
    assert target == Target(text, shape) and target.chip is CHIPS[text.split(":")[0]]


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:2x3", "v5e:2x2x1", "v5e:0x2", "v5e:1x2", "v5e:axb", "v5e:98x98"])
def test_a_wrong_slice_is_told_three_right_ones(text) -> None:
    with pytest.raises(UserError, match=f"--target {text}: .* give v5e:1x1, v5e:2x2 or v5e:4x4$"):
        parse_target(text)
    for right in ("v5e:1x1", "v5e:2x2", "v5e:4x4"):
        parse_target(right)


def test_an_unknown_chip_is_told_all() -> None:
    with pytest.raises(UserError, match="--target h100: choose from v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:2x2, cpu, gpu$"):
        parse_target("h100")


@pytest.mark.parametrize(("name", "clock"), [("v4", 1.05e9), ("v5e", 1.5e9), ("v5p", 1.75e9), ("v6e", 1.75e9)])
def test_the_clock_follows_from_operations_a_cycle(name, clock) -> None:
    assert CHIPS[name].clock == pytest.approx(clock, rel=0.005)


def test_devices_of_this_machine() -> None:
    assert list(devices_of(parse_target("cpu"))) == jax.devices("cpu")


def test_a_missing_compiler_is_named_with_its_command(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu is missing.*: pip install 'deeplab_jax\[tpu-compile\]'$"):
        devices_of(parse_target("v5e:2x2"))


@pytest.mark.parametrize(("text", "count"), [("v5e:1x1", 1), ("v5e:2x4", 8), ("v4:2x2x1", 4), ("v6e:1x1", 1)])
def test_a_device_stands_for_each_chip(text, count) -> None:
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs: pip install 'deeplab_jax[tpu-compile]'")
    devices = devices_of(parse_target(text))
    assert len(devices) == count and {device.platform for device in devices} == {"tpu"}
