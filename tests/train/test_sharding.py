"""Devices: a step over eight is the step over one, and batches that do not split are refused."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from deeplab_jax.analysis.compiled import count_collectives
from deeplab_jax.analysis.program_text import read_program
from deeplab_jax.errors import UserError
from deeplab_jax.models.catalog import create_model
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.train.sharding import (
    batch_sharding,
    check_batch_size,
    check_crop_size,
    make_mesh,
    own_rows,
    place_batch,
    replicated,
    state_shardings,
)
from deeplab_jax.train.state import TrainState, create_state
from tests.support.steps import optimizer_of, step_of
from tests.support.tiny import tiny_model, tiny_models

needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: JAX_NUM_CPU_DEVICES=8")


def test_make_mesh_takes_all_devices_or_the_first() -> None:
    assert make_mesh().size == make_mesh(0).size == jax.device_count()
    assert make_mesh(1).devices.ravel().tolist() == jax.devices()[:1]
    for wrong in (-1, jax.device_count() + 1):
        with pytest.raises(UserError, match=f"config.train.devices={wrong}: there are {jax.device_count()}"):
            make_mesh(wrong)


@needs_devices
def test_place_batch_splits_the_first_axis() -> None:
    mesh = make_mesh(8)
    batch = place_batch({"image": np.arange(16).reshape(16, 1)}, mesh)
    assert batch["image"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
    np.testing.assert_array_equal(batch["image"].addressable_shards[3].data, [[6], [7]])


@needs_devices
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "nearest"), [(12, 1, 16), (20, 1, 16), (3, 1, 8), (24, 2, 32), (8, 2, 16)]
)
def test_batches_that_do_not_split_are_refused_with_the_nearest_that_does(batch_size, accumulate, nearest) -> None:
    message = f"batch_size={batch_size} does not split over {accumulate} micro-batches on 8 devices; use {nearest}$"
    with pytest.raises(UserError, match=message):
        check_batch_size(batch_size, accumulate, make_mesh(8))
    check_batch_size(nearest, accumulate, make_mesh(8))


@needs_devices
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_on_eight_devices_equals_the_step_on_one(accumulate) -> None:
    """Batch norm sees the global batch: the images differ in brightness, so each device's own mean would be off."""
    with tiny_models():
        model, variables = tiny_model("cascade_tiny", num_classes=3, aux_head=True)
    optimizer = optimizer_of(variables["params"], steps=10, learning_rate=0.1)
    rng = np.random.default_rng(0)
    count = 8 * accumulate
    image = rng.integers(0, 100, (count, 33, 33, 3)) + 10 * np.arange(count)[:, None, None, None]
    label = rng.integers(0, 4, (count, 33, 33))
    label[label == 3] = 255
    label[1] = 255  # One device without a labelled pixel.
    batch = {"image": image.clip(0, 255).astype(np.uint8), "label": label.astype(np.uint8)}

    initial = TrainState(
        step=np.zeros((), np.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        ema_params=variables["params"],
    )
    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        state = jax.device_put(jax.tree.map(np.array, initial), replicated(mesh))  # The step takes its memory.
        step = step_of(model, optimizer, seed=1, accumulate=accumulate, ema_decay=0.9)
        step = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
        for _ in range(2):
            state, metrics = step(state, place_batch(batch, mesh))
        # The mask of the dropout in the auxiliary head is the same too.
        results.append(jax.tree.map(np.asarray, (state, metrics)))
    one, eight = results
    assert float(one[1]["loss"]) == pytest.approx(float(eight[1]["loss"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@needs_devices
def test_space_divides_the_devices_and_the_rows_of_the_crops() -> None:
    mesh = make_mesh(8, 2)
    assert dict(mesh.shape) == {"data": 4, "space": 2}
    with pytest.raises(UserError, match="config.train.space=3: .*; choose from 1, 2, 4, 8$"):
        make_mesh(8, 3)
    check_batch_size(4, 1, mesh)
    model = create_model("deeplabv3_resnet18")
    check_crop_size((64, 33), model, mesh)
    check_crop_size((513, 513), model, make_mesh(8))
    for height, nearest in ((513, 512), (33, 64), (1000, 992)):
        message = re.escape(f"{height} rows do not split over 2 devices at output stride 16; use {(nearest, 33)}")
        with pytest.raises(UserError, match=message):
            check_crop_size((height, 33), model, mesh)
    unet = create_model("unet", padding="valid")
    check_crop_size((188, 188), unet, make_mesh(8))
    with pytest.raises(
        UserError, match="space=2: the maps of a network without padding do not split by rows; set it t"
    ):
        check_crop_size((188, 188), unet, mesh)


@needs_devices
def test_images_are_split_by_rows_and_every_image_is_read_by_its_process() -> None:
    mesh = make_mesh(8, 2)
    assert own_rows(mesh, 8) == list(range(8))
    batch = place_batch({"label": np.arange(4 * 6).reshape(4, 6)}, mesh)
    np.testing.assert_array_equal(batch["label"].addressable_shards[3].data, [[9, 10, 11]])


@needs_devices
def test_a_split_state_takes_a_share_of_the_memory() -> None:
    """Each array goes along its largest axis that divides; what does not divide stays whole."""
    mesh, shapes = make_mesh(8), {"kernel": (3, 3, 16, 32), "bias": (5,), "step": (), "long": (64, 24)}
    state = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    split = {name: tuple(each.spec) for name, each in state_shardings(state, mesh, split=True).items()}
    assert split == {"kernel": (None, None, None, "data"), "bias": (), "step": (), "long": ("data",)}
    assert all(each.is_fully_replicated for each in state_shardings(state, mesh, split=False).values())


def compile_step(mesh, *, size, split=False, **options):
    """The program of a training step, and the variables' shapes."""
    model = create_model(num_classes=3, norm_momentum=0.9, **options)
    variables = abstract_variables(model)
    optimizer = optimizer_of(variables["params"], steps=10)
    initial = partial(create_state, model=model, optimizer=optimizer, size=size, ema=False)
    state = jax.eval_shape(initial, jax.random.key(0))
    shardings = state_shardings(state, mesh, split=split)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    shapes = {"image": (8, *size, 3), "label": (8, *size)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, np.uint8, sharding=batch_sharding(mesh)) for name, shape in shapes.items()
    }
    step = step_of(model, optimizer, seed=1, space=mesh.shape["space"])
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return step.lower(placed, batch).compile(), variables


@needs_devices
def test_splitting_by_rows_exchanges_borders_and_splits_the_memory() -> None:
    with tiny_models():
        tiny = {"name": "cascade_tiny", "size": (256, 64), "lowering": "direct"}
        (whole, _), (rows, _) = (compile_step(make_mesh(n, n), **tiny) for n in (1, 4))
    assert "collective-permute" in rows.as_text() and "collective-permute" not in whole.as_text()
    assert rows.memory_analysis().temp_size_in_bytes < 0.45 * whole.memory_analysis().temp_size_in_bytes


@needs_devices
def test_all_reduced_bytes_are_those_of_the_gradient_and_of_batch_norm() -> None:
    """The program may reduce a statistic twice, forwards and backwards, and the scalars of the metrics."""
    with tiny_models():
        program, variables = compile_step(make_mesh(8), name="cascade_tiny", size=(33, 33))
    parameters, statistics = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables[name]))
        for name in ("params", "batch_stats")
    )
    found = count_collectives(read_program(program.as_text()))["all-reduce"]["bytes"]
    assert parameters + statistics <= found <= parameters + 2 * statistics + 64
