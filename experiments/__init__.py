"""Experiments on top of the package: they call its command line and read what it writes."""
