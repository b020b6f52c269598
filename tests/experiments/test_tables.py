"""The papers' tables: their numbers, and what their rows mean in each regime."""

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from deeplab_jax.config import load_config, to_plain
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CAMVID
from deeplab_jax.models.segmenter import abstract_variables
from deeplab_jax.ops.observe import observe_convolutions
from deeplab_jax.train.from_config import build_model, build_optimizer, build_schedule
from experiments import ROOT
from experiments.outcomes.files import RESULTS, read_rows
from experiments.outcomes.measures import RARE
from experiments.regimes import REGIMES
from experiments.run.plan import ask
from experiments.run.resolve import OUTSIDE_KEY, NotRun, Resolved, Settings, beyond, check_init, key_of, resolve
from experiments.tables import TABLES
from experiments.tables.table import MEASURES

NOTHING = Settings()
CLASSES = {"scenes": 9, "camvid": 11, "voc": 21, "cityscapes": 19}
TRAINED = {name: table for name, table in TABLES.items() if not table.rows[0].compute}


def row(table, name):
    return TABLES[table].named_rows()[name]


def resolved(table, name, regime="scenes", settings=NOTHING):
    found = resolve(row(table, name), TABLES[table], REGIMES[regime], settings)
    assert isinstance(found, Resolved), found
    return found


# The papers' numbers.


@pytest.mark.parametrize(
    ("table", "name", "paper"),
    [
        ("v3_table1", "output_stride_256", {"miou": 20.29}),
        ("v3_table2", "resnet_50-last_block_7", {"miou": 73.88}),
        ("v3_table3", "1_2_1-last_block_7", {"miou": 76.66}),
        ("v3_table4", "eval_os_8-ms-flip", {"miou": 79.35}),
        ("v3_table5", "1_2_4-6_12_18_24", {"miou": 76.46}),
        ("v3_table6", "eval_os_8-ms-flip-coco", {"miou": 82.7}),
        ("v3_table8", "crop_size_513-fine_tuned_bn", {"miou": 76.01}),
        ("v3_table8", "crop_size_513-upsampled_logits", {"miou": 75.95}),
        ("v3_table9", "batch_size_4", {"miou": 64.43}),
        ("v3_table10", "train_os_8-eval_os_8", {"miou": 75.62}),
        ("v3_cityscapes", "eval_os_8-ms", {"miou": 79.06}),
        ("v3plus_table1", "channels_48", {"miou": 78.21}),
        ("v3plus_table2", "conv3-3x3_256", {"miou": 78.61}),
        ("v3plus_table3", "train_os_32-eval_os_8-decoder", {"miou": 77.92, "multiply_adds": 297.92}),
        ("v3plus_table5", "eval_os_8-decoder-ms-flip-sc-coco-jft", {"miou": 84.56, "multiply_adds": 3055.35}),
        ("v3plus_table7", "x_71-decoder", {"miou": 79.55}),
    ],
)
def test_the_papers_numbers(table, name, paper) -> None:
    assert row(table, name).paper == paper


# Where the file of all the papers' numbers has a table, and which columns of it a row's numbers are, in turn.
BLOCKS = tuple(f"block{number}" for number in range(4, 8))
COST = ("mIOU", "multiply_adds_B")
IN_THE_PAPERS = {
    **{f"v3_table{number}": ("deeplabv3", f"table_{number}", ("mIOU",)) for number in (1, 4, 5, 6, 8, 9, 10)},
    **{f"v3_table{number}": ("deeplabv3", f"table_{number}", BLOCKS) for number in (2, 3)},
    "v3_cityscapes": ("deeplabv3", "table_12", ("mIOU",)),
    **{f"v3plus_table{number}": ("deeplabv3plus", f"table_{number}", ("mIOU",)) for number in (1, 2)},
    **{f"v3plus_table{number}": ("deeplabv3plus", f"table_{number}", COST) for number in (3, 5)},
    "v3plus_table7": ("deeplabv3plus", "table_7a", ("mIOU",)),
}


