"""DeepLabv3+, Table 5: the modified Xception with the decoder, and with separable convolutions in ASPP and decoder.

The network is trained at output stride 16. Multiply-adds are counted as in Table 3.
"""

from experiments.tables.networks import deeplabv3, deeplabv3plus, inference
from experiments.tables.table import Claim, Row, Table

# (output stride in evaluation, decoder, multi-scale, flip, separable, pre-trained on) -> mIoU, multiply-adds
PAPER = {
    (16, False, False, False, False, ""): (79.17, 68.0),
    (16, False, True, False, False, ""): (80.57, 601.74),
    (16, False, True, True, False, ""): (80.79, 1203.34),
    (8, False, False, False, False, ""): (79.64, 240.85),
    (8, False, True, False, False, ""): (81.15, 2149.91),
    (8, False, True, True, False, ""): (81.34, 4299.68),
    (16, True, False, False, False, ""): (79.93, 89.76),
    (16, True, True, False, False, ""): (81.38, 790.12),
    (16, True, True, True, False, ""): (81.44, 1580.1),
    (8, True, False, False, False, ""): (80.22, 262.59),
    (8, True, True, False, False, ""): (81.6, 2338.15),
    (8, True, True, True, False, ""): (81.63, 4676.16),
    (16, True, False, False, True, ""): (79.79, 54.17),
    (16, True, True, True, True, ""): (81.21, 928.81),
    (8, True, False, False, True, ""): (80.02, 177.1),
    (8, True, True, True, True, ""): (81.39, 3055.35),
    (16, True, False, False, True, "COCO"): (82.2, 54.17),
    (16, True, True, True, True, "COCO"): (83.34, 928.81),
    (8, True, False, False, True, "COCO"): (82.45, 177.1),
    (8, True, True, True, True, "COCO"): (83.58, 3055.35),
    (16, True, False, False, True, "COCO and JFT"): (83.03, 54.17),
    (16, True, True, True, True, "COCO and JFT"): (84.22, 928.81),
    (8, True, False, False, True, "COCO and JFT"): (83.39, 177.1),
    (8, True, True, True, True, "COCO and JFT"): (84.56, 3055.35),
}
NO_EXTRAS = (False, False, False, False)  # no flip, no separable convolutions, no COCO, no JFT


def _train(decoder: bool, separable: bool) -> dict[str, object]:
    return deeplabv3plus("xception65", separable=separable) if decoder else deeplabv3("xception65")


TABLE = Table(
    name="v3plus_table5",
    title="Inference with the modified Xception; SC: separable convolutions in ASPP and decoder",
    source="arXiv 1802.02611, Table 5 (VOC 2012 val)",
    columns=("eval_os", "decoder", "ms", "flip", "sc", "coco", "jft"),
    rows=tuple(
        Row(
            (stride, decoder, multi_scale, flip, separable, "COCO" in needs, "JFT" in needs),
            {"miou": miou, "multiply_adds": multiply_adds},
            train=_train(decoder, separable),
            evaluate=inference(stride, multi_scale=multi_scale, flip=flip),
            needs=needs,
        )
        for (stride, decoder, multi_scale, flip, separable, needs), (miou, multiply_adds) in PAPER.items()
    ),
    measures=("miou", "multiply_adds"),
    claims=tuple(
        Claim(says, better=(*better, *NO_EXTRAS), worse=(*worse, *NO_EXTRAS))
        for says, better, worse in (
            ("the decoder helps at output stride 16", (16, True, False), (16, False, False)),
            ("the decoder helps at output stride 8", (8, True, False), (8, False, False)),
            ("behind a decoder, evaluation at output stride 8 helps", (8, True, False), (16, True, False)),
            ("behind a decoder, scales help", (16, True, True), (16, True, False)),
        )
    ),
)
