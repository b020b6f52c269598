"""The papers' claims: differences, their intervals and the rule, worked out by hand."""

import itertools
import statistics
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from deeplab_jax.evaluate import per_image
from deeplab_jax.evaluate.per_image import PerImage
from deeplab_jax.labels import LabelSet, colormap
from deeplab_jax.models.catalog import create_model
from experiments.outcomes import intervals
from experiments.outcomes.cells import verdict_cells
from experiments.outcomes.gather import RowResult, TableResult, Training
from experiments.outcomes.intervals import Error, holm, over_images, over_seeds, p_value, t_interval, together
from experiments.outcomes.per_image import Counts, counts_file, counts_of, read_counts, write_counts
from experiments.outcomes.verdicts import (
    HOLDS,
    NO_PAIR,
    NOT_RUN,
    REFUTED,
    UNDECIDED,
    Verdict,
    all_verdicts,
    comparisons,
    corrected,
    verdicts,
)
from experiments.report.markdown import verdict_table
from experiments.tables import TABLES, Claim, Row, Table
from tests.support.tiny import tiny_models

TABLE = Table(
    "t",
    "title",
    "source",
    ("k",),
    (Row((1,), {"miou": 70.0}), Row((2,), {"miou": 71.5}), Row((3,), {"miou": 71.0})),
    claims=(Claim("two is better than one", (2,), (1,)), Claim("two is better than three", (2,), (3,))),
)


def counts(*images: tuple[tuple[int, ...], tuple[int, ...]]) -> Counts:
    """Of images given as (right, union) for each class."""
    return Counts(
        tuple(f"image {place}" for place in range(len(images))),
        np.array([right for right, _ in images], np.int64),
        np.array([union for _, union in images], np.int64),
    )


# Intervals.


def test_students_t_of_three_differences_by_hand() -> None:
    """Of 1, 2 and 3: mean 2, standard error 1 / root 3; t of 2 degrees of freedom is 4.3027 at 97.5%."""
    error = over_seeds([1.0, 2.0, 3.0])
    assert error == pytest.approx((1 / 3**0.5, 2))
    assert t_interval(2.0, error) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    # With two degrees of freedom, P(|T| > t) is 1 - t / root(2 + t^2); t is 2 root 3.
    assert p_value(2.0, error) == pytest.approx(1 - 12**0.5 / 14**0.5)
    # With one degree of freedom (Cauchy) the quantile is tan(0.475 pi) = 12.7062, and the standard error here 0.5.
    assert t_interval(1.5, over_seeds([1.0, 2.0])) == pytest.approx((1.5 - 6.3531, 1.5 + 6.3531), abs=1e-4)


def test_two_errors_together_by_hand() -> None:
    """3 and 4 make 5. Degrees of freedom: 5^4 / (3^4 / 2 + 4^4 / 64) = 625 / 44.5."""
    assert together(Error(3.0, 2), Error(4.0, 64)) == pytest.approx((5.0, 625 / 44.5))
    # Two equal ones of one degree of freedom have two together.
    both = together(Error(1.0, 1), Error(1.0, 1))
    assert both == pytest.approx((2**0.5, 2))
    assert t_interval(0.0, both).high == pytest.approx(4.302653 * 2**0.5, abs=1e-5)
    assert p_value(4.0, both) == pytest.approx(1 - 8**0.5 / 10**0.5)
    # One that is 0 changes nothing.
    assert together(Error(0.0, 2), Error(4.0, 64)) == pytest.approx((4.0, 64))
    assert together(Error(0.0, 2), Error(0.0, 64)) == (0.0, 2)


def test_the_interval_leaves_out_0_where_p_is_below_5_percent() -> None:
    for shift in np.linspace(0, 4, 41):
        for images in (None, Error(0.1, 255), Error(1.0, 255)):
            found = verdict((shift - 1, shift, shift + 1.5), over_seeds([shift - 1, shift, shift + 1.5]), images)
            assert (found.interval.side != 0) == (found.p < 0.05)


def test_one_training_has_no_interval_and_equal_ones_no_width() -> None:
    assert over_seeds([3.0]) is None
    error = over_seeds([3.0, 3.0])
    assert error == (0.0, 1) and t_interval(3.0, error) == (3.0, 3.0)
    assert p_value(3.0, error) == 0.0 and p_value(0.0, error) == 1.0


