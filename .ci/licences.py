"""List the licences of the pinned packages that are installed, and fail on one that is not on the list.

    python .ci/licences.py requirements.txt

It reads what packages declare of themselves; what a wheel bundles (OpenCV's brings FFmpeg, LGPL) it does not see.
"""

import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ALLOWED = {
    "0BSD", "AFL-2.1", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib",
}  # fmt: skip
# How packages without an SPDX expression spell them.
SPELLINGS = {
    r"Apache( Software)?( License)?(,? *(Version )?2(\.0)?)?": "Apache-2.0",
    r"(BSD )?3-Clause BSD( License)?|BSD 3-Clause( License)?": "BSD-3-Clause",
    r"BSD( License)?": "BSD",
    r"FreeBSD": "BSD-2-Clause",
    r"MIT License": "MIT",
    r"Mozilla Public License 2\.0 \(MPL 2\.0\)": "MPL-2.0",
    r"Python Software Foundation License": "PSF-2.0",
    r"ISC License \(ISCL\)": "ISC",
}


def main(argv: Sequence[str]) -> int:
    """Print the table, and return 1 where a licence is not allowed."""
    refused = []
    for name in pinned(Path(argv[0]).read_text(encoding="utf-8")):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            print(f"{name:26} {'-':14} not installed here")
            continue
        licence = declared(found.metadata)
        print(f"{name:26} {found.version:14} {licence}")
        if not is_allowed(licence):
            refused.append(f"{name}: {licence}")
    if refused:
        print(f"licences that are not on the list of {Path(__file__).name}: {'; '.join(refused)}", file=sys.stderr)
    return 1 if refused else 0


def pinned(requirements: str) -> list[str]:
    """Return the names of the packages that a lock pins, each once."""
    return list(dict.fromkeys(re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE)))


def declared(about: metadata.PackageMetadata) -> str:
    """Return what a package says of its licence: its SPDX expression, else its classifiers, else its free text."""
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or () if "License ::" in text]
    known = [normal(text) for text in classifiers if normal(text) in ALLOWED]
    text = str(about.get("License") or "").strip().split("\n")[0]
    return normal(text) if normal(text) in ALLOWED or not known else " AND ".join(known)


def normal(text: str) -> str:
    """Return the SPDX name that a spelling means, or the spelling."""
    return next((name for spelling, name in SPELLINGS.items() if re.fullmatch(spelling, text.strip())), text.strip())


def is_allowed(expression: str) -> bool:
    """Whether all parts joined by AND are allowed, of those joined by OR one. Exceptions (WITH) are not known."""
    if "(" in expression:
        return False
    return all(any(name.strip() in ALLOWED for name in part.split(" OR ")) for part in expression.split(" AND "))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