@pytest.mark.parametrize("name", IN_THE_PAPERS)
def test_all_of_the_papers_numbers(name, repo_root) -> None:
    file = repo_root.parent / "shared" / "reference" / "paper_tables.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    paper, number, columns = IN_THE_PAPERS[name]
    table = json.loads(file.read_text())[paper][number]
    assert table["verified"] is True
    places = [table["columns"].index(column) for column in columns]
    expected = [cells[place] for cells in table["rows"] for place in places if cells[place] is not None]
    assert [value for one in TABLES[name].rows for value in one.paper.values()] == expected


def test_every_file_of_a_table_is_named(repo_root) -> None:
    files = {file.stem for file in (repo_root / "experiments/tables").glob("*.py")}
    assert files - {"__init__", "table", "networks"} == set(TABLES)
    assert [table.name for table in TABLES.values()] == list(TABLES)


def test_the_numbers_of_rows() -> None:
    counts = {name: len(table.rows) for name, table in TABLES.items()}
    assert counts["v3_table3"] == 20 and counts["v3plus_table3"] == 14 and counts["v3plus_table5"] == 24
    assert counts["v3_table5"] == counts["v3_table6"] == 5


def test_equal_networks_have_equal_numbers() -> None:
    """The papers say a number again wherever a network returns; so does the data here."""
    found: dict[tuple[str, str], set[float]] = {}
    for table in TRAINED.values():
        for one in table.rows:
            # DeepLabv3+'s own training at output stride 32 is another than DeepLabv3's (75.43 against 75.75).
            if one.paper and not one.needs and "train.batch_size" not in one.train:
                evaluation = {"output_stride": one.train["model.output_stride"], "scales": (1.0,), "flip": False}
                key = (table.data + str(sorted(one.train.items())), str({**evaluation, **one.evaluate}))
                found.setdefault(key, set()).add(one.paper["miou"])
    assert max(len(values) for values in found.values()) == 1
    shared = {str(one.train) for one in TABLES["v3_table2"].rows} & {str(one.train) for one in TABLES["v3_table3"].rows}
    assert len(shared) == 4


def test_names_of_rows_differ_and_are_file_names() -> None:
    for table in TABLES.values():
        names = [table.row_name(one) for one in table.rows]
        assert len(set(names)) == len(names)
        assert all(name.replace("_", "").replace("-", "").isalnum() for name in names), names


def test_rows_have_more_trainings_where_a_claim_is_about_them() -> None:
    """In Table 3, (1, 2, 3) is in no claim; the one of less than a point is (1, 2, 1) over (1, 1, 1), block7."""
    tables = [TABLES["v3_table3"], TABLES["v3plus_figure5"], TABLES["extra_norm"], TABLES["extra_seeds"]]
    asked = ask(tables, (), REGIMES["scenes"], Settings(), 0)
    counts = {one.name: len(one.seeds) for one in asked}
    names = ("1_2_3-last_block_4", "1_2_4-last_block_4", "1_1_1-last_block_7", "1_2_1-last_block_4")
    assert [counts[f"v3_table3/{name}"] for name in names] == [1, 3, 5, 3]
    assert counts["v3plus_figure5/xception"] == 3 and counts["extra_seeds/deeplabv3"] == 5
    assert counts["extra_norm/group-batch_size_4"] == 1
    assert {len(one.seeds) for one in ask(tables, (), REGIMES["scenes"], Settings(), 2)} == {2}
    assert {len(one.seeds) for one in ask(tables[:1], (), REGIMES["paper"], Settings(), 0)} == {1}


def test_measures_are_known() -> None:
    for table in TABLES.values():
        assert set(table.measures) <= set(MEASURES)
        assert all(set(one.paper) <= set(table.measures) for one in table.rows)


