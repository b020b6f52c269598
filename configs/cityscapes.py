"""Cityscapes by the papers' protocol: 2975 training and 500 validation images of 2048x1024, 19 classes.

    python -m deeplab_jax train --config configs/cityscapes.py --config.data.dir=cityscapes \\
        --config.init=IMAGENET_MODEL --config.init_scope=backbone --workdir runs/cityscapes

Arguments: `model=` (a name), `debug`. 90000 steps of 16 crops of 769; evaluation on whole images (DeepLabv3, appendix
C). The config is for accelerators. It was not measured yet.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import authors_weight_decay, base, choose_model, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet101")
    config = base()
    choose_model(config, args.model)
    config.data.name = "cityscapes"
    config.data.crop_size = (769, 769)
    config.optimizer.weight_decay = authors_weight_decay(args.model)
    config.train.steps = 90_000
    config.evaluate.pad_to = ((1025, 2049),)
    if args.debug:
        shrink(config)
    return config
