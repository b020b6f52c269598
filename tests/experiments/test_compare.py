"""Two models on the same images: the difference in mIoU and its interval."""

from pathlib import Path

import pytest

from deeplab_jax.files import save_json
from experiments.compare import compare, main
from experiments.outcomes.intervals import over_images, over_seeds, t_interval, together
from experiments.outcomes.per_image import counts_of


def every(*right: int) -> list[dict]:
    """Images of two classes with 10 labelled and 10 predicted pixels each, of which so many are right."""
    return [
        {"name": f"image {number}", "right": [one, one], "labelled": [10, 10], "predicted": [10, 10]}
        for number, one in enumerate(right)
    ]


def write(folder: Path, *right: int) -> str:
    folder.mkdir()
    save_json(folder / "metrics.json", {"per_image": {"every": every(*right)}})
    return str(folder)


def test_the_means_of_two_single_trainings(tmp_path, capsys) -> None:
    """15 right of 25 in the union of each class are 60%, and 16 of 24 are 66.67%."""
    words = ["--base", write(tmp_path / "a", 10, 5), "--other", write(tmp_path / "b", 10, 6)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "base: mIoU 60.00" in printed and "other: mIoU 66.67" in printed
    assert "other - base: +6.67 points, 95% interval " in printed and "over 2 images" in printed
    assert "does not say how much another training would differ" in printed


def test_several_trainings_have_the_interval_of_the_tables() -> None:
    base = [counts_of(every(*right)) for right in ((9, 5, 7), (9, 6, 7), (8, 5, 7))]
    other = [counts_of(every(*right)) for right in ((9, 6, 8), (9, 8, 7), (8, 7, 7))]
    differences = [100 * (b.miou() - a.miou()) for a, b in zip(base, other, strict=True)]
    of_seeds, of_images = over_seeds(differences), over_images(list(zip(other, base, strict=True)))
    assert of_seeds is not None and of_images is not None
    middle = sum(differences) / 3
    widest = max(
        (t_interval(middle, error) for error in (of_seeds, together(of_seeds, of_images))),
        key=lambda found: found.high - found.low,
    )
    line = compare(base, other)[2]
    assert line == (
        f"other - base: {middle:+.2f} points, 95% interval {widest.low:+.2f} to {widest.high:+.2f}, "
        "over 3 trainings and 3 images"
    )
    assert len(compare(base, other)) == 3


def test_equal_models_differ_by_nothing() -> None:
    one = counts_of(every(9, 5, 7))
    assert compare([one], [one])[2].startswith("other - base: +0.00 points, 95% interval +0.00 to +0.00")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"per_image": {"every": every(1, 2, 3)}}, "has other images or classes than"),
        ({"per_image": {"mean": 1}}, "holds no counts of single images; evaluate again with --per_image"),
        ({"miou": 1}, "give a folder of python -m deeplab_jax evaluate --per_image --out"),
        (None, "no such file; give a folder of python -m deeplab_jax evaluate --per_image --out"),
    ],
)
def test_what_cannot_be_compared_gets_one_line(tmp_path, capsys, other, message) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    if other is not None:
        save_json(folder / "metrics.json", other)
    assert main(["--base", write(tmp_path / "base", 1, 2), "--other", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line and message in line


def test_pairs_are_complete(tmp_path, capsys) -> None:
    words = ["--base", write(tmp_path / "a", 1), write(tmp_path / "b", 1), "--other", write(tmp_path / "c", 1)]
    assert main(words) == 2
    assert "--base has 2 folders and --other 1; give pairs of one seed" in capsys.readouterr().err
