"""PASCAL VOC 2012 with the SBD annotations (trainaug, 10582 images), by the papers' protocol.

    python -m deeplab_jax train --config configs/voc.py --config.data.dir=VOCdevkit/VOC2012 \\
        --config.init=IMAGENET_MODEL --config.init_scope=backbone --workdir runs/voc
    python -m deeplab_jax train --config configs/voc.py:stage=2 --config.data.dir=VOCdevkit/VOC2012 \\
        --config.init=runs/voc --workdir runs/voc_stage2

Stage 1 trains batch norm at output stride 16: 30000 steps of 16 crops of 513, rate 0.007 (DeepLabv3, sec. 4.1). Stage 2
freezes batch norm (statistics, scales and offsets) and trains at output stride 8 on trainval, rate 0.001, from the run
of stage 1. Its validation images are among its training images. So its mIoU is no result, and `--checkpoint newest` is
the one to take. Arguments: `model=` (a name), `stage=`, `debug`. The config is for accelerators. It was not measured
yet.

Protocol: whole images padded with the mean to 513x513, labels at their own resolution, single scale. The papers report
77.21 (DeepLabv3, ResNet-101, output stride 16, Table 6) and 78.85 (DeepLabv3+ decoder, Table 2) on val.

The papers do not state momentum, weight decay and the step of the scales; these are those of the authors' code. Two
things of that code are left out: its dropout of 0.1 after the ASPP (the model's option `dropout`), and its rule that
depthwise kernels have no weight decay (`no_decay`). What it does for the test server only is left out, too: it repeats
images with hard classes, and trains on COCO first (DeepLabv3, sec. 4.3).
"""

from ml_collections import ConfigDict

from deeplab_jax.config import authors_weight_decay, base, choose_model, parse_arg, shrink
from deeplab_jax.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, model="deeplabv3plus_resnet101", stage=1)
    if args.stage not in (1, 2):
        raise UserError(f"config argument 'stage={args.stage}': give stage=1 or stage=2")
    config = base()
    choose_model(config, args.model, heads={name: {"separable": False} for name in ("deeplabv3", "deeplabv3plus")})
    config.data.name = "voc"
    config.data.train_split = "trainaug"
    config.optimizer.weight_decay = authors_weight_decay(args.model)
    config.evaluate.pad_to = ((513, 513),)
    config.evaluate.trimap_around = "void"
    if args.stage == 2:
        config.data.train_split = "trainval"
        config.model.output_stride = 8
        config.model.options.norm = "frozen"
        config.optimizer.learning_rate = 0.001
        config.optimizer.freeze = (r"norm/batch/(scale|bias)$",)
    if args.debug:
        shrink(config)
    return config
