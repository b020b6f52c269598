"""Experiments on top of the package: they call its command line and read the files that it writes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the repository
