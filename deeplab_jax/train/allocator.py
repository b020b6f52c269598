"""How a training process keeps memory on a CPU."""

import ctypes
import os

# The names in glibc's malloc.h, and what they get: memory comes from the heap alone, which never shrinks, and all
# threads share it.
KEEP_ALL = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> None:
    """Let the process keep the memory that a step frees, for the next step.

    XLA asks for all temporaries of a program in one piece. By default glibc takes it from the system and gives it back
    on every call, and a training step on a CPU can spend nearly half of its time on that. From here on the process
    stays at its largest size until it ends.

    A program that trains calls it before JAX starts its threads. It does nothing with another C library, and where the
    user has set `GLIBC_TUNABLES`.
    """
    if "GLIBC_TUNABLES" in os.environ:
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        for name, value in KEEP_ALL.values():
            set_option(name, value)