def test_figure_4_counts_valid_weights() -> None:
    """At rate 64 of a map of 65 samples, 63 of 65 positions along a side see one tap, the two at its ends two."""
    found = row("v3_figure4", "rate_64").compute()
    assert found["valid_1"] == pytest.approx(100 * 63**2 / 65**2)
    assert found["valid_4"] == pytest.approx(100 * 4 / 65**2)
    assert sum(found.values()) == pytest.approx(100)


# Rows in the regimes.


@pytest.mark.parametrize(
    ("table", "name", "rates"),
    [
        ("v3_table2", "resnet_50-last_block_7", (2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16)),
        ("v3_table3", "1_2_4-last_block_4", (2, 4, 8)),
        ("v3_table3", "2_2_2-last_block_5", (4, 4, 4, 8, 8, 8)),
    ],
)
def test_the_cascade_has_the_papers_rates(table, name, rates) -> None:
    """DeepLabv3, Fig. 3 (b) and sec. 3.2.1: 2, 4, 8, 16 for blocks 4 to 7, times the multi-grid."""
    model, found = build_model(resolved(table, name, "paper").config, num_classes=21), []
    images = jax.ShapeDtypeStruct((1, 129, 129, 3), np.float32)
    with observe_convolutions(found.append):
        jax.eval_shape(partial(model.apply, train=False), abstract_variables(model), images)
    assert tuple(one.rate for one in found if one.kernel[:2] == (3, 3))[-len(rates) :] == rates


@pytest.mark.parametrize("regime", REGIMES)
def test_every_row_is_a_configuration(regime) -> None:
    reasons = []
    for table in TRAINED.values():
        for one in table.rows:
            found = resolve(one, table, REGIMES[regime], NOTHING)
            if isinstance(found, NotRun):
                reasons.append(found.reason)
                continue
            assert set(found.evaluation) == set(found.config.evaluate)
            assert found.config.model.output_stride == one.train["model.output_stride"]
    assert {"needs COCO", "needs COCO and JFT"} <= set(reasons)


QUICK = {("scenes", table) for table in ("v3_table1", "v3plus_table5")}


@pytest.mark.parametrize(
    ("regime", "table"),
    [
        pytest.param(regime, table, marks=[] if (regime, table) in QUICK else pytest.mark.slow)
        for regime in REGIMES
        for table in TRAINED
    ],
)
def test_every_row_is_a_network(regime, table) -> None:
    built = set()
    for one in TABLES[table].rows:
        found = resolve(one, TABLES[table], REGIMES[regime], NOTHING)
        if isinstance(found, Resolved) and str(found.config.model) not in built:
            built.add(str(found.config.model))
            model = build_model(found.config, num_classes=CLASSES[found.config.data.name])
            assert model.output_stride == one.train["model.output_stride"]
            if found.evaluation["output_stride"]:
                abstract_variables(model.clone(output_stride=found.evaluation["output_stride"]))


def test_the_papers_protocol_at_their_scale() -> None:
    config = resolved("v3_table6", "eval_os_16", "paper").config
    assert (config.data.name, config.data.train_split, config.data.crop_size) == ("voc", "trainaug", (513, 513))
    assert (config.train.steps, config.train.batch_size) == (30_000, 16)
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    schedule = build_schedule(config)
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 15_000, 30_000)], [0.007, 0.007 * 0.5**0.9, 0], rtol=1e-6
    )
    assert (config.evaluate.pad_to, config.evaluate.scales, config.evaluate.flip) == (((513, 513),), (1.0,), False)
    assert (config.data.scale_range, config.train.upsample_logits) == ((0.5, 2.0), True)
    assert (config.data.scale_step, config.data.flip, config.data.color_jitter) == (0.25, True, 0.0)
    optimizer = config.optimizer
    assert (optimizer.nesterov, optimizer.clip_norm, optimizer.warmup_steps) == (False, 0.0, 0)
    assert config.evaluate.trimap_around == "void"
    # The authors' weight decay of their other backbones.
    assert resolved("v3plus_table5", "eval_os_16", "paper").config.optimizer.weight_decay == 4e-5
    model = build_model(config, num_classes=21)
    assert model.settings.norm_momentum == 0.9997
    cityscapes = resolved("v3_cityscapes", "eval_os_16", "paper").config
    assert (cityscapes.data.crop_size, cityscapes.train.steps) == ((769, 769), 90_000)
    assert cityscapes.evaluate.pad_to == ((1025, 2049),)
    frozen = resolved("v3_table8", "crop_size_513-upsampled_logits", "paper").config
    assert frozen.model.options.norm == "frozen"
    assert resolved("v3_table10", "train_os_8-eval_os_8", "paper").config.train.batch_size == 6


