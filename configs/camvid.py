"""CamVid on two CPU cores: 367 training and 101 validation street scenes of 480x360, 11 classes.

    python -m deeplab_jax train --config configs/camvid.py --config.data.dir=DIR --workdir runs/camvid
    python -m deeplab_jax convert tensorflow/deeplabv3_257_mv_gpu --out models/mobilenet_v2
    python -m deeplab_jax train --config configs/camvid.py:best --config.data.dir=DIR \\
        --config.init=models/mobilenet_v2 \\
        --workdir runs/camvid_best

`DIR` holds `train/`, `trainannot/`, `val/` and `valannot/`, as in SegNet's tutorial copy of the data.

The first command starts from random weights. `best` starts from the backbone of the official MobileNetV2 of width 0.5.
The batch norms of these weights were folded away. New ones start as the identity;
`--config.model.options.backbone_norm=none` trains without batch norms. `finetune` is the plain recipe for the same
start: fewer steps, a lower rate and cross-entropy without Dice. The papers' tables at `camvid` change it
(`experiments/regimes.py`).

Arguments: `debug` takes seconds; `steps=` sets the length; `model=` names another network. Class weights are the square
roots of median-frequency weights, as `check-data` prints them.

Protocol: whole images, padded with the mean to 369x481, labels at their own resolution, class 11 (unlabelled) ignored.
Results: `experiments/results/README.md`.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, choose_model, parse_arg, shrink

SQRT_MEDIAN_FREQUENCY = (0.529, 0.449, 2.188, 0.386, 1.000, 0.651, 1.961, 1.407, 0.888, 2.527, 2.970)

# The official MobileNetV2 of width 0.5, as `convert` describes it, under a small decoder.
OFFICIAL_BACKBONE = {"width": 0.5, "channel_divisor": 1, "strided_padding": "same", "backbone_norm": "batch"}
FINETUNE_ASPP = {"aspp_channels": 128, "dropout": 0.1, "separable": True}
FINETUNE_HEADS = {
    "deeplabv3": FINETUNE_ASPP,
    "deeplabv3plus": {**FINETUNE_ASPP, "low_level_channels": 24, "decoder_convs": ((3, 128), (3, 128))},
}


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, flags=("debug", "finetune", "best"), model="", steps=0)
    finetune, steps = args.finetune or args.best, args.steps or (5000 if args.best else 2400)
    model = args.model or ("deeplabv3plus_mobilenet_v2" if finetune else "deeplabv3plus_resnet18")
    config = base()
    deeplab = {"aspp_channels": 64, "dropout": 0.1}
    choose_model(
        config,
        model,
        heads={
            "deeplabv3": deeplab,
            "deeplabv3plus": {**deeplab, "low_level_channels": 24, "decoder_convs": ((3, 64),)},
        },
        width=0.5,
        norm_momentum=0.98,
    )
    config.data.name = "camvid"
    config.data.crop_size = (257, 257)
    config.data.scale_range = (0.6, 1.6)
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.2
    config.data.threads = 2
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 100
    config.train.steps = steps
    config.train.batch_size = 8
    config.train.class_weights = SQRT_MEDIAN_FREQUENCY
    # An average over about 500 steps; a short run would still be averaging its first, random weights.
    config.train.ema_decay = 0.998 if steps >= 2000 else 0.0
    config.train.log_every = 20
    config.train.evaluate_every = 600
    config.train.checkpoint_every = 200
    config.evaluate.pad_to = ((369, 481),)
    config.evaluate.batch_size = 4
    if finetune:
        config.init_scope = "backbone"
        choose_model(config, model, heads=FINETUNE_HEADS, **OFFICIAL_BACKBONE, norm_momentum=0.98)
        config.optimizer.multipliers = ((r"^backbone/", 0.5),)
    if args.best:
        config.train.loss = "cross_entropy + dice"
        config.optimizer.learning_rate = 3e-3
        config.train.evaluate_every = 1250
    if args.debug:
        shrink(config)
    return config
