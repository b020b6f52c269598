"""A single atrous rate, on maps of 17 to 65 samples a side, with and without image pooling (not in the papers).

DeepLabv3, sec. 3.3: when the rate comes near the map's side, only the centre of a 3x3 kernel still lies on the map, and
image pooling has to bring the context. Here the pyramid has a 1x1 convolution and one 3x3 convolution of the rate. In
these scenes only a lamp somewhere in the picture tells road from water. The backbone ends with conv3, so it sees 49
pixels to each side at most. The output stride is 8: larger maps come from larger pictures, with fewer of them in a
step. The table runs in the regime `demo`: `python -m experiments.run extra_rates --regime demo`.
"""

from experiments.tables.table import Row, Table

STRIDE = 8
BATCHES = {17: 8, 33: 4, 65: 2}  # images of a step, by the side of the map
SHARES = (0.25, 0.5, 0.75, 1.0)  # rates, as shares of the distance from the first sample of a map to the last one
PAPER_SAMPLE = 32  # Pixels of a row's crop for each sample of a map: the papers' 513 pixels are 17 samples.


def rates(side: int) -> tuple[int, ...]:
    """Return the rates for a map with this side: 2, then rates up to the largest whose outer taps still reach the
    map.
    """
    return (2, *(round(share * (side - 1)) for share in SHARES))


def changes(side: int, rate: int, image_pooling: bool) -> dict[str, object]:
    """Return a row's changes to a training configuration."""
    pixels, crop = STRIDE * (side - 1) + 1, PAPER_SAMPLE * (side - 1) + 1
    return {
        "model.name": "deeplabv3_resnet18",
        "model.output_stride": STRIDE,
        "model.options.last_stage": "conv3",
        "model.options.aspp_rates": (rate // 2,),  # The network doubles it at output stride 8.
        "model.options.image_pooling": image_pooling,
        "data.options.size": (pixels, pixels),
        "data.options.lamp": "on",
        "train.batch_size": BATCHES[side],
        "data.crop_size": (crop, crop),
        "evaluate.pad_to": ((pixels, pixels),),
    }


TABLE = Table(
    name="extra_rates",
    title="One atrous rate by the size of the map",
    source="not in the papers; see DeepLabv3, sec. 3.3 and Fig. 4",
    columns=("map", "rate", "image_pooling"),
    rows=tuple(
        Row((side, rate, pooling), train=changes(side, rate, pooling))
        for side in BATCHES
        for rate in rates(side)
        for pooling in (False, True)
    ),
    measures=("miou", "lamp_iou"),
    along="rate",
)
