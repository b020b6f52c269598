"""Oxford-IIIT Pet: pet or background, the border of the trimap ignored.

    python -m deeplab_jax train --config configs/pet.py --config.data.dir=oxford_pets --workdir runs/pet

`oxford_pets` holds the two published archives, unpacked: `images/` and `annotations/`. Arguments: `architecture=`,
`backbone=`, `debug`. A small data set for a first try on real images; not measured yet.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, architecture="deeplabv3plus", backbone="resnet18")
    config = base()
    config.model.name = f"{args.architecture}_{args.backbone}"
    config.model.options = ConfigDict({"width": 0.5, "norm_momentum": 0.99})
    config.data.name = "pet"
    config.data.crop_size = (257, 257)
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.train.steps = 4_000
    if args.debug:
        shrink(config)
    return config
