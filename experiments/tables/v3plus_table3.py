"""DeepLabv3+, Table 3: inference with and without the decoder, and its multiply-adds, on ResNet-101.

Multiply-adds are counted in the paper's way, with the zeros of TensorFlow's space-to-batch. The number 101.28
contradicts other numbers of the paper (`experiments.multiply_adds`).
"""

from experiments.tables.networks import deeplabv3, deeplabv3plus, inference
from experiments.tables.table import Claim, Row, Table

# (output stride in training, in evaluation, decoder, multi-scale, flip) -> mIoU, multiply-adds
PAPER = {
    (16, 16, False, False, False): (77.21, 81.02),
    (16, 8, False, False, False): (78.51, 276.18),
    (16, 8, False, True, False): (79.45, 2435.37),
    (16, 8, False, True, True): (79.77, 4870.59),
    (16, 16, True, False, False): (78.85, 101.28),
    (16, 16, True, True, False): (80.09, 898.69),
    (16, 16, True, True, True): (80.22, 1797.23),
    (16, 8, True, False, False): (79.35, 297.92),
    (16, 8, True, True, False): (80.43, 2623.61),
    (16, 8, True, True, True): (80.57, 5247.07),
    (32, 32, False, False, False): (75.43, 52.43),
    (32, 32, True, False, False): (77.37, 74.2),
    (32, 16, True, False, False): (77.8, 101.28),
    (32, 8, True, False, False): (77.92, 297.92),
}
NO_FLIP = False  # in all claims

TABLE = Table(
    name="v3plus_table3",
    title="Inference with and without the decoder, ResNet-101",
    source="arXiv 1802.02611, Table 3 (VOC 2012 val)",
    columns=("train_os", "eval_os", "decoder", "ms", "flip"),
    rows=tuple(
        Row(
            (train, evaluation, decoder, multi_scale, flip),
            {"miou": miou, "multiply_adds": multiply_adds},
            train=(deeplabv3plus if decoder else deeplabv3)(output_stride=train),
            evaluate=inference(evaluation, multi_scale=multi_scale, flip=flip),
        )
        for (train, evaluation, decoder, multi_scale, flip), (miou, multiply_adds) in PAPER.items()
    ),
    measures=("miou", "multiply_adds"),
    claims=tuple(
        Claim(says, better=(*better, NO_FLIP), worse=(*worse, NO_FLIP))
        for says, better, worse in (
            ("the decoder helps at output stride 16", (16, 16, True, False), (16, 16, False, False)),
            ("the decoder helps at output stride 8", (16, 8, True, False), (16, 8, False, False)),
            ("the decoder helps after training at 32", (32, 32, True, False), (32, 32, False, False)),
            ("training at output stride 16 is better than at 32", (16, 16, True, False), (32, 16, True, False)),
            ("behind a decoder, evaluation at output stride 8 helps", (16, 8, True, False), (16, 16, True, False)),
            ("behind a decoder, scales help", (16, 8, True, True), (16, 8, True, False)),
        )
    ),
)