def test_the_bootstrap_of_three_images_is_that_of_all_27_draws(monkeypatch) -> None:
    """One class: each row's IoU of a draw is the sum of right by that of union. All 27 draws are equally likely, so the
    standard error is the standard deviation over them.
    """
    better = counts(((9,), (10,)), ((8,), (10,)), ((1,), (10,)))
    worse = counts(((6,), (10,)), ((8,), (20,)), ((5,), (10,)))
    draws = [
        100 * (sum(better.right[i, 0] for i in draw) / 30 - sum(worse.right[i, 0] for i in draw) / union)
        for draw in itertools.product(range(3), repeat=3)
        for union in [sum(worse.union[i, 0] for i in draw)]
    ]
    monkeypatch.setattr(intervals, "SAMPLES", 100_000)
    error = over_images([(better, worse)])
    assert error == pytest.approx((statistics.pstdev(draws), 2), rel=0.01)
    assert over_images([(better, worse)]) == error, "the draws are fixed"


def test_the_bootstrap_by_a_plain_loop(monkeypatch) -> None:
    """Two trainings of two classes, of which one is in no image of some draws."""
    monkeypatch.setattr(intervals, "SAMPLES", 7)
    monkeypatch.setattr(per_image, "AT_ONCE", 4)
    rng = np.random.default_rng(1)

    def some():
        union = rng.integers(1, 50, (3, 2))
        union[:2, 1] = 0
        right = rng.integers(0, union + 1)
        return Counts(("a", "b", "c"), right, union)

    pairs = [(some(), some()), (some(), some())]
    drawn = np.random.default_rng(per_image.SEED)
    draws = np.concatenate([drawn.multinomial(3, [1 / 3] * 3, size=size) for size in (4, 3)])

    def miou(one, times):
        right, union = (sum(n * row for n, row in zip(times, part, strict=True)) for part in (one.right, one.union))
        return np.mean([r / u for r, u in zip(right, union, strict=True) if u])

    gains = [np.mean([miou(one, times) - miou(other, times) for one, other in pairs]) for times in draws]
    assert over_images(pairs) == pytest.approx((100 * statistics.stdev(gains), 2))


def test_images_that_differ_have_no_error_and_a_single_one_has_none() -> None:
    one = counts(((1,), (2,)), ((1,), (3,)))
    assert over_images([]) is None
    single = counts(((1,), (2,)))
    assert over_images([(single, single)]) is None
    assert over_images([(one, replace(one, names=("another", "two")))]) is None
    assert over_images([(one, counts(((1,), (2,)), ((1,), (2,)), ((1,), (2,))))]) is None


def test_holm_by_hand() -> None:
    """Four p: 0.01 <= 0.05 / 4, 0.012 <= 0.05 / 3, 0.03 > 0.05 / 2; 0.04 is below 0.05 / 1, but comes after it."""
    assert holm([0.04, 0.01, 0.03, 0.012]) == [False, True, False, True]
    assert holm([0.02]) == [True] and holm([]) == []


# The rule.


def verdict(differences: tuple[float, ...], seeds: Error | None = None, images: Error | None = None) -> Verdict:
    """The verdict on the first claim."""
    return Verdict(TableResult(TABLE, "scenes", ()), TABLE.claims[0], 1.5, differences, seeds, images)


@pytest.mark.parametrize(
    ("seeds", "images", "word"),
    [
        # t of 2 degrees of freedom is 4.3027 at 97.5%.
        (Error(0.23, 2), None, HOLDS),
        (Error(0.24, 2), None, UNDECIDED),
        # Over images alone, 1 is beyond 1.96 * 0.5. Together: root(0.23^2 + 0.5^2) = 0.5504, of 62.8 degrees of freedom
        # (0.5504^4 / (0.23^4 / 2 + 0.5^4 / 1000)), so 1 is within 1.998 * 0.5504 = 1.0998.
        (Error(0.23, 2), Error(0.5, 1000), UNDECIDED),
        (Error(0.23, 2), Error(0.1, 1000), HOLDS),
        # Together: 0.2693 of 2.69 degrees of freedom, t is 3.4: narrower than over trainings alone.
        (Error(0.25, 2), Error(0.1, 1000), UNDECIDED),
        (Error(0.0, 2), Error(0.5, 1000), HOLDS),
        (None, None, UNDECIDED),
    ],
)
def test_the_rule_at_its_borders(seeds, images, word) -> None:
    assert verdict((1.0,), seeds, images).word == word
    assert verdict((-1.0,), seeds, images).word == (REFUTED if word == HOLDS else word)


