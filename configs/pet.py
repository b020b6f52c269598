"""Oxford-IIIT Pet: pet or background. The border of the trimap is ignored.

    python -m deeplab_jax train --config configs/pet.py --config.data.dir=oxford_pets --workdir runs/pet

`oxford_pets` holds the two published archives, unpacked: `images/` and `annotations/`. Arguments: `model=` (a name),
`debug`. This is a small data set for a first try on real images. It was not measured yet.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, choose_model, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet18")
    config = base()
    choose_model(config, args.model, width=0.5, norm_momentum=0.99)
    config.data.name = "pet"
    config.data.crop_size = (257, 257)
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.train.steps = 4_000
    if args.debug:
        shrink(config)
    return config
