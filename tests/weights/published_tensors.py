"""The exact names and shapes of the tensors in every published file, as `tests/peers/published_tensors.py` writes them
from the peers' own networks. Files whose networks are the same share one list.
"""

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("published_tensors.json.gz")
Shapes = dict[str, tuple[int, ...]]


def write_lists(shapes: Mapping[str, Shapes], file: Path = FILE) -> None:
    """Keep the lists of all entries, by the entry's name."""
    lists: list[Shapes] = []
    entries = {}
    for name, some in shapes.items():
        if some not in lists:
            lists.append(some)
        entries[name] = lists.index(some)
    text = json.dumps({"entries": entries, "lists": lists}, separators=(",", ":"))
    file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


@cache
def _content() -> tuple[dict[str, int], list[Shapes]]:
    content = json.loads(gzip.decompress(FILE.read_bytes()))
    return content["entries"], [{key: tuple(shape) for key, shape in one.items()} for one in content["lists"]]


def entries() -> dict[str, int]:
    """Return the number of each entry's list."""
    return _content()[0]


def shapes_of(name: str) -> Shapes:
    """Return an entry's list."""
    return _content()[1][_content()[0][name]]
