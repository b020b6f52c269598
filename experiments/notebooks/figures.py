"""The style of the notebooks' pictures, and sliders for them."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from deeplab_jax.labels import LabelSet

# With this resolution, a notebook with its pictures stays below half a megabyte.
STYLE: dict[str, Any] = {
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "legend.frameon": False,
    "image.interpolation": "nearest",
}


def show_picture(axes: Axes, picture: Any, title: str, **options: Any) -> Any:
    """Draw a picture or a map with a title and without axes, and return the result of `imshow`, which gets
    `options`.
    """
    axes.set_title(title)
    axes.axis("off")
    return axes.imshow(picture, **options)


def class_legend(figure: Figure, labels: LabelSet) -> None:
    """Draw a legend of the classes' colours under a figure."""
    boxes = [
        Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="#888888", label=name)
        for (red, green, blue), name in zip(labels.palette, labels.names, strict=True)
    ]
    figure.legend(handles=boxes, loc="outside lower center", ncols=len(boxes), handlelength=1, columnspacing=1)


def explore(draw: Callable[..., None], **ranges: tuple[int, int, int]) -> None:
    """Put sliders beside a picture, which is drawn again for every change.

    Without ipywidgets it prints a line that names this package. All other pictures work without it.

    Args:
      draw: draws the picture; it gets an integer for each of `ranges`.
      **ranges: smallest, largest and first value of each slider.
    """
    try:
        from ipywidgets import IntSlider, interact
    except ImportError:
        print("With ipywidgets installed there are sliders here:", ", ".join(ranges))
        return
    interact(draw, **{name: IntSlider(value, low, high) for name, (low, high, value) in ranges.items()})
