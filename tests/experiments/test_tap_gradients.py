"""Gradients by tap of an atrous kernel, and the table of single rates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.models.catalog import create_model
from deeplab_jax.train.state import create_state
from experiments import tap_gradients
from experiments.regimes import REGIMES
from experiments.run.resolve import Resolved, Settings, resolve
from experiments.tables import TABLES
from experiments.tables.extra_rates import rates
from experiments.tap_gradients import KERNEL, main, of_taps, outer_share
from tests.support.tiny import MadeUp, tiny_models
from tests.support.traces import fill_variables


def test_the_rates_on_a_map() -> None:
    """A quarter, a half, three quarters of a map's 16, 32 and 64 steps, and all of them."""
    assert rates(17) == (2, 4, 8, 12, 16)
    assert rates(33) == (2, 8, 16, 24, 32) and rates(65) == (2, 16, 32, 48, 64)


def test_maps_have_their_sides_at_output_stride_8() -> None:
    table = TABLES["extra_rates"]
    for row in table.rows:
        found = resolve(row, table, REGIMES["demo"], Settings())
        assert isinstance(found, Resolved)
        side, rate, pooling = row.cells
        config, pixels = found.config, 8 * (side - 1) + 1
        assert config.data.crop_size == config.data.options["size"] == (pixels, pixels)
        assert config.evaluate.pad_to == ((pixels, pixels),) and config.model.output_stride == 8
        assert config.model.options.aspp_rates == (rate / 2,), "they double at output stride 8"
        assert config.model.options.image_pooling is pooling
    assert REGIMES["scenes"].why_not(table.rows[0]), "the regime has another backbone"


@pytest.fixture(scope="module")
def networks():
    """States and models of single rates on maps of 5 samples, and a batch."""
    source = MadeUp(((33, 33),) * 2)
    batch = tap_gradients.first_images(source, 2)

    def made(rate):
        rates = (rate // 2,)  # They double at output stride 8.
        model = create_model("deeplabv3_tiny", num_classes=4, output_stride=8, aspp_channels=4, aspp_rates=rates)
        variables = fill_variables(model, 1, 33, 33, 3)
        how = {"model": model, "optimizer": optax.identity(), "size": (33, 33), "ema": False}
        return create_state(jax.random.key(0), **how, variables=variables), model

    with tiny_models():
        yield {rate: made(rate) for rate in (2, 4, 6)}, batch


def test_the_gradient_is_that_of_the_loss(networks) -> None:
    """By another way: the mean cross-entropy of the upsampled logits over labelled pixels, differentiated."""
    states, batch = networks
    state, model = states[2]
    labels = jnp.asarray(batch["label"])

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        images = model.preprocessing(batch["image"])
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(labels == 255, 0, labels))
        return jnp.sum(losses * (labels != 255)) / jnp.sum(labels != 255)

    kernel = jax.jit(jax.grad(loss))(state.params)
    for name in KERNEL:
        kernel = kernel[name]
    expected = np.sqrt(np.mean(np.square(kernel), axis=(2, 3)))
    np.testing.assert_allclose(of_taps(state, model, batch), expected, rtol=1e-3, atol=1e-8)


def test_rates_beyond_the_map_reach_the_centre_alone(networks) -> None:
    """On 5 samples, rate 4 still has corners that see a sample; rate 6 has the centre alone."""
    states, batch = networks
    shares = {rate: outer_share(of_taps(*state, batch)) for rate, state in states.items()}
    assert shares[6] == 0 < shares[4] < shares[2]


def test_outer_share_by_hand() -> None:
    taps = np.ones((3, 3))
    taps[1, 1] = 2
    assert outer_share(taps) == pytest.approx(8 / 12)


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch, capsys) -> None:
    asked = []

    def pretend(found, workdir, step, *, images):
        asked.append((found.config.model.options.aspp_rates, workdir.name, step, images))
        return np.ones((3, 3))

    monkeypatch.setattr(tap_gradients, "gradients", pretend)
    monkeypatch.setattr(tap_gradients, "enable_compilation_cache", lambda: None)
    steps: list[int] = []
    monkeypatch.setattr(tap_gradients, "checkpoint_steps", lambda workdir: steps)
    out = tmp_path / "taps.json"
    words = ["--out", str(out), "--runs", str(tmp_path), "--row", "map_17-rate_8", "--row", "map_33-rate_8"]
    for _ in range(2):
        assert main(words) == 0
    assert [one[0::2] for one in asked] == [((4,), 0), ((4,), 0)]
    said = capsys.readouterr()
    assert "map_17-rate_8, step 0: outer taps have 88.89% of the gradient" in said.out
    assert "no checkpoints there, so only the random weights are measured; python -m experiments.run" in said.err
    kept = json.loads(out.read_text())["rows"]["map_17-rate_8"]
    assert kept["taps"] == {"0": [[1.0] * 3] * 3}
    # A run adds its checkpoints, also those that come later. What it has deleted since is kept.
    run = f"{kept['training']}_seed0"
    for steps[:] in ([50, 100], [100, 450]):
        assert main(words[:6]) == 0
    assert asked[2:] == [((4,), run, step, 8) for step in (50, 100, 450)]
    assert list(json.loads(out.read_text())["rows"]["map_17-rate_8"]["taps"]) == ["0", "50", "100", "450"]
    capsys.readouterr()
    steps.clear()  # The run directory is gone; the gradients are still told.
    assert main(words[:6]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "map_17-rate_8, step 450: outer taps have 88.89% of the gradient" in said.out
    steps[:] = [100, 450]
    # Another number of images starts anew.
    assert main([*words[:6], "--images", "2"]) == 0
    assert [one[2:] for one in asked[5:]] == [(0, 2), (100, 2), (450, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "map_17-rate_9"], "--row 'map_17-rate_9': did you mean"),
        (["--images", "1"], "--images 1: give at least 2"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, words, message) -> None:
    assert main(["--out", str(tmp_path / "taps.json"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_damaged_file_is_not_overwritten(tmp_path, capsys) -> None:
    (tmp_path / "taps.json").write_text("{")
    assert main(["--out", str(tmp_path / "taps.json")]) == 2
    assert "give another --out" in capsys.readouterr().err and (tmp_path / "taps.json").read_text() == "{"
