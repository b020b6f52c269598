"""One atrous rate at a time, on maps of 17 to 65 samples a side, with and without image pooling (not in the papers).

DeepLabv3, sec. 3.3: as the rate comes near the map's side, a 3x3 kernel keeps its centre alone, and image pooling has
to bring the context. The pyramid here has the 1x1 convolution and one 3x3 of the rate. Pictures grow with the maps, at
output stride 8. It runs in the regime `demo`: `python -m experiments.run extra_rates --regime demo`.
"""

from experiments.tables.table import Row, Table

STRIDE = 8
MAPS = (17, 33, 65)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from one end of a map to the other: a rate of 1.0 spans it
PAPER_SAMPLE = 32  # pixels of the papers' crops for each sample here: 513 are 17 samples.


def rates(side: int) -> tuple[int, ...]:
    """Return the rates on a map of a side: 2, then up to the one whose outer taps see one row of positions."""
    return (2, *(round(share * (side - 1)) for share in SHARES))


def changes(side: int, rate: int, image_pooling: bool) -> dict[str, object]:
    """Return a row's changes to a training configuration."""
    pixels, crop = STRIDE * (side - 1) + 1, PAPER_SAMPLE * (side - 1) + 1
    return {
        "model.name": "deeplabv3_resnet18",
        "model.output_stride": STRIDE,
        "model.options.aspp_rates": (rate // 2,),  # Which double at output stride 8.
        "model.options.image_pooling": image_pooling,
        "data.options.size": (pixels, pixels),
        "data.crop_size": (crop, crop),
        "evaluate.pad_to": ((pixels, pixels),),
    }


TABLE = Table(
    name="extra_rates",
    title="One atrous rate by the size of the map",
    source="not in the papers; what they say of it is DeepLabv3, sec. 3.3 and Fig. 4",
    columns=("map", "rate", "image_pooling"),
    rows=tuple(
        Row((side, rate, pooling), train=changes(side, rate, pooling))
        for side in MAPS
        for rate in rates(side)
        for pooling in (False, True)
    ),
)