def test_stage_2_is_the_papers(repo_root) -> None:
    """DeepLabv3, sec. 4.1: frozen batch norm, output stride 8, the official trainval, a seventh of the rate."""
    config = load_config([f"--config={repo_root / 'configs/voc.py'}:stage=2,model=deeplabv3_resnet18"])
    assert (config.data.train_split, config.train.steps, config.optimizer.learning_rate) == ("trainval", 30_000, 0.001)
    model = build_model(config, num_classes=21)
    assert (model.output_stride, model.settings.norm) == (8, "frozen")
    params = abstract_variables(model)["params"]
    optimizer, _ = build_optimizer(config, model)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    updates, _ = jax.jit(optimizer.update)(ones, jax.jit(optimizer.init)(ones), ones)
    moved = {path[-2:]: bool(np.any(update)) for path, update in flatten_dict(updates).items()}
    assert moved == {key: key[-2] != "batch" for key in moved} and ("batch", "scale") in moved


def test_logits_have_the_size_of_the_crop_at_the_papers_scale() -> None:
    model = build_model(resolved("v3plus_table3", "train_os_16-eval_os_16-decoder", "paper").config, num_classes=21)
    images = jax.ShapeDtypeStruct((1, 513, 513, 3), np.float32)
    variables = abstract_variables(model)
    features, logits = (
        jax.eval_shape(lambda v, x, method=method: model.apply(v, x, train=False, method=method), variables, images)
        for method in ("features", "__call__")
    )
    assert logits.shape == (1, 513, 513, 21)
    assert features["context"][0].shape == (1, 33, 33, 256)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    # torchvision's ResNet-101 without its classifier has 42,500,160; the rest is what the authors' stem, the ASPP, the
    # decoder and the logits have more.
    stem = 3 * 3 * (3 * 64 + 64 * 64 + 64 * 128) - 7 * 7 * 3 * 64 + 2 * (64 + 128) + (128 - 64) * (64 + 256)
    aspp = 2048 * 256 * 2 + 3 * 9 * 2048 * 256 + 5 * 256 * 256 + 6 * 512
    decoder = 256 * 48 + 96 + 9 * 304 * 256 + 512 + 9 * 256 * 256 + 512
    assert parameters == 42_500_160 + stem + aspp + decoder + 256 * 21 + 21


def test_what_is_stated_in_the_papers_terms_is_scaled() -> None:
    rates = resolved("v3_table5", "1_2_4-6_12_18_24").config
    assert rates.model.options.aspp_rates == (2, 4, 6, 8) and rates.data.crop_size == (129, 129)
    decoder = resolved("v3plus_table2", "conv3-3x3_256").config.model.options
    assert decoder.low_level_channels == 12 and decoder.decoder_convs == ((3, 64),)
    assert resolved("v3_table9", "batch_size_12").config.train.batch_size == 6
    # 321 of 513 pixels are 21 of 33 samples at output stride 16; here 6 of 9.
    assert resolved("v3_table8", "crop_size_321-upsampled_logits-fine_tuned_bn").config.data.crop_size == (81, 81)
    assert resolved("v3_table2", "resnet_50-last_block_7").config.model.options.multi_grid == (1, 1)
    small, network = REGIMES["scenes"], REGIMES["scenes"].network("deeplabv3plus_resnet101")
    scaled = {"model.options.aspp_rates": (2, 6), "model.options.decoder_convs": ((3, 1),), "train.batch_size": 1}
    assert [small.translated(key, value, network, (129, 129)) for key, value in scaled.items()] == [
        (1, 2),
        ((3, 1),),
        1,
    ]
    loss = resolved("extra_loss", "balanced-top_k_0_25").config.train
    assert len(loss.class_weights) == 9 and loss.top_k == 0.25
    pasted = resolved("extra_recipes", "copy_paste", "camvid").config.data.augment
    assert [CAMVID.names[class_id] for class_id in pasted.copy_paste_classes] == list(RARE)


