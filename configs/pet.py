"""Oxford-IIIT Pet: pet or background. The border of the trimap is ignored.

    python -m deeplab_jax train --config configs/pet.py --config.data.dir=oxford_pets --workdir runs/pet

`oxford_pets` holds the two published archives, unpacked: `images/` and `annotations/`. Arguments: `model=` (a name),
`steps=`, `debug`. This is a small data set for a first try on real images. It was not measured yet.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, parse_arg, shrink, train_on_few_images


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet18", steps=4000)
    config = base()
    train_on_few_images(config, args.model, steps=args.steps)
    config.data.name = "pet"
    if args.debug:
        shrink(config)
    return config
