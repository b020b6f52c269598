"""The regimes of the tables: their data, the networks that replace the papers', and the length of the trainings.

- `scenes`: generated pictures of 129x129, thin ResNets and a thin Xception. Backbones are first trained in plain
  networks on the same pictures. Nothing far away tells their classes apart, so pyramid and image pooling have little
  context to add; the tables `extra_context` and `extra_rates` have other pictures.
- `demo`: the network of `make demo` and its configuration, on the same pictures, from random weights.
- `camvid`: 257x257 crops of street scenes. Backbones are first trained in plain networks on the same pictures. ASPP and
  decoder stand on MobileNetV2, whose plain network starts from the authors' weights (`--init`: what `convert` makes of
  deeplabv3_257_mv_gpu.tflite). Those of the cascade and of Xception start from random weights.
- `paper`: the published protocol. PASCAL VOC 2012 (trainaug) at 513, 30000 steps of 16 images, rate 0.007, poly;
  Cityscapes at 769, 90000 steps; batch-norm decay 0.9997; backbones from ImageNet (`--init`). All tables are of the
  validation split, so they need stage 1 only. Stage 2 is for the test set: `configs/voc.py:stage=2`. ResNets have the
  authors' own form ("beta"): strides end a block. DeepLabv3+ states the multiply-adds of this form.

`Regime.translated` scales a row's channels, rates, crops and batches to the networks and data of a regime.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.camvid import SQRT_MEDIAN_FREQUENCY
from deeplab_jax.errors import UserError, did_you_mean
from experiments.tables import Row, Table

PAPER_CROP = 513
CLOSE = 1.0  # points of mIoU
MULTI_GRID = "model.options.multi_grid"

Limits = Mapping[tuple[str, Any], str]

FROM_WEIGHTS: Limits = {("model.options.norm", "group"): "the released weights have batch norm"}
# Rows with the papers' final multi-grid, (1, 2, 4), run without one.
ON_MOBILENET: Limits = {
    **FROM_WEIGHTS,
    **{(MULTI_GRID, grid): "MobileNetV2 has no multi-grid" for grid in ((1, 1, 1), (1, 2, 1))},
}


@dataclass(frozen=True)
class Network:
    """The network that replaces a backbone of the papers.

    Attributes:
      backbone: its name.
      config: the configuration file and its arguments, with `{model}`, `{data}` and `{steps}` to be filled in.
      channels: factor of a row's numbers of channels.
      units: units of the last block, one for each rate of a multi-grid; 0: the network has no multi-grid.
      options: options of the model that replace those of the configuration.
      overrides: arguments `--config.key=value` of its rows; its plain network (`Regime.pretraining`) goes without them.
      pretrained: whether it starts from weights, given by `--init`.
      limits: the reason why a row with a change (key, value) cannot be run.
      note: the difference of its rows from the papers', for the reader of the results.
    """

    backbone: str
    config: str
    channels: float = 1.0
    units: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    pretrained: bool = False
    limits: Limits = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Regime:
    """Data, networks and trainings with which tables are run.

    Attributes:
      name: its name for `experiments.run`.
      networks: the networks by the papers' backbone, or by architecture and backbone where they differ.
      steps: steps of a training; 0: those of the configuration.
      batch: factor of the papers' batch sizes.
      rates: divisor of the papers' atrous rates, for smaller maps.
      seeds: the number of trainings of a row, for tables in which the claims do not decide it.
      claim_seeds: the number for rows with a claim of the paper.
      close_seeds: the number for rows with a claim of less than `CLOSE` points.
      class_weights: the weights that "balanced" means for its data; empty: not known.
      rare_classes: the class ids that "rare" means for its data; empty: not named.
      overrides: arguments `--config.key=value`.
      pretraining: steps of a plain network that is trained first, on the regime's own data, from given weights where
        there are any. Rows start from its backbone; the papers start from ImageNet. 0: rows start from given or random
        weights.
      differs: where its trainings differ from the papers', for the reader of the results, and the units of the cells.
    """

    name: str
    networks: Mapping[str, Network]
    steps: int
    batch: float
    rates: int
    seeds: Mapping[str, int] = field(default_factory=dict)
    claim_seeds: int = 1
    close_seeds: int = 1
    class_weights: tuple[float, ...] = ()
    rare_classes: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    pretraining: int = 0
    differs: str = ""

    def network(self, model: str) -> Network:
        """Return the network that replaces a model of the papers, given as `<architecture>_<backbone>`."""
        return self.networks[model] if model in self.networks else self.networks[model.partition("_")[2]]

    def command(self, table: str) -> str:
        """Return the command that runs a table here."""
        given = any(network.pretrained for network in self.networks.values())
        needs = " --data_dir DIR --init MODEL_FOLDER" if given else ""
        return f"python -m experiments.run {table} --regime {self.name}{needs}"

    def trainings(self, table: Table, row: Row) -> int:
        """Return the number of a row's trainings."""
        points = table.at_stake(row)
        if table.name in self.seeds or points is None:
            return self.seeds.get(table.name, 1)
        return self.close_seeds if points < CLOSE else self.claim_seeds

    def why_not(self, row: Row) -> str:
        """Return the reason why a row cannot be run here, "" where it can or needs no network."""
        if row.needs:
            return f"needs {row.needs}"
        if row.repeats and self.name != "paper":
            return f"on this data it is {row.repeats} again"
        if "balanced" in row.train.values() and not self.class_weights:
            return "the class frequencies of this data are not known here"
        if "rare" in row.train.values() and not self.rare_classes:
            return "the rare classes of this data are not named here"
        if not row.train:
            return ""
        try:
            limits = self.network(row.train["model.name"]).limits
        except KeyError:
            others = ", ".join(self.networks)
            return f"no network stands for {row.train['model.name']} in the regime {self.name}, only for {others}"
        return next((limits[change] for change in row.train.items() if change in limits), "")

    def translated(self, key: str, value: Any, network: Network, crop: tuple[int, int]) -> Any:
        """Return the value here of a row's change that the papers state in channels, samples, pixels or images; `crop`
        is the height and width of the crops here.
        """
        match key.split(".")[-1]:
            case "multi_grid":
                return value[: network.units]
            case "low_level_channels":
                return max(1, round(value * network.channels))
            case "decoder_convs":
                return tuple((kernel, max(1, round(channels * network.channels))) for kernel, channels in value)
            case "aspp_rates":
                return tuple(max(1, rate // self.rates) for rate in value)
            case "crop_size":  # In samples of the map at output stride 16, of which both ends count.
                sides = zip(value, crop, strict=True)
                return tuple(round((side - 1) * (own - 1) / (PAPER_CROP - 1)) + 1 for side, own in sides)
            case "batch_size":
                return max(1, round(value * self.batch))
            case "class_weights":
                return self.class_weights if value == "balanced" else ()
            case "copy_paste_classes":
                return self.rare_classes if value == "rare" else value
        return value


_SCENES = "configs/scenes.py:model={model}"
_CAMVID = "configs/camvid.py:model={model},steps={steps}"
_PAPER = "configs/{data}.py:model={model}"
# A quarter of the channels: ResNets end in 128 channels, Xception's middle flow has 182.
_THIN: Mapping[str, Any] = {"width": 0.25}
# With the papers' rates: at output stride 16 and multi-grid (1, 2, 4), block 4 has 2, 4, 8.
_THIN_RESNET: Mapping[str, Any] = {**_THIN, "first_unit_rate": "last_unit"}
_SGD = "where the papers have SGD with momentum at 0.007"
_CELLS = "The cells of a row have the papers' units"

REGIMES: dict[str, Regime] = {
    "scenes": Regime(
        name="scenes",
        networks={
            "resnet50": Network("resnet18", _SCENES, channels=0.25, units=2, options=_THIN_RESNET),
            "resnet101": Network("resnet34", _SCENES, channels=0.25, options=_THIN_RESNET),
            "xception65": Network("xception41", _SCENES, channels=0.25, options=_THIN),
            "xception71": Network("xception65", _SCENES, channels=0.25, options=_THIN),
        },
        steps=450,
        batch=0.5,
        rates=3,
        seeds={"extra_seeds": 5, "extra_noise": 5},
        claim_seeds=3,
        close_seeds=5,
        # Of `check-data --config configs/scenes.py --split train --limit 400`.
        class_weights=(0.506, 1.023, 1.000, 0.773, 0.650, 1.676, 1.731, 0.676, 1.199),
        overrides=("--config.optimizer.learning_rate=0.01",),
        pretraining=1500,
        differs=(
            f"Adam at 0.01 with 20 steps of warm-up, {_SGD}; 450 steps; no random scale; crops of 129x129 for 513x513; "
            "a third of the papers' rates, a quarter of their channels, half of their batches; ResNet-18 and 34 for 50 "
            "and 101, Xception-41 and 65 for 65 and 71; batch-norm decay 0.95; a trimap around any change of label. "
            f"{_CELLS}: 48 channels are 12 here, rates (6, 12, 18) are (2, 4, 6), and 16 images are 8."
        ),
    ),
    "demo": Regime(
        name="demo",
        networks={"resnet18": Network("resnet18", _SCENES, units=2)},
        steps=0,
        batch=1.0,
        rates=1,
        differs=(
            f"Adam at 0.003 with 20 steps of warm-up, {_SGD}; 450 steps of 8 images, fewer where the pictures are "
            "larger; no random scale; pictures of 129x129 where a row says nothing else; ResNet-18 of half the width, "
            "from random weights, with heads of 64 channels; batch-norm decay 0.95. The cells of a row are what was "
            "run."
        ),
    ),
    "camvid": Regime(
        name="camvid",
        networks={
            "resnet101": Network(
                "mobilenet_v2",
                _CAMVID + ",finetune",
                channels=0.5,
                units=0,
                overrides=('--config.optimizer.multipliers=(("^backbone/", 0.1),)',),
                pretrained=True,
                limits=ON_MOBILENET,
                note="MobileNetV2: no multi-grid; separable convolutions in ASPP and decoder",
            ),
            "cascade_resnet50": Network("resnet18", _CAMVID, units=2),
            "cascade_resnet101": Network("resnet34", _CAMVID),
            "xception65": Network("xception41", _CAMVID, channels=0.25, options=_THIN),
            "xception71": Network("xception65", _CAMVID, channels=0.25, options=_THIN),
        },
        steps=600,
        batch=0.5,
        rates=3,
        seeds={"extra_seeds": 5, "extra_recipes": 2},
        claim_seeds=3,
        close_seeds=3,
        class_weights=SQRT_MEDIAN_FREQUENCY,
        overrides=(
            "--config.optimizer.learning_rate=0.003",
            "--config.train.loss=cross_entropy + dice",
            "--config.train.ema_decay=0.99",
            "--config.train.ema_debias=True",
            "--config.train.evaluate_every=100000",  # At the end only.
        ),
        pretraining=4000,
        rare_classes=(2, 6, 9),  # Pole, sign symbol, pedestrian: those of "IoU of rare classes".
        differs=(
            f"Adam at 0.003 with 100 steps of warm-up, at a tenth of that for the backbone MobileNetV2, {_SGD}; 600 "
            "steps; Dice beside cross-entropy, with class weights; a debiased average of the weights (0.99); random "
            "scales of 0.6 to 1.6; colour jitter of 0.2; crops of 257x257 for 513x513; a third of the papers' rates, "
            "half of their channels, half of their batches; MobileNetV2 for ResNet-101, in cascades ResNet-18 and 34 "
            "for 50 and 101, and Xception-41 and 65 of a quarter of the channels for 65 and 71; batch-norm decay 0.98; "
            f"a trimap around any change of label. {_CELLS}: 48 channels are 24 here (12 beside Xception), rates (6, "
            "12, 18) are (2, 4, 6), and 16 images are 8. extra_recipes is older than this: its trainings start from "
            "the authors' MobileNetV2 itself, with the papers' rates, at 0.002 where a row names no other, and its "
            "rows say which loss they have."
        ),
    ),
    "paper": Regime(
        name="paper",
        networks={
            "resnet50": Network("resnet50_beta", _PAPER, pretrained=True, limits=FROM_WEIGHTS),
            "resnet101": Network("resnet101_beta", _PAPER, pretrained=True, limits=FROM_WEIGHTS),
            "xception65": Network("xception65", _PAPER, pretrained=True, limits=FROM_WEIGHTS),
            "xception71": Network("xception71", _PAPER, pretrained=True, limits=FROM_WEIGHTS),
        },
        steps=0,
        batch=1.0,
        rates=1,
        seeds={"extra_seeds": 5},
    ),
}


def find_regime(name: str) -> Regime:
    """Return the regime of this name.

    Raises:
      UserError: no regime has it.
    """
    if name not in REGIMES:
        raise UserError(f"--regime {name!r}: {did_you_mean(name, REGIMES)}")
    return REGIMES[name]
