"""Starting from weights that exist: what each scope takes, and what has to fit."""

import ast
import shlex
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.train.initialise import fitting_options, fresh_state, initial_variables, unlike_options
from deeplab_jax.train.sharding import make_mesh, state_shardings
from deeplab_jax.train.state import create_state
from deeplab_jax.weights.folder import flatten_variables, save
from tests.support.tiny import make_variables, run_training, tiny_config, tiny_model
from tests.support.traces import fill_variables

pytestmark = pytest.mark.usefixtures("tiny_networks")


def zeros(variables):
    """Fresh variables, all zero, of the shapes of others, and in the order of a state's."""
    return {name: jax.tree.map(jnp.zeros_like, variables[name]) for name in ("params", "batch_stats")}


def start(fresh, path, *, scope, say=lambda text: None, model=None, images=None):
    """`initial_variables`, of which most tests need no images, and of the model only its number of channels."""
    model = create_model("cascade_tiny") if model is None else model
    return initial_variables(fresh, str(path), scope, model, say=say, images=images)


def taken(variables, source):
    """The names of the tensors that are the source's."""
    flat, source = flatten_variables(variables), flatten_variables(source)
    return {name for name in flat if name in source and np.array_equal(flat[name], source[name])}


def test_scopes(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny", aux_head=True)
    # No tensor is all zeros, as fresh biases and means are.
    variables = jax.tree.map(lambda x: x + 1.5, variables)
    save(tmp_path, model, variables, {})
    names = set(flatten_variables(variables))
    said = []
    expected = {
        "all": names,
        "all_but_classifier": {name for name in names if "classifier" not in name and "aux_head" not in name},
        "backbone": {name for name in names if "/backbone/" in name},
    }
    for scope, wanted in expected.items():
        assert taken(start(zeros(variables), tmp_path, scope=scope, say=said.append), variables) == wanted, scope
        assert f"initialised {len(wanted)} of {len(names)} tensors from {tmp_path} (scope {scope})" == said[-1]
    assert expected["backbone"] < names


def test_the_whole_state_starts_from_the_weights(tmp_path) -> None:
    """Also what an optimizer remembers of the first parameters, as Prodigy and schedule-free ones do."""
    model, variables = tiny_model("cascade_tiny")
    save(tmp_path, model, variables, {})
    remembers = optax.GradientTransformation(lambda params: params, lambda *_: None)
    initial = partial(create_state, model=model, optimizer=remembers, size=(33, 33), ema=True)
    shardings = state_shardings(jax.eval_shape(initial, jax.random.key(0)), make_mesh(1), split=False)
    config, note = tiny_config(init=str(tmp_path)), lambda text: None
    state = fresh_state(initial, shardings, config, model=model, images=None, say=note)
    jax.tree.map(np.testing.assert_array_equal, state.variables(), variables)
    kept = (state.params, state.ema_params, state.opt_state)
    for tree in kept:
        jax.tree.map(np.testing.assert_array_equal, tree, variables["params"])
    # All are donated to the step, so they may not share memory.
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(kept)]
    assert len(set(places)) == len(places)


