"""MS-COCO 2017 with the 21 VOC classes, only images of over 1000 labelled pixels: the papers train on it before VOC.

    python -m deeplab_jax train --config configs/coco.py --config.data.dir=coco \\
        --config.init=IMAGENET_MODEL --config.init_scope=backbone --workdir runs/coco

Arguments: `model=` (a name), `debug`. Afterwards train on VOC from this run directory, with a rate of 0.0001
(configs/voc.py). The papers do not state the number of steps. `prepare` writes the selection once; that opens faster
than the annotations' JSON. The config was not measured yet.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import authors_weight_decay, base, choose_model, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet101")
    config = base()
    choose_model(config, args.model)
    config.data.name = "coco"
    config.optimizer.weight_decay = authors_weight_decay(args.model)
    config.train.steps = 90_000
    config.evaluate.pad_to = ((513, 513), (641, 641))
    if args.debug:
        shrink(config)
    return config
