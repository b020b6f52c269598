"""Your own images and masks, in any of the usual layouts, or in two folders or globs that options name.

    python -m deeplab_jax check-data --config configs/folder.py --config.data.dir=DIR \\
        --config.data.options.class_names="('background','crack')"
    python -m deeplab_jax train --config configs/folder.py --config.data.dir=DIR \\
        --config.data.options.class_names="('background','crack')" --workdir runs/mine

An image and its mask have the same name up to the suffix. `check-data` says which layout it found. Class names may be
left out where the folder says them: exports of CVAT, Roboflow and labelme. Masks hold class ids. `value_map` translates
other values: `--config.data.options.value_map="((0,0),(255,1))"` is for black and white masks; `palette` is for
coloured ones. Where the folder has no parts for training and validation, a fifth of the images is kept for validation,
chosen by name. Arguments: `model=` (a name), `steps=`, `debug`. For anything beyond that, edit a copy of this file.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, parse_arg, shrink, train_on_few_images


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet18", steps=4000)
    config = base()
    train_on_few_images(config, args.model, steps=args.steps)
    config.data.name = "folder"
    config.data.options = ConfigDict(
        {
            "class_names": (),
            "images": "images",
            "masks": "masks",
            "ignore_label": 255,
            "value_map": (),
            "val_fraction": 0.2,
            "val_rule": "share",
        }
    )
    if args.debug:
        shrink(config)
    return config