def test_the_interval_covers_trainings_and_images() -> None:
    """By hand: 0.5504 of 62.8 degrees of freedom, whose t is 1.9985; and 4.3027 * 0.25 over trainings alone."""
    found = verdict((1.0,), Error(0.23, 2), Error(0.5, 1000))
    assert found.interval == pytest.approx((1 - 1.9985 * 0.55037, 1 + 1.9985 * 0.55037), abs=1e-3)
    alone = verdict((1.0,), Error(0.25, 2), Error(0.1, 1000))
    assert alone.interval == pytest.approx((1 - 4.302653 * 0.25, 1 + 4.302653 * 0.25), abs=1e-5)
    assert alone.p == p_value(1.0, Error(0.25, 2))


def row(cell: int, values: dict[int, float], *, evaluation: str = "e") -> RowResult:
    """A row with trainings of some seeds."""
    trainings = tuple(
        Training(f"row{cell}_seed{seed}", 10, 8, 1.0, ("c",), seed=seed, values={"miou": value})
        for seed, value in values.items()
    )
    own = next(one for one in TABLE.rows if one.cells == (cell,))
    return RowResult(own, str(cell), trainings=trainings, evaluation=evaluation)


def test_trainings_are_paired_by_their_seed(tmp_path) -> None:
    rows = (row(1, {0: 50, 1: 60, 2: 40}), row(2, {1: 61, 2: 43, 3: 99, 0: 52}), row(3, {}))
    first, second = verdicts(TableResult(TABLE, "scenes", rows, folder=tmp_path))
    assert first.differences == (2, 1, 3) and first.paper == 1.5 and first.word == UNDECIDED, "2 - 2.48 to 2 + 2.48"
    assert first.seeds == pytest.approx((1 / 3**0.5, 2)) and first.images is None
    assert [cell.text for cell in verdict_cells(first)] == [
        "two is better than one",
        UNDECIDED,
        UNDECIDED,
        "+1.50",
        "+2.00",
        "-0.48 to +4.48, trainings only",
        "3",
    ]
    assert second.word == NOT_RUN and second.ours is None
    assert "| `t` | two is better than three | not run |  | +0.50 |  |  |  |" in verdict_table([first, second])


def starting(one: RowResult, pretraining: str, *backbones: float) -> RowResult:
    """A row whose trainings start from backbones of these mIoUs, trained as the pretraining of this name."""
    trainings = tuple(replace(training, backbone=miou) for training, miou in zip(one.trainings, backbones, strict=True))
    return replace(one, trainings=trainings, pretraining=Training(pretraining, 10, 8, 1.0, ()))


def test_trainings_from_different_backbones_are_not_compared(tmp_path) -> None:
    """Seed 1 of the second row starts from another training of the same pretraining, as on another machine."""
    first = starting(row(1, {0: 50, 1: 60, 2: 40}), "plain", 0.46, 0.46, 0.46)
    second = starting(row(2, {0: 52, 1: 61, 2: 43}), "plain", 0.46, 0.47, 0.46)
    found, _ = verdicts(TableResult(TABLE, "scenes", (first, second, row(3, {})), folder=tmp_path))
    assert found.differences == (2, 3)
    second = starting(second, "plain", 0.47, 0.47, 0.47)
    both = verdicts(TableResult(TABLE, "scenes", (first, second, row(3, {})), folder=tmp_path))
    assert [one.word for one in both] == [NO_PAIR, NOT_RUN]
    assert comparisons(both).endswith("; 1 claim needs a row that was not run; 1 claim has no pair of trainings.")


def test_backbones_that_differ_by_design_have_a_difference_and_no_verdict(tmp_path) -> None:
    """As Xception-65 and Xception-71: each plain network was trained once, so no seed tells how much it varies."""
    first = starting(row(1, {0: 50, 1: 60}), "shallow", 0.46, 0.46)
    second = starting(row(2, {0: 52, 1: 61}), "deep", 0.49, 0.49)
    found, _ = verdicts(TableResult(TABLE, "scenes", (first, second, row(3, {})), folder=tmp_path))
    assert found.differences == (2, 1)
    assert found.interval is None and found.p is None and found.word == UNDECIDED


