"""Model folders: what is saved is loaded bit for bit, and what does not fit is listed."""

import errno
import json
import os
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deeplab_jax.checkpoint import METRIC, Checkpoints
from deeplab_jax.errors import UserError
from deeplab_jax.models.preprocessing import SYMMETRIC
from deeplab_jax.weights.folder import (
    CHECKPOINTS,
    METRICS_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    flatten_variables,
    load,
    read_description,
    save,
    write_description,
)
from tests.support.tiny import tiny_model

INFO = {"class_names": ["a", "b", "c", "d"], "palette": [[0, 0, 0]] * 4, "metrics": {"miou": 0.5}}

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def made():
    return tiny_model("cascade_tiny", aux_head=True)


@pytest.fixture
def folder(tmp_path, made):
    return save(tmp_path / "model", *made, INFO)


def described(name, **options):
    """The text of a description."""
    model = {"name": name, "num_classes": 2, "output_stride": 16, "options": options}
    return json.dumps({"format": 1, "model": model, "info": {}})


def change(folder, function):
    """Rewrite the weights through a function of the dictionary of tensors."""
    tensors = {name: np.array(array) for name, array in load_file(folder / WEIGHTS_FILE).items()}
    function(tensors)
    save_file(tensors, str(folder / WEIGHTS_FILE))


def test_a_round_trip_gives_the_same_logits_bit_for_bit(folder, made) -> None:
    model, variables = made
    loaded, read, info = load(folder)
    assert info == INFO
    assert loaded == model
    assert flatten_variables(read).keys() == flatten_variables(variables).keys()
    images = np.random.default_rng(0).normal(size=(1, 33, 41, 3)).astype(np.float32)
    apply = jax.jit(lambda variables: model.apply(variables, images, train=False))
    np.testing.assert_array_equal(apply(variables), apply(read))
    assert sorted(os.listdir(folder)) == [MODEL_FILE, WEIGHTS_FILE]


def test_a_clone_keeps_its_output_stride(tmp_path, made) -> None:
    model, variables = made
    save(tmp_path, model.clone(output_stride=8), variables, {})
    assert load(tmp_path)[0].output_stride == 8


def test_saving_again_replaces_both_files(folder, made) -> None:
    model, variables = made
    save(folder, model, jax.tree.map(lambda x: x + 1, variables), {"note": "second"})
    _, read, info = load(folder)
    assert info == {"note": "second"}
    np.testing.assert_array_equal(
        read["params"]["classifier"]["bias"], np.asarray(variables["params"]["classifier"]["bias"]) + 1
    )


UNFIT = [
    ({"class_names": ["a", "b"]}, "class_names is ['a', 'b']; give 4 names, or leave it out"),
    ({"class_names": ["a", "b", "c", "\x1b[2J"]}, "class_names has '\\x1b[2J', which cannot be printed; rename it, or"),
    ({"palette": [[0, 0, 0]]}, "palette is [[0, 0, 0]]; give 4 triples"),
    ({"provenance": "trained by me"}, "provenance is 'trained by me'; give a mapping, or leave it out"),
    ({"source": "x"}, "source is 'x'; give a mapping, or leave it out"),
    ({"metrics": 0.6}, "metrics is 0.6; give a mapping, or leave it out"),
    ({"metrics": None}, "metrics is None; give a mapping, or leave it out"),
    ({"initialised_from": ["x"]}, "initialised_from is ['x']; give a mapping, or leave it out"),
    ({"provenance": {"licence": 5}}, "provenance.licence is 5; give a text, or leave it out"),
    ({"data": ["voc"]}, "data is ['voc']; give a text, or leave it out"),
    ({"source": {"notes": 5}}, "source.notes is 5; give a list of texts, or leave it out"),
    ({"source": {"notes": ["a", 1]}}, "source.notes is ['a', 1]; give a list of texts, or leave it out"),
]


