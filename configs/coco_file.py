"""Your own images with one annotation file in COCO's format for each split, or for all: categories are the classes.

    python -m deeplab_jax check-data --config configs/coco_file.py --config.data.dir=DIR
    python -m deeplab_jax train --config configs/coco_file.py --config.data.dir=DIR --workdir runs/mine

Exports of CVAT and Roboflow are found in DIR; `--config.data.options.annotations=FILE` names another file. If one file
holds all images, a fifth of them is kept for validation, chosen by name.
Arguments: `model=` (a name), `steps=`, `debug`.
configs/coco.py is for COCO itself.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, parse_arg, shrink, train_on_few_images


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet18", steps=4000)
    config = base()
    train_on_few_images(config, args.model, steps=args.steps)
    config.data.name = "coco_file"
    config.data.options = ConfigDict({"val_fraction": 0.2})
    if args.debug:
        shrink(config)
    return config
