"""The class names of published weights that the user gives as a file. Only a source that is known for certain has any:
the number of classes alone says nothing, because a network of somebody's own classes may have as many.
"""

import re
from pathlib import Path
from typing import Any

from deeplab_jax.files import sha256_of
from deeplab_jax.labels import CITYSCAPES, VOC, LabelSet
from deeplab_jax.weights.published import PUBLISHED

# Names that the authors' archives and the training scripts of others give: of the file, or of a folder around it.
NAMES: tuple[tuple[str, LabelSet], ...] = (
    (r"deeplabv3(_mnv2(_dm05)?|_xception)?_pascal_train(_aug|val)(_20\d\d_\d\d_\d\d)?", VOC),
    (r"deeplab(v3)?(_mnv2|_mnv3_\w+)?_cityscapes(_xception71)?_train\w*", CITYSCAPES),
    (r"best_deeplabv3(plus)?_\w+_voc_os\d+\.pth", VOC),
    (r"best_deeplabv3(plus)?_\w+_cityscapes_os\d+\.pth", CITYSCAPES),
)


def known_classes(path: Path, num_classes: int) -> dict[str, Any]:
    """Return `class_names` and `palette` of published weights; {} for a file or folder that is not known."""
    labels = _by_name(path) or (_by_content(path) if path.is_file() else None)
    if labels is None or labels.num_classes != num_classes:
        return {}
    return labels.info()


def _by_name(path: Path) -> LabelSet | None:
    for name in (path.name, path.absolute().parent.name):
        for pattern, labels in NAMES:
            if re.fullmatch(pattern, name):
                return labels
    return None


def _by_content(file: Path) -> LabelSet | None:
    digest = sha256_of(file)
    return next((one.labels for one in PUBLISHED.values() if one.sha256 and digest.startswith(one.sha256)), None)