@pytest.mark.parametrize(
    ("name", "table", "row_name"),
    [
        ("scenes", "v3plus_table1", "channels_48"),
        ("camvid", "v3plus_table1", "channels_48"),
        ("demo", "extra_parts", "deeplabv3_plus_output_stride_16"),
    ],
)
def test_what_a_regime_says_of_its_trainings_is_what_they_are(name, table, row_name) -> None:
    regime, config = REGIMES[name], resolved(table, row_name, name).config
    assert config.optimizer.name == "adam" and config.evaluate.trimap_around == "labels"
    scales, crop = config.data.scale_range, config.data.crop_size
    said = [
        f"Adam at {config.optimizer.learning_rate:g} with {config.optimizer.warmup_steps} steps of warm-up",
        f"{config.train.steps} steps",
        "no random scale" if scales == (1.0, 1.0) else f"random scales of {scales[0]} to {scales[1]}",
        f"of {crop[0]}x{crop[1]}",
        f"batch-norm decay {config.model.options.norm_momentum}",
    ]
    jitter, multipliers = config.data.color_jitter, dict(config.optimizer.multipliers)
    assert (f"colour jitter of {jitter}" in regime.differs) == bool(jitter)
    assert ("class weights" in regime.differs) == bool(config.train.class_weights)
    assert ("at a tenth of that for the backbone MobileNetV2" in regime.differs) == (multipliers == {"^backbone/": 0.1})
    if name == "demo":
        options = config.model.options
        assert (options.width, options.aspp_channels, config.train.batch_size) == (0.5, 64, 8)
        said += ["steps of 8 images", "half the width", "heads of 64 channels", "what was run"]
        assert (regime.rates, regime.batch, regime.network("deeplabv3_resnet18").channels) == (1, 1, 1)
    else:
        part = {0.25: "a quarter", 0.5: "half"}
        channels = regime.network("deeplabv3plus_resnet101").channels
        said += [f"{part[channels]} of their channels", f"{part[regime.batch]} of their batches"]
        said += [
            f"48 channels are {config.model.options.low_level_channels} here",
            f"16 images are {config.train.batch_size}",
        ]
        assert regime.rates == 3
        said += ["a third of the papers' rates", f"rates (6, 12, 18) are {config.model.options.aspp_rates}"]
        for kind, deep in (("ResNet", (50, 101)), ("Xception", (65, 71))):
            stands = (regime.network(f"cascade_{kind.lower()}{depth}").backbone for depth in deep)
            said += [f"{kind}-{' and '.join(backbone.removeprefix(kind.lower()) for backbone in stands)}"]
    assert [text for text in said if text not in regime.differs] == []


def test_the_papers_regime_differs_in_nothing() -> None:
    assert not REGIMES["paper"].differs and all(one.differs for name, one in REGIMES.items() if name != "paper")


