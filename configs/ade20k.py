"""ADE20K: 20210 training and 2000 validation images, 150 classes.

    python -m deeplab_jax train --config configs/ade20k.py --config.data.dir=ADEChallengeData2016 \\
        --config.init=IMAGENET_MODEL --config.init_scope=backbone --workdir runs/ade20k

Arguments: `model=` (a name), `debug`. The papers do not use this data set. Crop, rate and schedule follow their VOC
protocol, with more steps. The config is for accelerators. It was not measured yet.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import authors_weight_decay, base, choose_model, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet101")
    config = base()
    choose_model(config, args.model)
    config.data.name = "ade20k"
    config.optimizer.weight_decay = authors_weight_decay(args.model)
    config.train.steps = 150_000
    if args.debug:
        shrink(config)
    return config