def test_images_can_leave_undecided_what_trainings_decide(tmp_path) -> None:
    """Both trainings agree. Of ten images, two have all of the gain of 2 points. The number of draws of these two has
    the variance 10 * 0.2 * 0.8, and each gives a point. So the standard error is root 1.6, and t of 9 degrees is 2.26.
    """
    images = [((50,), (100,))] * 10
    worse = counts(*images)
    better = {
        "two images": counts(*[((60,), (100,))] * 2, *images[2:]),
        "all images": counts(*[((52,), (100,))] * 10),
    }
    for name, error, word in (("two images", 1.6**0.5, UNDECIDED), ("all images", 0.0, HOLDS)):
        rows = (row(1, {0: 50.0, 1: 50.0}), row(2, {0: 52.0, 1: 52.0}), row(3, {}))
        for seed in (0, 1):
            write_counts(counts_file(tmp_path, f"row1_seed{seed}", "e"), worse)
            write_counts(counts_file(tmp_path, f"row2_seed{seed}", "e"), better[name])
        found = verdicts(TableResult(TABLE, "scenes", rows, folder=tmp_path))[0]
        assert found.images == pytest.approx((error, 9), rel=0.03, abs=1e-9)
        assert found.word == word and found.seeds == (0.0, 1)
    shown = verdict_cells(found)[5]
    assert shown.text == "+2.00 to +2.00"
    assert shown.hint == "Standard error over 2 trainings (t): 0.00; over 10 images (bootstrap): 0.00"


def test_counts_of_some_trainings_say_nothing_about_the_mean_of_all(tmp_path) -> None:
    images = [((50,), (100,))] * 10
    rows = (row(1, {0: 50.0, 1: 50.0}), row(2, {0: 60.0, 1: 50.5}), row(3, {}))
    for place, right in ((1, 50), (2, 60)):
        write_counts(counts_file(tmp_path, f"row{place}_seed0", "e"), counts(*[((right,), (100,))] * 2, *images[2:]))
    write_counts(counts_file(tmp_path, "row1_seed1", "e"), counts(*images))
    found = verdicts(TableResult(TABLE, "scenes", rows, folder=tmp_path))[0]
    assert found.images is None and found.interval == t_interval(5.25, found.seeds)
    shown = verdict_cells(found)[5]
    assert shown.text.endswith(", trainings only") and shown.hint.endswith("over images: not known")


def test_the_comparisons_are_counted() -> None:
    """With two degrees of freedom, t of 40, 5, -25 and 0.1 have p of 0.0006, 0.038, 0.0016 and 0.93."""
    made = [*(verdict((t,), Error(1.0, 2)) for t in (40.0, 5.0, -25.0, 0.1)), verdict((1.0,))]
    found = corrected([*made, Verdict(made[0].result, TABLE.claims[1], 1.0)])
    assert [one.word for one in found] == [HOLDS, HOLDS, REFUTED, UNDECIDED, UNDECIDED, NOT_RUN]
    # 0.0006 <= 0.05 / 4 and 0.0016 <= 0.05 / 3, but 0.038 > 0.05 / 2.
    assert [one.after_holm for one in found] == [HOLDS, UNDECIDED, REFUTED, UNDECIDED, UNDECIDED, NOT_RUN]
    assert [verdict_cells(one)[2].text for one in found] == [*(one.after_holm for one in found[:5]), ""]
    assert comparisons(found) == (
        "5 comparisons: 2 holds, 1 refuted, 2 undecided (after Holm's correction for 4 with several trainings: "
        "1 holds, 1 refuted, 3 undecided); 1 claim needs a row that was not run."
    )


def test_holms_correction_is_for_the_claims_of_a_regime(tmp_path) -> None:
    """Of 2.5, 3.5 and 4.5, t is 3.5 root 3 and p is 0.0262: enough for one claim, and not for two of one regime."""
    worse = {0: 50.0, 1: 60.0, 2: 40.0}
    better = row(2, {0: 52.5, 1: 63.5, 2: 44.5})
    one, two = (
        [TableResult(TABLE, regime, (row(1, worse), better, row(3, third)), folder=tmp_path) for regime in ("a", "b")]
        for third in ({}, worse)
    )
    assert [found.after_holm for found in all_verdicts(one)] == [HOLDS, NOT_RUN] * 2
    assert [(found.word, found.after_holm) for found in all_verdicts(two)] == [(HOLDS, UNDECIDED)] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "deeplabv3plus_tiny", "low_level_channels": 4, "decoder_convs": ((3, 4),)},
        {"image_pooling": False},
        {"aspp_rates": (2, 4)},
    ],
)
def test_a_seed_gives_two_networks_the_same_weights_wherever_shapes_agree(changes) -> None:
    options = {"name": "deeplabv3_tiny", "aspp_channels": 4, "aspp_rates": (1, 2, 3)}

    def initial(name, **rest):
        model = create_model(name, num_classes=3, **rest)
        images = np.zeros((1, 33, 33, 3), np.float32)
        return flatten_dict(model.init(jax.random.key(7), images, train=False)["params"], sep="/")

    with tiny_models():
        one, other = initial(**options), initial(**options | changes)
    shared = [name for name in one.keys() & other.keys() if one[name].shape == other[name].shape]
    assert {name.split("/")[0] for name in shared} >= {"backbone", "context"}
    for name in shared:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# Counts.