def test_other_classes_fit_all_but_the_classifier(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny", num_classes=7)
    save(tmp_path, model, variables, {})
    _, other = tiny_model("cascade_tiny", num_classes=3)
    fresh = zeros(other)
    fix = "add --config.init_scope=all_but_classifier$"
    with pytest.raises(UserError, match=rf"params/classifier/bias is \(7,\), the model has \(3,\); .*{fix}"):
        start(fresh, tmp_path, scope="all")
    start(fresh, tmp_path, scope="all_but_classifier")


def test_missing_tensors_unknown_scopes_and_missing_folders_are_user_errors(tmp_path) -> None:
    model, variables = tiny_model("cascade_tiny", norm="group")
    save(tmp_path, model, variables, {})
    _, batch = tiny_model("cascade_tiny")
    with pytest.raises(
        UserError, match=r"missing params/backbone/.*norm.*; give the network the options of .*norm="
    ) as error:
        start(zeros(batch), tmp_path, scope="backbone")
    assert shlex.split(str(error.value))[-1] == "--config.model.options.norm='group'"
    _, larger = tiny_model("deeplabv3plus_tiny", norm="group")
    with pytest.raises(UserError, match=r"missing params/context/.*; add --config.init_scope=backbone$"):
        start({"params": larger["params"]}, tmp_path, scope="all")
    with pytest.raises(UserError, match=r"config\.init_scope='bakbone': did you mean backbone"):
        start(zeros(batch), tmp_path, scope="bakbone")
    with pytest.raises(UserError, match="gone: no such folder"):
        start(zeros(batch), tmp_path / "gone", scope="all")


def test_weights_of_another_width_name_the_option(tmp_path) -> None:
    """Only what is needed: the momentum changes no tensor, and the weights of 0.125 have the default output stride."""
    source = create_model("deeplabv3_resnet18", num_classes=3, width=0.125, norm_momentum=0.9)
    model = create_model("deeplabv3plus_resnet18", num_classes=5, width=0.25)
    variables, fresh = (fill_variables(network, 1, 33, 33, 3) for network in (source, model))
    save(tmp_path, source, variables, {})
    with pytest.raises(UserError, match=r"these weights: --config\.model\.options\.width=0\.125$"):
        start(fresh, tmp_path, scope="backbone", model=model)
    plain = create_model("deeplabv3_resnet18", num_classes=3)
    assert fitting_options(plain, source, flatten_variables(fill_variables(plain, 1, 33, 33, 3)), "all") == [
        "--config.model.options.width=None"
    ]
    other = create_model("deeplabv3_resnet50", num_classes=3, width=0.125)
    assert fitting_options(source, other, flatten_variables(variables), "all") == []


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("bakbone", r"config\.init_scope='bakbone': did you mean backbone"),
        ("backbone", r"config\.init_scope='backbone': no weights are given .*; add --config\.init=MODEL, or .*"),
    ],
)
def test_a_scope_without_weights_is_refused_before_a_start_and_a_run_goes_on(tmp_path, scope, message) -> None:
    config = tiny_config(init_scope=scope, **{"train.steps": 3})
    with pytest.raises(UserError, match=message):
        run_training(tmp_path / "run", config)
    model, variables = tiny_model("cascade_tiny", num_classes=9)
    save(tmp_path / "weights", model, variables, {})
    config.init, config.init_scope = str(tmp_path / "weights"), "backbone"
    run_training(tmp_path / "run", config)
    # It has its weights, so they need not be given again.
    config.init, config.train.steps = "", 4
    assert run_training(tmp_path / "run", config, allow_config_change=True) is not None


def test_a_cascade_starts_from_a_plain_network(tmp_path) -> None:
    model, longer = (create_model("cascade_resnet18", width=0.125, last_block=last) for last in (4, 6))
    variables, longer = (fill_variables(network, 1, 65, 65, 3) for network in (model, longer))
    save(tmp_path, model, variables, {})
    said = []
    started = start(zeros(longer), tmp_path, scope="backbone", say=said.append)
    assert taken(started, variables) == {name for name in flatten_variables(variables) if "/backbone/" in name}
    copies = [name for name in flatten_variables(longer) if "/backbone/conv6_" in name or "/backbone/conv7_" in name]
    assert said[-1] == f"it has no copies of block 4: {len(copies)} tensors of those start fresh"
    with pytest.raises(UserError, match="missing params/backbone/conv6_unit1"):
        start(zeros(longer), tmp_path, scope="all_but_classifier")


def test_folded_norms_come_back_as_the_identity(tmp_path) -> None:
    """With the statistics of the very images, in training as well, the new norms change nothing."""
    folded, variables = tiny_model("cascade_tiny", norm="none")
    save(tmp_path, folded, variables, {})
    model, fresh = tiny_model("cascade_tiny")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 33, 33, 3)), jnp.float32)
    said = []
    started = start(zeros(fresh), tmp_path, scope="all", model=model, images=lambda: images, say=said.append)
    expected = folded.apply(variables, images, train=False)
    for train in (False, True):
        ours, _ = model.apply(started, images, train=train, mutable=["batch_stats"])
        np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())
    count = len([name for name in flatten_variables(fresh) if name.endswith("norm/batch/scale")])
    assert said[-1] == f"its batch norms were folded away: {count} new ones start as the identity"
    # Elsewhere they are norms like any other: their statistics are not 0 and 1.
    other, _ = model.apply(started, 2 * images, train=True, mutable=["batch_stats"])
    assert np.abs(other - folded.apply(variables, 2 * images, train=False)).max() > 1e-2 * np.abs(expected).max()


