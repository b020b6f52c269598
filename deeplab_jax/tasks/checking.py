"""`check-data` for a program."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax.errors import UserError
from deeplab_jax.files import at_home
from deeplab_jax.tasks.arguments import config_of

if TYPE_CHECKING:
    from deeplab_jax.data.check.report import Report
    from deeplab_jax.data.source import Source


class Reports(dict[str, "Report"]):
    """The reports of a data set by split. As text they are what `check-data` prints.

    Attributes:
      lines: that text.
      page: the page of training images, if it was asked for.
      fault: why the requested page could not be made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.page: Path | None = None
        self.fault = ""

    @property
    def ok(self) -> bool:
        """Whether no split has an error; warnings do not count."""
        return all(report.ok for report in self.values())

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def check_data(
    config: Any,
    *,
    split: str = "",
    limit: int | None = None,
    show: str | Path = "",
    module: str = "",
    say: Callable[[str], Any] | None = None,
) -> Reports:
    """Return what is wrong with a data set, by split.

    Args:
      config, module: see `config_of`.
      split: to check; by default the training and the validation split.
      limit: number of images to check, evenly spread.
      show: folder for a page of training images as they are augmented; "" writes none.
      say: receives each line of the text as soon as it is known.

    Raises:
      UserError: a data set that cannot be opened.
    """
    from rich.console import Console

    from deeplab_jax.data.check.dataset import check_source
    from deeplab_jax.data.check.report import format_report
    from deeplab_jax.terminal import progress_bar
    from deeplab_jax.train.from_config import open_split
    from deeplab_jax.train.samples import show_samples

    config, reports = config_of(config, module=module), Reports()

    def add(line: str) -> None:
        reports.lines.append(line)
        if say is not None:
            say(line)

    splits = [split] if split else [config.data.train_split, config.data.val_split]
    opened: dict[str, Source] = {}
    for name in dict.fromkeys(splits):
        source = open_split(config, name, strict=False)
        if note := getattr(source, "note", ""):
            add(f"{name}: {note}")
        with progress_bar(Console(stderr=True)) as progress:
            reports[name] = check_source(
                source,
                limit=limit,
                progress=progress,
                others=opened,
                split=name,
                for_training=name == config.data.train_split,
            )
        opened[name] = source
        add(f"{name}: {format_report(reports[name])}\n")
    if show:
        try:
            reports.page = show_samples(config, open_split(config, config.data.train_split), at_home(show))
            add(f"training images after augmentation: open {reports.page}")
        except UserError as error:  # Such as a fault of the data, which the reports say.
            reports.fault = f"no page of training images: {error}"
    return reports