def test_what_a_regime_cannot_run_it_says_in_words() -> None:
    for table, name, regime, reason in (
        ("v3_table5", "1_2_1-6_12_18", "camvid", "MobileNetV2 has no multi-grid"),
        ("extra_norm", "group-batch_size_4", "camvid", "the released weights have batch norm"),
        ("extra_loss", "balanced-top_k_1_0", "paper", "class frequencies"),
        ("extra_recipes", "copy_paste", "paper", "rare classes"),
        ("v3_cityscapes", "eval_os_16", "camvid", "on this data it is v3_table6 again"),
    ):
        found = resolve(row(table, name), TABLES[table], REGIMES[regime], NOTHING)
        assert isinstance(found, NotRun) and reason in found.reason


# Keys.


def test_rows_that_mean_the_same_training_share_it() -> None:
    best = resolved("v3_table6", "eval_os_16").training_key
    for table, name in (
        ("v3_table5", "1_2_4-6_12_18-image_pooling"),
        ("v3_table8", "crop_size_513-upsampled_logits-fine_tuned_bn"),
        ("v3_table9", "batch_size_16"),
        ("v3_table10", "train_os_16-eval_os_8"),
        ("v3plus_table3", "train_os_16-eval_os_8-ms"),
        ("extra_norm", "batch-batch_size_16"),
    ):
        assert resolved(table, name).training_key == best, table
    assert resolved("v3_table5", "1_2_4-6_12_18-image_pooling", "camvid").training_key == (
        resolved("v3_table6", "eval_os_8", "camvid").training_key
    )
    assert resolved("v3plus_table1", "channels_48").training_key == resolved("v3plus_table2", "3x3_256").training_key
    # In the papers' regime Cityscapes is another training.
    paper = [resolved(name, "eval_os_16", "paper").training_key for name in ("v3_table6", "v3_cityscapes")]
    assert paper[0] != paper[1]


def test_keys_follow_what_moves_the_weights_and_nothing_else() -> None:
    def key(*words, **settings):
        return resolved("v3_table6", "eval_os_16", settings=Settings(words, **settings)).training_key

    same = ("train.log_every=7", "data.threads=1", "evaluate.batch_size=1", "train.checkpoint_every=3")
    assert {key(f"--config.{word}") for word in same} == {key()}
    assert key(data_dir="/elsewhere") == key()
    other = ("train.batch_size=4", "optimizer.learning_rate=0.1", "model.options.width=0.5", "data.flip=false")
    keys = {key(), key(steps=7), *(key(f"--config.{word}") for word in other)}
    assert len(keys) == 6
    assert beyond({"a": {"b": 1, "c": (1, 2)}, "d": 3}, {"a": {"b": 1, "c": (1,)}, "d": 3, "e": 0}) == (
        {"a": {"c": (1,)}, "e": 0}
    )
    seeds = [to_plain(resolved("v3_table6", "eval_os_16").seeded(seed)) for seed in (0, 3)]
    assert seeds[1]["train"].pop("seed") == 3 and seeds[0]["train"].pop("seed") == 0 and seeds[0] == seeds[1]


def test_evaluations_are_told_apart() -> None:
    keys = {resolved("v3_table6", name).evaluation_key for name in ("eval_os_16", "eval_os_8", "eval_os_8-ms")}
    assert len(keys) == 3
    assert resolved("v3_table10", "train_os_16-eval_os_8").evaluation_key in keys


# Pre-trained weights.


def test_weights_count_by_what_they_are_and_not_where(tmp_path) -> None:
    keys = []
    for folder, value in (("a", 0.0), ("b", 0.0), ("c/mobilenet_v2", 1.0)):
        (tmp_path / folder).mkdir(parents=True)
        save_file({"x": np.full(2, value, np.float32)}, tmp_path / folder / "weights.safetensors")
        found = resolved("v3_table6", "eval_os_16", "camvid", Settings(init=str(tmp_path / folder.split("/")[0])))
        plain = found.pretraining
        assert (plain.init, plain.init_scope, found.config.init) == (str(tmp_path / folder), "backbone", "")
        keys.append(found.training_key)
    assert keys[0] == keys[1] != keys[2]