def test_a_clone_that_the_file_cannot_describe_is_not_saved(tmp_path, made) -> None:
    """It would be loaded as the network that `create_model` built."""
    model, variables = made
    changed = model.clone(preprocessing=SYMMETRIC)
    with pytest.raises(UserError, match="was changed after create_model, and model.json cannot say how; give create"):
        save(tmp_path / "new", changed, variables, {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("info", "words"), UNFIT)
def test_what_could_not_be_loaded_is_not_saved(folder, made, info, words) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for write in (lambda: save(folder, *made, info), lambda: write_description(folder, made[0], info)):
        with pytest.raises(UserError, match=r"model\.json: ") as caught:
            write()
        assert words in str(caught.value) and str(caught.value).isprintable()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    content = json.loads(before[MODEL_FILE])
    (folder / MODEL_FILE).write_text(json.dumps({**content, "info": info}))
    with pytest.raises(UserError, match=r"model\.json: ") as caught:
        load(folder)
    assert words in str(caught.value)


def test_variables_of_another_network_are_not_saved(folder, made) -> None:
    model, variables = made
    before = (folder / WEIGHTS_FILE).read_bytes()
    for wrong, words in (
        ({"params": variables["params"]}, "missing batch_stats/"),
        (tiny_model("cascade_tiny")[1], "missing params/aux_head/"),
        ({**variables, "intermediates": {"aux": np.zeros(3, np.float32)}}, "unexpected intermediates/aux"),
    ):
        with pytest.raises(UserError, match=f"model: does not fit the model: .*{words}.*; give the variables of this"):
            save(folder, model, wrong, INFO)
    assert (folder / WEIGHTS_FILE).read_bytes() == before


def test_a_tuple_of_names_is_saved_as_the_list_that_it_becomes(folder, made) -> None:
    save(folder, *made, {"class_names": tuple("abcd")})
    assert load(folder)[2] == {"class_names": list("abcd")}


def test_a_file_of_a_model_folder_names_the_folder(folder) -> None:
    with pytest.raises(UserError, match=f"a file of a model folder; give the folder: {folder}$"):
        load(folder / WEIGHTS_FILE)


def test_a_model_folder_has_no_checkpoints(folder) -> None:
    with pytest.raises(UserError, match="a model folder, which has no checkpoint 9; leave that out"):
        load(folder, checkpoint=9)


def test_new_weights_have_not_the_metrics_of_old_ones(folder, made) -> None:
    (folder / METRICS_FILE).write_text("{}")
    save(folder, *made, INFO)
    assert not (folder / METRICS_FILE).exists()


def test_a_run_directory_is_not_saved_into(tmp_path, made) -> None:
    write_description(tmp_path, made[0], INFO)
    (tmp_path / CHECKPOINTS).mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        UserError, match=f"{tmp_path}: is a run directory, and has checkpoints of its own; choose another"
    ):
        save(tmp_path, *made, INFO)
    assert sorted(tmp_path.iterdir()) == before


def test_what_json_cannot_hold_leaves_the_old_folder(folder, made) -> None:
    before = (folder / MODEL_FILE).read_bytes()
    with pytest.raises(TypeError):
        save(folder, *made, {"array": np.zeros(2)})
    assert (folder / MODEL_FILE).read_bytes() == before
    assert sorted(os.listdir(folder)) == [MODEL_FILE, WEIGHTS_FILE]


def test_tensors_that_do_not_fit_are_listed(folder) -> None:
    def spoil(tensors):
        del tensors["params/classifier/bias"]
        tensors["params/extra/kernel"] = np.zeros(3, np.float32)
        tensors["params/classifier/kernel"] = np.zeros((1, 1, 16, 9), np.float32)

    change(folder, spoil)
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / WEIGHTS_FILE}: does not fit the model: ")
    for part in (
        "missing params/classifier/bias",
        "unexpected params/extra/kernel",
        "params/classifier/kernel is (1, 1, 16, 9), the model has (1, 1, 16, 4)",
    ):
        assert part in message
    assert "\n" not in message


def test_many_differences_are_counted(folder) -> None:
    change(folder, lambda tensors: tensors.update({f"params/x{i}": np.zeros(1) for i in range(8)}))
    with pytest.raises(UserError, match="; unexpected params/x4 and 3 more; give weights of the same architecture"):
        load(folder)


@pytest.mark.parametrize("size", [0, 7, 300, -1])
def test_truncated_weights_are_a_user_error(folder, size) -> None:
    file = folder / WEIGHTS_FILE
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(UserError, match=r"weights\.safetensors: not a readable safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "message"),
    [
        ("F8_E4M3", [1], 1, r"holds tensors of float8_e4m3fn, which are not read; save them as float32"),
        ("F32", [2**62, 0, 2**62], 0, r"not a readable safetensors file \(array is too big"),
        ("F32", [0] * 100, 0, r"not a readable safetensors file \(maximum supported dimension"),
    ],
)
def test_weights_that_numpy_cannot_hold_are_a_user_error(folder, dtype, shape, size, message) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(UserError, match=rf"weights\.safetensors: {message}"):
        load(folder)


