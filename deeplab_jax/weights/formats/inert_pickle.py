"""Pickles read as data: nothing that they name is imported, and nothing is called but what an allow-list holds.

It is the standard library's unpickler in Python with other handlers for the opcodes that look objects up, call them,
set their attributes or hash them. The one in C cannot be restricted so: it takes the memory that a memo index
announces, hashes tuples of any depth, and sets attributes of whatever stands on its stack.
"""

import io
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

MAX_OPCODES = 2_000_000  # A checkpoint of a thousand tensors and their optimizer's state takes about 100,000.
LARGEST_KEY = 2**63
# What a damaged pickle makes the unpickler raise.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError, struct.error)


class PickleError(ValueError):
    """The pickle is damaged, or larger than any checkpoint's."""


class Global:
    """A class or function that the pickle names; it is not imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Placeholder:
    """Stands for an object of a class that is not on the list; nothing is left of it but the name of the class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def extend(self, items: list[Any]) -> None:
        """Drop what the pickle would add to the object."""

    append = extend


def loads(stream: io.BytesIO, *, functions: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> Any:
    """Return what one pickle holds, read up to its STOP; the stream is left behind it.

    That is None, bool, int, float, str, bytes, bytearray, list, tuple, dict, `Global`, `Placeholder`, and what the
    functions return, nested. Containers may contain themselves.

    Args:
      stream: in memory, so that no announced length is allocated.
      functions: the allow-list: `module.name` -> what is called in its place with the pickle's arguments, which it
        checks; it has no effects. TypeError and ValueError are taken as damage.
      persistent: what a persistent id gives.

    Raises:
      PickleError: damage, or more than `MAX_OPCODES`.
    """
    start = stream.tell()
    try:
        with warnings.catch_warnings(action="ignore"):  # Of unusual escapes in strings.
            for count, _ in enumerate(pickletools.genops(stream)):  # Every announced length is there.
                if count >= MAX_OPCODES:
                    raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")
            stream.seek(start)
            return _Unpickler(stream, functions, persistent).load()
    except PickleError:
        raise
    except (*DAMAGE, pickle.UnpicklingError) as error:
        raise PickleError(f"its pickle breaks at byte {stream.tell()}, {type(error).__name__}") from None


class _Unpickler(pickle._Unpickler):
    # Of the standard library's class, whose type stubs lack them.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(
        self, stream: io.BytesIO, functions: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
    ) -> None:
        super().__init__(stream, encoding="latin-1")
        self.functions = functions
        self.persistent = persistent

    def persistent_load(self, pid: Any) -> Any:
        return self.persistent(pid)

    def find_class(self, module: str, name: str) -> Any:
        return Global(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(Global("copyreg.extension"))

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.call(klass, tuple(args))

    def call(self, function: Any, arguments: Any) -> None:
        """Push what the list's function gives for the arguments, or a placeholder where it has none."""
        if type(arguments) is not tuple or not isinstance(function, Global | Placeholder):
            raise TypeError
        known = self.functions.get(function.name) if isinstance(function, Global) else None
        self.append(known(*arguments) if known else Placeholder(function.name))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            keys = iter(items)
            target.update((key, value) for key, value in zip(keys, keys, strict=True) if is_key(key))
        elif not isinstance(target, Placeholder):
            raise TypeError

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def load_call_with_keywords(self) -> None:
        self.stack.pop()
        self.load_call()

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def load_set(self) -> None:
        self.append(Placeholder("builtins.set"))

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Placeholder("builtins.frozenset"))

    def load_state(self) -> None:
        self.stack.pop()  # Attributes, or a state dict's versions: of no use here.

    def load_frame(self) -> None:
        self.read(8)  # A length, for readers of streams.

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.NEWOBJ_EX[0]: load_call_with_keywords,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: load_set,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.ADDITEMS[0]: pickle._Unpickler.dispatch[pickle.APPENDS[0]],
        pickle.BUILD[0]: load_state,
        pickle.FRAME[0]: load_frame,
    }
    for opcode in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):  # Buffers beside the pickle: torch.save writes none.
        del dispatch[opcode[0]]


def is_key(value: Any) -> bool:
    """Return whether a key is kept: others, tuples of any depth and integers of one hash, may take for ever to hash."""
    if type(value) is int:
        return -LARGEST_KEY <= value < LARGEST_KEY
    return value is None or type(value) in (str, bytes, bool, float)