def test_counts_are_those_of_the_evaluation(tmp_path) -> None:
    counted = PerImage(3, every=True)
    counted.add("b", np.array([[0, 0, 1, 255], [1, 1, 2, 2]], np.uint8), np.array([[0, 1, 1, 2], [1, 0, 2, 0]]))
    counted.add("a", np.array([[255, 1]], np.uint8), np.array([[0, 2]]))
    every = counted.results(LabelSet(("sky", "road", "tree"), colormap(3)))["per_image"]["every"]
    found = counts_of(every)
    assert found.names == ("a", "b") and found.right.tolist() == [[0, 0, 0], [1, 2, 1]]
    # labelled + predicted - right, by hand.
    assert found.union.tolist() == [[0, 1, 1], [4, 4, 2]]
    miou = (1 / 4 + 2 / 5 + 1 / 3) / 3
    assert found.miou() == pytest.approx(miou)
    file = tmp_path / "new" / "counts.npz"
    write_counts(file, found)
    again = read_counts(file, miou)
    assert again.names == found.names
    np.testing.assert_array_equal(again.right, found.right)
    np.testing.assert_array_equal(again.union, found.union)
    assert read_counts(file, miou + 0.001) is None, "counts of another training"


def test_a_file_of_counts_with_any_byte_changed_is_none_or_right(tmp_path) -> None:
    file, whole = tmp_path / "counts.npz", counts(((1, 3), (2, 4)), ((5, 7), (10, 8)))
    write_counts(file, whole)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        found = read_counts(file, whole.miou())
        assert found is None or abs(found.miou() - whole.miou()) < 1e-6


@pytest.mark.parametrize("content", [b"", b"PK", b"{}", None])
def test_a_damaged_file_of_counts_is_none(tmp_path, content) -> None:
    file = tmp_path / "counts.npz"
    if content is not None:
        file.write_bytes(content)
    assert read_counts(file, 0.5) is None


def test_counts_in_few_bits(tmp_path) -> None:
    for largest, kind in ((255, np.uint8), (256, np.uint16), (2**16, np.uint32), (2**32, np.int64)):
        file = tmp_path / f"{largest}.npz"
        write_counts(file, counts(((1,), (largest,))))
        assert np.load(file)["union"].dtype == kind
        assert read_counts(file, 1 / largest).union[0, 0] == largest


# The papers' claims.


def test_every_claim_is_of_two_rows_and_the_papers() -> None:
    for table in TABLES.values():
        rows = {one.cells for one in table.rows}
        for claim in table.claims:
            assert {claim.better, claim.worse} <= rows and claim.measure in table.measures, (table.name, claim.says)
            assert table.difference(claim) > 0, (table.name, claim.says)
        assert len({claim.says for claim in table.claims}) == len(table.claims)
        # "X does not help" also fits rows that are equal, and would count as refuted or undecided there.
        assert not [claim.says for claim in table.claims if " not " in claim.says], table.name


def test_every_table_of_the_papers_has_claims() -> None:
    assert {name for name, table in TABLES.items() if not table.claims and not name.startswith("extra_")} == {
        "v3_figure4"
    }, "computed: it needs no trial"


@pytest.mark.parametrize(
    ("table", "says", "paper"),
    [
        ("v3_table5", "image-level features help", 77.21 - 76.58),
        ("v3plus_table3", "the decoder helps at output stride 16", 78.85 - 77.21),
        ("v3plus_figure5", "Xception: the decoder helps in the narrowest band", 5.4),
    ],
)
def test_the_papers_differences(table, says, paper) -> None:
    claim = next(one for one in TABLES[table].claims if one.says == says)
    assert TABLES[table].difference(claim) == pytest.approx(paper)
