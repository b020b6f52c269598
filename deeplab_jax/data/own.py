"""A user's own source, checked: it is code that nobody has tested, so a mistake in it is told in one line."""

from dataclasses import dataclass

import numpy as np

from deeplab_jax.data.source import OF_SOURCES, Example, Source
from deeplab_jax.errors import UserError
from deeplab_jax.extensions import own_errors
from deeplab_jax.labels import LabelSet


@dataclass(frozen=True)
class OwnSource:
    """A source of a user's own file, which checks what that source returns.

    Attributes:
      source: what the file's table `SOURCES` opened.
      called: its name in that table.
      split: the part of the data that it holds.
      module: path of the file.

    Raises:
      UserError: the source has no example, no labels, or no method `describe`.
    """

    source: Source
    called: str
    split: str
    module: str

    def __post_init__(self) -> None:
        where = f"{self.module}: SOURCES[{self.called!r}]"
        for needed in OF_SOURCES:
            if not hasattr(self.source, needed):
                raise UserError(f"{where}: it opens a {type(self.source).__name__} without {needed}; add it")
        if not isinstance(self.source.labels, LabelSet):
            raise UserError(f"{where}: labels is {self.source.labels!r:.60}; give a deeplab_jax.labels.LabelSet")
        if not len(self):
            raise UserError(f"{where}: split {self.split!r} has no example; check the split and config.data.dir")

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def labels(self) -> LabelSet:
        return self.source.labels

    def __len__(self) -> int:
        with own_errors(self.module):
            return len(self.source)

    def __getitem__(self, index: int) -> Example:
        with own_errors(self.module):
            example = self.source[index]
        several = (self.labels.num_classes,) if self.labels.multilabel else ()
        shape = "[H, W, number of classes]" if several else "[H, W]"
        try:
            image, label = example["image"], example["label"]
            fits = image.dtype in (np.uint8, np.float32) and image.ndim == 3 and image.shape[2] > 0
            fits = fits and label.dtype == np.uint8 and label.shape == (*image.shape[:2], *several)
            fits = fits and isinstance(example["name"], str)
            found = f"image {image.dtype} {image.shape}, label {label.dtype} {label.shape}"
        except (TypeError, KeyError, AttributeError) as error:
            fits, found = False, f"{type(error).__name__}: {error}"
        if not fits:
            raise UserError(
                f"{self.module}: example {index} of {self.called!r} ({found}); return a dictionary with image "
                f"(uint8 or float32 [H, W, C], 0 to 255), label (uint8 {shape}) and name (a string)"
            )
        return example

    def describe(self, index: int) -> tuple[str, str] | str:
        with own_errors(self.module):
            return self.source.describe(index)