def test_a_stem_of_three_channels_starts_one_of_four(tmp_path) -> None:
    """Images of four equal channels then give the features of RGB images of three equal ones."""
    model, variables = tiny_model("cascade_tiny")
    save(tmp_path, model, variables, {})
    wide, fresh = tiny_model("cascade_tiny", in_channels=4)
    said = []
    started = start(zeros(fresh), tmp_path, scope="all", model=wide, say=said.append)
    assert said[0] == (
        f"{tmp_path}: the first convolution took 3 channels; for 4 it starts from its kernels in turn, times 3/4"
    )
    kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    found = started["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(found, 0.75 * kernel[:, :, jnp.asarray([0, 1, 2, 0])], rtol=1e-6)
    untouched = flatten_variables(variables).keys() - {"params/backbone/stem/conv/kernel"}
    assert taken(started, variables) == untouched
    with pytest.raises(UserError, match=r"channels=\(0, 1\): 2 bands for a network of 4 channels"):
        tiny_model("cascade_tiny", in_channels=4, channels=(0, 1))


def test_folded_norms_come_back_for_more_channels(tmp_path) -> None:
    folded, variables = tiny_model("cascade_tiny", norm="none")
    save(tmp_path, folded, variables, {})
    model, fresh = tiny_model("cascade_tiny", in_channels=6)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 33, 33, 6)), jnp.float32)
    started = start(zeros(fresh), tmp_path, scope="all", model=model, images=lambda: images)
    # Six channels are the three old ones twice, each with half the weight.
    expected = folded.apply(variables, (images[..., :3] + images[..., 3:]) / 2, train=False)
    ours = model.apply(started, images, train=False)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_settings_that_no_tensor_shows_are_named(tmp_path) -> None:
    """What the message prints makes it vanish."""
    other = {"norm_epsilon": 1e-3, "value_range": (-1.0, 1.0), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    save(tmp_path, *tiny_model("cascade_tiny", **other), {})
    model, fresh = tiny_model("cascade_tiny")
    said = []
    start(zeros(fresh), tmp_path, scope="backbone", model=model, say=said.append)
    note = next(line for line in said if line.startswith("note: "))
    typed = [word.removeprefix("--config.model.options.") for word in shlex.split(note) if word.startswith("--")]
    options = {key: ast.literal_eval(value) for key, value in (word.split("=", 1) for word in typed)}
    assert options == other
    # The same images, written in another way, and a context of its own.
    own = {"value_range": (0.0, 1.0), "mean": (0.5,) * 3, "std": (0.5,) * 3, "multi_grid": (1, 2)}
    source = create_model("cascade_resnet18", **options, pool_padding="same")
    assert unlike_options(source, create_model("cascade_resnet18", **options, pool_padding="same")) == []
    (padding,) = unlike_options(source, create_model("cascade_resnet18", **{**options, **own}))
    assert shlex.split(padding) == ["--config.model.options.pool_padding='same'"]
    # An FCN has the windows of VGG-16 itself, and takes no other.
    pooling = create_model("largefov_vgg16"), create_model("fcn8s_vgg16")
    assert unlike_options(*pooling) == ["(pool_window=3)"]


@pytest.mark.slow
def test_the_second_stage_starts_from_the_first(tmp_path) -> None:
    """The papers' protocol: batch norm trained at output stride 16, then frozen at 8."""
    run_training(tmp_path / "one", tiny_config(**{"train.steps": 1}))
    second = {
        "train.steps": 1,
        "init": str(tmp_path / "one"),
        "model.output_stride": 8,
        "model.options": {"norm": "frozen"},
        "optimizer.freeze": (r"norm/batch/(scale|bias)$",),
        "optimizer.learning_rate": 0.0,
    }
    run_training(tmp_path / "two", tiny_config(**second))
    from deeplab_jax.weights.folder import load

    first, second = (flatten_variables(load(tmp_path / name)[1]) for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert load(tmp_path / "two")[0].output_stride == 8
    assert make_variables(load(tmp_path / "two")[0]).keys() == {"params", "batch_stats"}
