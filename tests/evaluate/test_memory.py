"""Out of memory is one line with a flag that fits, and the other images are done."""

import jax
import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.data import images, stored
from deeplab_jax.data.images import write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import evaluator, inference, predictor
from deeplab_jax.evaluate.image_list import find_images
from deeplab_jax.evaluate.memory import is_out_of_memory, names_what_fits
from deeplab_jax.evaluate.outputs import Outputs, label_set
from deeplab_jax.evaluate.protocol import Protocol
from deeplab_jax.weights.folder import save
from tests.support.tiny import MadeUp, tiny_model, tiny_models

EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 34359738368 bytes.")


@pytest.mark.parametrize(
    ("protocol", "size", "fix"),
    [
        (Protocol(), (4000, 6000), "a.png: out of memory at 6000x4000 pixels; give --window 513,513"),
        (Protocol(), (513, 513), "give --window 257,257"),
        (Protocol(window=(513, 769)), (4000, 6000), "give --window 257,385"),
        (Protocol(window=(100, 65)), (4000, 6000), "give --window 65,65"),
        (Protocol(window=(65, 65)), (4000, 6000), "give a machine with more memory"),
        (Protocol(window=(513, 513), crf=True), (4000, 6000), "leave out --crf"),
        (Protocol(), None, "a.png: out of memory; give a smaller image"),
    ],
)
def test_the_message_has_what_fits(protocol, size, fix) -> None:
    for error in (MemoryError(), EXHAUSTED):
        with pytest.raises(UserError, match=fix), names_what_fits("a.png", protocol, size):
            raise error


def test_evaluation_names_the_key_of_the_configuration(monkeypatch) -> None:
    """`train` has no flag for a window, and `evaluate` takes the key too."""

    def exhausted(*_):
        raise EXHAUSTED

    monkeypatch.setattr(evaluator, "run_group", exhausted)
    with tiny_models(), pytest.raises(UserError, match=r"at 769x641 pixels; give --config\.evaluate\.window=513,513$"):
        evaluator.evaluate(*tiny_model("cascade_tiny"), MadeUp(((600, 700),)), Protocol())


def test_other_faults_keep_their_traceback() -> None:
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert not is_out_of_memory(other) and not is_out_of_memory(ValueError("x")) and is_out_of_memory(EXHAUSTED)
    with pytest.raises(jax.errors.JaxRuntimeError), names_what_fits("a.png", Protocol()):
        raise other


def test_predict_does_the_other_images(tmp_path, capsys, monkeypatch) -> None:
    usual = inference.predict_classes

    def run(model, variables, images, sizes, protocol):
        if images.shape[1] > 129:
            raise EXHAUSTED
        return usual(model, variables, images, sizes, protocol)

    monkeypatch.setattr(inference, "predict_classes", run)
    for name, size in (("a", (40, 50)), ("b", (600, 50)), ("c", (50, 40))):
        write_image(tmp_path / f"{name}.png", MadeUp((size,))[0]["image"])
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        save(tmp_path / "model", model, variables, {})
        inputs = [str(tmp_path / f"{name}.png") for name in "abc"]
        assert main(["predict", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), *inputs]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("2 of 3 images")
    lines = [line for line in said.err.splitlines() if line.startswith("deeplab-jax:")]
    assert lines == [f"deeplab-jax: {tmp_path}/b.png: out of memory at 50x600 pixels; give --window 513,513"]
    assert {path.name for path in (tmp_path / "out").glob("?.png")} == {"a.png", "c.png"}


def test_a_prediction_that_does_not_fit_while_it_is_written_is_named(tmp_path, monkeypatch) -> None:
    def write(outputs, name, *_, **__):
        if name == "a":
            raise MemoryError

    monkeypatch.setattr(Outputs, "write", write)
    for name in "ab":
        write_image(tmp_path / f"{name}.png", np.zeros((40, 50, 3), np.uint8))
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        outputs = Outputs(tmp_path / "out", label_set({}, model))
        told = list(predictor.predict_files(model, variables, find_images([tmp_path]), outputs))
    (a, error), (b, none) = told
    assert (a.name, b.name, none) == ("a", "b", None)
    assert "a.png: out of memory at 50x40 pixels" in str(error)


def test_an_image_that_does_not_fit_while_it_is_read_is_named(tmp_path, monkeypatch) -> None:
    def read(preprocessing, path):
        raise MemoryError

    monkeypatch.setattr(predictor, "read_for", read)
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        write_image(tmp_path / "a.png", np.zeros((33, 33, 3), np.uint8))
        outputs = Outputs(tmp_path / "out", label_set({}, model))
        found = find_images([tmp_path / "a.png"])
        ((_, error),) = predictor.predict_files(model, variables, found, outputs)
    assert "a.png: out of memory; give a smaller image" in str(error)


def test_an_image_too_large_to_decode_is_not_called_damaged(tmp_path, monkeypatch) -> None:
    def decode(*_):
        raise MemoryError

    monkeypatch.setattr(stored, "_through_pillow", decode)
    write_image(tmp_path / "a.png", np.zeros((33, 33, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: out of memory while it is read; give a smaller image"):
        images.read_image(tmp_path / "a.png")


def test_an_evaluation_names_the_image(monkeypatch) -> None:
    def run(*_):
        raise EXHAUSTED

    monkeypatch.setattr(evaluator, "evaluate_batch", run)
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        source = MadeUp(((40, 50),) * 2)
        names = [example["name"] for example in source]
        with pytest.raises(UserError, match=f"^{names[0]}: out of memory .*give --config.evaluate.window="):
            evaluator.evaluate(model, variables, source)
        fewer = "out of memory .*give --config.evaluate.batch_size=1"
        with pytest.raises(UserError, match=f"^{names[0]}, {names[1]}: {fewer}"):
            evaluator.evaluate(model, variables, source, batch_size=2)
