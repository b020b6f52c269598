"""The command line: dispatch, exit codes and one-line errors. `flags` has the parser."""

import argparse
import errno
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise, takewhile
from typing import Any, NoReturn

import jax

from deeplab_jax.commands import INTERRUPTED, PREEMPTED, USER_ERROR, fail
from deeplab_jax.config import split_config_arguments
from deeplab_jax.config_keys import keys_called
from deeplab_jax.distributed import run_as_one
from deeplab_jax.errors import ToldElsewhere, UserError, did_you_mean, end_process
from deeplab_jax.evaluate.memory import is_out_of_memory
from deeplab_jax.extensions import allow
from deeplab_jax.files import DISK_ERRORS, cache_folder, with_home
from deeplab_jax.flags import make_parser
from deeplab_jax.train.signals import end_on_sigterm

# Errors of the system that the user can fix, and how.
OS_FIXES = {
    **dict.fromkeys(DISK_ERRORS, "free space or choose another folder, then start again"),
    errno.EACCES: "allow access to it, or choose another folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 on success, 2 with one line on stderr for a fault that the user can fix,
    130 after Ctrl-C, 75 if SIGTERM stopped a training run.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # Names of files and classes may hold characters of no encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = [with_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    parser = make_parser()
    if misspelt := unknown_flag(parser.verbs, arguments):
        return fail(misspelt)
    args, rest = parser.parse_known_args(arguments)
    # `--config file`, `--config=file` and every `--config.key=value` go to the config's own parser.
    config_args, unknown = split_config_arguments(rest)
    if unknown:
        return fail(f"{args.verb}: {unknown[0]!r}: no option takes it; leave it out, or write its option before it")
    args.config = config_args
    if argv is None and args.verb == "train":  # Set now: imports and the wait for other processes take long.
        end_on_sigterm(PREEMPTED)
    try:
        return run_as_one(args.distributed, partial(run_verb, args))
    except UserError as error:
        return fail(str(error))


def unknown_flag(verbs: Mapping[str, argparse.ArgumentParser], words: Sequence[str]) -> str:
    """Return what is wrong with the first flag that the verb does not have, "" where it has all of them.

    argparse would first name the flags that are missing, and a misspelt flag is often one of these.
    """
    verb, *others = words or [""]
    if verb not in verbs:
        return ""
    takes_config = verbs[verb].get_default("takes_config")
    flags = [option for action in verbs[verb]._actions for option in action.option_strings]
    for word, after in pairwise([*takewhile(lambda word: word != "--", others), ""]):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag not in flags and not (takes_config and flag.split(".")[0] == "--config"):
            known = [*flags, "--config"] if takes_config else flags
            if takes_config and (keys := keys_called(flag)):
                value = value if equals or after.startswith("-") else after
                meant = [shlex.quote(f"--config.{key}={value}") for key in keys]
                return f"{verb}: {flag} is not an option of this verb: did you mean {', '.join(meant)}?"
            return f"{verb}: {flag} is not an option of this verb: {did_you_mean(flag, known)}"
    return ""


def run_verb(args: argparse.Namespace) -> int:
    """Run the verb and return the exit code."""
    try:
        enable_compilation_cache()
        allow(args.module)
        return args.run(args) or 0
    except ToldElsewhere:
        return USER_ERROR
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        less = "give it smaller images, batches or windows"
        if args.verb in ("train", "find-lr"):
            less = "lower config.train.batch_size or config.data.crop_size, or set config.train.remat=True"
        first_line = str(error).partition("\n")[0]
        return fail(f"{args.verb}: out of memory ({first_line or 'no more'}); {less}")
    except OSError as error:
        if error.errno not in OS_FIXES:
            raise
        return fail(f"{error.filename or 'a file'!s:.200}: {error.strerror}; {OS_FIXES[error.errno]}")


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the environment names a folder or turns that off."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder("xla")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Without a writable home folder, only compile time is lost.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class Pipe(io.FileIO):
    """Standard output, whose reader may end early, such as `head`. What is printed then goes nowhere, and the work
    continues.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def command() -> NoReturn:
    """Run the verb as a separate process."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and not out.isatty():
        pipe = io.BufferedWriter(Pipe(out.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(pipe, encoding=out.encoding, line_buffering=out.line_buffering)
    end_process(main())
