"""A summary as a table for the terminal."""

from rich import box
from rich.table import Table

from deeplab_jax.analysis.summary import Stage, Summary


def summary_table(summary: Summary) -> Table:
    """Return one line per stage and one for all; multiply-adds in billions, memory in MiB."""
    model = summary.model
    table = Table(
        title=f"{model['name']}, {summary.height}x{summary.width}, output stride {model['output_stride']}, "
        f"{'one logit' if model['num_classes'] == 1 else str(model['num_classes']) + ' classes'}, {summary.dtype}",
        title_justify="left",
        caption="adds: multiply-adds in 10⁹; valid: without taps on padding. outputs: MiB of all convolutions' "
        "outputs for one image; largest: MiB of one's input and output. field: pixels along a side that a sample sees.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, heading in enumerate(
        ("stage", "parameters", "adds", "valid", "outputs", "largest", "field", "stride", "shape")
    ):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for stage in summary.stages:
        table.add_row(*_cells(stage))
    table.add_section()
    table.add_row(*_cells(summary.total))
    return table


def _cells(stage: Stage) -> list[str]:
    shape = "-" if stage.output_shape is None else "x".join(str(side) for side in stage.output_shape[1:])
    return [
        stage.name,
        f"{stage.parameters:,}",
        f"{stage.multiply_adds / 1e9:.3f}",
        f"{stage.multiply_adds_valid / 1e9:.3f}",
        f"{stage.activation_bytes / 2**20:.1f}",
        f"{stage.largest_pair_bytes / 2**20:.1f}",
        "-" if stage.receptive_field is None else str(stage.receptive_field).removesuffix(" image"),
        "-" if stage.output_stride is None else str(stage.output_stride),
        shape,
    ]
