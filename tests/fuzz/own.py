"""A program as a process of its own that knows the networks of `tests.support.tiny`."""

import importlib
import sys

from tests.fuzz.worker import tiny_networks

if __name__ == "__main__":
    module = sys.argv.pop(1)
    with tiny_networks():
        sys.exit(importlib.import_module(module).main())
