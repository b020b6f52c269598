"""Look the pinned packages up among known vulnerabilities, with pip-audit.

    python .ci/vulnerabilities.py PIP_AUDIT requirements.txt

Returns 1 where a package has one, and 2 where the database could not be asked about every package, or about any:
pip-audit by itself calls it a success when it has found none of them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Ask, and say what was found."""
    program, requirements = argv
    flags = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    result = subprocess.run(
        [program, *flags, "--requirement", requirements], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        reason = (result.stderr.strip().splitlines() or ["no answer"])[-1]
        return unreachable(f"the database of vulnerabilities cannot be reached ({reason[:200]})")
    if not packages:
        return unreachable(f"pip-audit found no package in {requirements}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    for line in found:
        print(line, file=sys.stderr)
    if found:
        return 1
    if skipped:
        names = ", ".join(skipped[:3])
        return unreachable(
            f"the database cannot be reached for {len(skipped)} of {len(packages)} packages ({names}, ...)"
        )
    print(f"{len(packages)} packages, no known vulnerability")
    return 0


def unreachable(line: str) -> int:
    """Say that nothing is known."""
    print(f"audit: {line}; try again where PyPI can be reached", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