def test_without_a_plain_network_the_training_itself_starts_from_the_given_weights(tmp_path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "weights.safetensors")
    found = resolved("v3_table6", "eval_os_16", "paper", Settings(init=str(tmp_path)))
    assert (found.config.init, found.config.init_scope, found.pretraining) == (str(tmp_path), "backbone", None)


def test_rows_start_from_a_plain_network() -> None:
    def start(table, name, *words, **settings):
        return resolved(table, name, settings=Settings(words, **settings)).pretraining

    plain = start("v3_table5", "1_2_4-6_12_18")
    options = plain.model.options
    assert (plain.model.name, plain.model.output_stride, plain.train.steps) == ("deeplabv3_resnet34", 32, 1500)
    assert options.aspp_rates == () and options.image_pooling is False and options.multi_grid == (1, 1, 1)
    # One for a backbone and a kind of norm, whatever else the row changes; the user's changes count.
    same = [
        start(*row)
        for row in (
            ("v3_table2", "resnet_101-last_block_7"),
            ("v3_table9", "batch_size_4"),
            ("v3_table8", "crop_size_321-upsampled_logits-fine_tuned_bn"),
            ("v3_table8", "crop_size_513-upsampled_logits"),
            ("v3plus_table2", "3x3_256_x_2"),
        )
    ]
    assert {key_of(one) for one in same} == {key_of(plain)}
    others = [
        start("v3_table1", "output_stride_8"),
        start("extra_norm", "group-batch_size_4"),
        start("v3plus_table5", "eval_os_16-decoder"),
        start("v3_table5", "1_2_4-6_12_18", "--config.model.options.width=0.5"),
        start("v3_table5", "1_2_4-6_12_18", steps=7),
    ]
    assert len({key_of(one) for one in (plain, *others)}) == 6
    keys = [resolved("v3_table5", "1_2_4-6_12_18", settings=Settings(steps=steps)).training_key for steps in (0, 150)]
    assert keys[0] != keys[1], "the same steps after another start are another training"
    assert resolved("extra_parts", "deeplabv3_plus_output_stride_16", "demo").pretraining is None


def check(table, regime, init, *, needed=True):
    check_init([(TABLES[table], one) for one in TABLES[table].rows], REGIMES[regime], init, needed=needed)


def test_missing_weights_are_asked_for(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no weights\.safetensors in it"):
        resolved("v3_table6", "eval_os_16", "camvid", Settings(init=str(tmp_path)))
    with pytest.raises(UserError, match="v3_table6 in regime camvid starts from pre-trained weights: give --init"):
        check("v3_table6", "camvid", "")
    check("v3_table6", "camvid", "", needed=False)
    check("v3_table1", "camvid", "")
    with pytest.raises(UserError, match="--init DIR: none of these rows starts from given weights in regime camvid"):
        check("v3_table1", "camvid", "DIR")


@pytest.mark.parametrize("name", ["scenes", "demo"])
def test_committed_results_are_of_the_rows_as_they_are(name: str) -> None:
    """Else the commands of the pages refuse them. At `camvid` the keys depend on weights that may not be here."""
    regime, others = REGIMES[name], []
    for table in TABLES.values():
        held = read_rows(ROOT / RESULTS / name, table.name)
        for row_name, row in table.named_rows().items():
            if row_name in held:
                found = resolve(row, table, regime, Settings())
                keys = held[row_name]["training"], held[row_name]["evaluation"]
                if not isinstance(found, Resolved) or found.keys != keys or other_values(found, held[row_name]):
                    others.append(f"{table.name}/{row_name}")
    assert not others


def other_values(found: Resolved, held: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training that differ from those of a result. Keys do not show a default that has changed."""
    then, now = (flatten_dict(config, sep=".") for config in (held["config"], to_plain(found.config)))
    outside = [key.removeprefix("config.") for key in OUTSIDE_KEY]
    kept = (key for key in now.keys() & then.keys() if not key.startswith(("evaluate.", *outside)))
    return {key: now[key] for key in kept if now[key] != then[key]}