def test_weights_of_another_type_become_float32(folder, made) -> None:
    change(folder, lambda tensors: tensors.update({name: array.astype("f2") for name, array in tensors.items()}))
    for name, value in flatten_variables(load(folder)[1]).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, flatten_variables(made[1])[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable model description"),
        ("{", "not a readable model description"),
        ("[]", "not a readable model description"),
        ("{}", "not a readable model description"),
        ("\xff\x00", "not a readable model description"),
        ('{"format": 99}', "format 99, this version reads 1"),
        (
            '{"format": 1, "model": {"name": "unet", "num_classes": 2, "output_stride": 16, "options": [1]}, '
            '"info": {}}',
            r"options=\[1\]: give a mapping",
        ),
        ('{"format": 1, "model": {}, "info": {}}', "not a readable model description"),
        (described("deeplab"), "model 'deeplab' is not known"),
        (described("cascade_tiny", option=1), "option 'option' has no meaning"),
        (described("cascade_tiny", norm="bach"), "norm='bach': did you mean batch"),
    ],
)
def test_broken_descriptions_are_user_errors(folder, text, message) -> None:
    (folder / MODEL_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"model\.json: {message}"):
        load(folder)


def test_folders_that_hold_no_model_are_user_errors(tmp_path, made) -> None:
    with pytest.raises(UserError, match="gone: no such folder"):
        load(tmp_path / "gone")
    (tmp_path / "best model.pth").touch()
    fix = f"convert '{tmp_path}/best model.pth' --out 'models/best model'"
    with pytest.raises(UserError, match=f"best model.pth: a file and no model folder; convert it first: .* {fix}$"):
        load(tmp_path / "best model.pth")
    with pytest.raises(UserError, match=r"neither .* nor a run directory, there is no model\.json in it; give one of"):
        load(tmp_path)
    (tmp_path / "saved v1.5").mkdir()
    (tmp_path / "saved v1.5" / "model.safetensors").touch()
    fix = f"convert '{tmp_path}/saved v1.5' --out 'models/saved v1.5'"
    with pytest.raises(
        UserError, match=f"saved v1.5: a saved folder of another code base; convert it first: .* {fix}$"
    ):
        load(tmp_path / "saved v1.5")
    write_description(tmp_path, made[0], {})
    with pytest.raises(UserError, match="the run has saved nothing yet"):
        load(tmp_path)
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load(tmp_path)


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path, made) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot write the model folder"):
        save(tmp_path / "file", *made, {})


def test_a_description_that_cannot_be_written_leaves_the_one_before(tmp_path, made, monkeypatch) -> None:
    write_description(tmp_path, made[0], INFO)
    write = Path.write_text

    def fill_disk(self, text, **options):
        write(self, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fill_disk)
    with pytest.raises(UserError, match=rf"model\.json: cannot be written \({os.strerror(errno.ENOSPC)}\)"):
        write_description(tmp_path, made[0], {})
    assert read_description(tmp_path)[1] == INFO and os.listdir(tmp_path) == [MODEL_FILE]


def test_a_run_directory_gives_its_best_checkpoint_or_else_the_newest(tmp_path, made) -> None:
    model, variables = made
    write_description(tmp_path, model, INFO)
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, keep=3)
    for step, score in enumerate((None, 0.7, 0.6, None), start=1):
        shifted = jax.tree.map(lambda x, step=step: x + step, variables)
        checkpoints.save(step, shifted, {"step": np.int32(step)}, metrics=None if score is None else {METRIC: score})

    def first(**options):
        _, read, info = load(tmp_path, **options)
        bias = np.asarray(read["params"]["classifier"]["bias"]) - variables["params"]["classifier"]["bias"]
        return int(np.rint(bias[0])), info["step"], info["metrics"]

    assert first() == first(checkpoint="best") == (2, 2, {METRIC: 0.7})
    assert first(checkpoint="newest") == (4, 4, {})
    assert first(checkpoint="3") == (3, 3, {METRIC: 0.6})
    with pytest.raises(UserError, match="checkpoint '9': choose from best, newest, 2, 3, 4"):
        load(tmp_path, checkpoint="9")
    # Another class count is told from the weights, whichever way it came about.
    content = json.loads((tmp_path / MODEL_FILE).read_text())
    content["model"]["num_classes"], content["info"] = 5, {}
    (tmp_path / MODEL_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"classifier/kernel is \(1, 1, 16, 4\), the model has \(1, 1, 16, 5\)"):
        load(tmp_path)


def test_transposed_arrays_are_written_as_they_read(tmp_path) -> None:
    """The safetensors library itself writes the memory of such an array, in the wrong order."""
    model, variables = tiny_model("cascade_tiny")
    turned = jax.tree.map(lambda x: np.asarray(x).T.copy().T, variables)
    assert not turned["params"]["backbone"]["deep"]["conv"]["kernel"].flags.c_contiguous
    save(tmp_path, model, turned, {})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[1], variables)
