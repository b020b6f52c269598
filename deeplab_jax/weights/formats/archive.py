"""Weights in archives, `.tar.gz`: the checkpoints of TensorFlow's model zoo, and KerasHub's presets."""

import gzip
import re
import shutil
import tarfile
import zlib
from pathlib import Path

from deeplab_jax.errors import DamagedFile, UserError, in_one_line
from deeplab_jax.weights.formats.keras_weights import PRESET_FILE
from deeplab_jax.weights.formats.tf_checkpoint import CHECKPOINT_INDEX

WANTED = re.compile(
    r"[\w.-]*ckpt[\w.-]*\.(index|data-\d{5}-of-\d{5})|(model|task)\.weights\.h5|(config|task|image_converter)\.json",
    re.ASCII,
)
MOST_MEMBERS = 10_000
LARGEST = 4 * 2**30
"""Most bytes that an archive may unpack to; the largest one of the zoo has less than a GiB."""
PIECE = 2**20
"""Most bytes of one read: those of a file's name and other headers, which are read at once."""


class _InPieces(gzip.GzipFile):
    """A gzip file that refuses large reads. A header may claim any size, and its few bytes unpack to it."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= PIECE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def is_tar_gz(head: bytes) -> bool:
    """Return whether a file begins as a gzip file. Other compressed files are refused when they are opened."""
    return head[:2] == b"\x1f\x8b"


def unpack_weights(archive: Path, folder: Path) -> None:
    """Write the files of an archive's checkpoint or preset into a folder, and nothing else.

    Only regular files are written, under the last part of their names, so no name and no link leads out of the folder.

    Args:
      archive: a `.tar.gz` with one checkpoint or preset.
      folder: an existing folder.

    Raises:
      UserError: a damaged archive, one without weights or with two sets of them, or one of more than `LARGEST` bytes.
      OSError: the folder cannot be written.
    """
    found: set[str] = set()
    left = LARGEST
    too_large = UserError(f"{archive}: unpacks to more than {LARGEST} bytes; unpack it yourself")
    try:
        with _InPieces(archive) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as stream:
            for count, member in enumerate(stream):
                name = member.name.rpartition("/")[2]
                if count >= MOST_MEMBERS:
                    raise UserError(
                        f"{archive}: more than {MOST_MEMBERS} files; unpack it yourself, and give the folder"
                    )
                left -= member.size
                if left < 0:
                    raise too_large
                if not (member.isreg() and WANTED.fullmatch(name)):
                    continue
                if name in found:
                    raise UserError(f"{archive}: holds {name} twice; unpack it yourself, and give one of the folders")
                found.add(name)
                source = stream.extractfile(member)
                with (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)  # type: ignore[arg-type]
            while piece := unzipped.read(PIECE):  # To the end, where the checksum stands.
                left -= len(piece)
                if left < 0:
                    raise too_large
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise DamagedFile(f"{archive}: a damaged archive ({in_one_line(error)}); fetch it again") from None
    if not any(name == PRESET_FILE or name.endswith(CHECKPOINT_INDEX) for name in found):
        raise UserError(
            f"{archive}: an archive without a checkpoint (no *.ckpt*.index) or a preset (no model.weights.h5); give "
            "one of DeepLab's model zoo or of KerasHub"
        )
