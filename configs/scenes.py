"""The generated scenes: `make demo` trains on them, in minutes on two CPU cores.

    python -m deeplab_jax train --config configs/scenes.py --workdir runs/scenes

Arguments: `debug` takes seconds; `model=` names another network; `size=` sets the side of the pictures (129 pixels).
Protocol: whole images; validation on 256 images that training never sees. Results: `experiments/results/README.md`.
"""

from ml_collections import ConfigDict

from deeplab_jax.config import base, choose_model, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet18", size=129)
    config = base()
    heads = {"deeplabv3": {"aspp_channels": 64}, "deeplabv3plus": {"aspp_channels": 64, "decoder_convs": ((3, 64),)}}
    choose_model(config, args.model, heads=heads, width=0.5, norm_momentum=0.95)
    config.data.name = "scenes"
    config.data.options = ConfigDict({"size": (args.size, args.size)})
    config.data.crop_size = (args.size, args.size)
    config.data.scale_range = (1.0, 1.0)
    config.data.threads = 2
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 20
    config.train.steps = 450
    config.train.batch_size = 8
    config.train.log_every = 25
    config.train.evaluate_every = 10_000
    config.train.checkpoint_every = 100
    config.evaluate.pad_to = ((args.size, args.size),)
    config.evaluate.batch_size = 16
    if args.debug:
        shrink(config)
        config.data.options = ConfigDict({"size": (65, 65), "count": 4})
        config.evaluate.pad_to = ((65, 65),)
        config.evaluate.batch_size = 2
    return config
