"""Pickles read as data: no name in them is imported, and only functions of an allow-list are called.

It is the standard library's unpickler in Python with other handlers for the opcodes that look objects up, call them,
set their attributes or hash them. The unpickler in C cannot be restricted like this: it takes the memory that a memo
index announces, hashes tuples of any depth, and sets attributes of any object on its stack.
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
# The errors of the unpickler on a damaged pickle.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError, struct.error)


class PickleError(ValueError):
    """The pickle is damaged, or larger than any checkpoint's."""


class Global:
    """A class or function that the pickle names; it is not imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Placeholder:
    """Replaces an object whose class is not on the list; only the name of the class remains."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def extend(self, items: list[Any]) -> None:
        """Ignore the state that the pickle would add to the object."""

    append = extend


def loads(stream: io.BytesIO, *, functions: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> Any:
    """Return the content of one pickle, read up to its STOP; the stream continues after it.

    It is made of None, bool, int, float, str, bytes, bytearray, list, tuple, dict, `Global`, `Placeholder`, and results
    of the functions. Containers may contain themselves.

    Args:
      stream: in memory, so that no announced length is allocated.
      functions: the allow-list: `module.name` -> the function that is called instead, with the pickle's arguments. It
        checks them and has no effects. TypeError and ValueError count as damage.
      persistent: returns the object for a persistent id.

    Raises:
      PickleError: damage, or more than `MAX_OPCODES`.
    """
    start = stream.tell()
    try:
        with warnings.catch_warnings(action="ignore"):  # They concern unusual escapes in strings.
            for count, _ in enumerate(pickletools.genops(stream)):  # Checks that every announced length is there.
                if count >= MAX_OPCODES:
                    raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")
            stream.seek(start)
            return _Unpickler(stream, functions, persistent).load()
    except PickleError:
        raise
    except (*DAMAGE, pickle.UnpicklingError) as error:
        raise PickleError(f"its pickle breaks at byte {stream.tell()}, {type(error).__name__}") from None


class _Unpickler(pickle._Unpickler):
    # Handlers of the standard library's class, which its type stubs lack.
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
        """Push the result of the list's function for the arguments, or a placeholder if there is no such function."""
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
        self.stack.pop()  # Attributes, or a state dict's versions: not needed here.

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
    for opcode in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):  # Buffers outside the pickle: torch.save writes none.
        del dispatch[opcode[0]]


def is_key(value: Any) -> bool:
    """Return whether a key is kept. Others may take for ever to hash: tuples of any depth and integers of one hash."""
    if type(value) is int:
        return -LARGEST_KEY <= value < LARGEST_KEY
    return value is None or type(value) in (str, bytes, bool, float)
