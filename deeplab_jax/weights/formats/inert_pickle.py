"""Pickles read as data: their opcodes are followed, but nothing is imported, called or looked up on a real object.

Python's own unpickler, however restricted, trusts the file's numbers: it allocates what memo indices and lengths
announce, and hashes tuples of any depth. Here the standard library's `pickletools` only splits the file into opcodes,
and this module keeps the stack. Every global is just its name. Calling one gives what a table of pure functions
returns for that name, and otherwise a placeholder that swallows arguments, state and items.
"""

import io
import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MAX_OPCODES = 2_000_000  # A checkpoint of a thousand tensors and their optimizer's state takes about 100,000.
LARGEST_KEY = 2**63


class PickleError(ValueError):
    """The pickle is damaged, or larger than any checkpoint's."""


class Global:
    """A class or function that the pickle names; it is not imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Placeholder:
    """Stands for an object of a class that is not known here; nothing is left of it but the name of the class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def loads(stream: io.BytesIO, *, functions: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> Any:
    """Read one pickle, up to its STOP; the stream is left behind it.

    Args:
      stream: in memory, so that no announced length is allocated.
      functions: what calling `module.name` with the pickle's arguments gives; they check these and have no effects.
        TypeError and ValueError are taken as damage.
      persistent: what a persistent id gives.

    Returns:
      None, bool, int, float, str, bytes, bytearray, list, tuple, dict, `Global`, `Placeholder`, and what the functions
      return, nested. Containers may contain themselves.

    Raises:
      PickleError: damage, or more than `MAX_OPCODES`.
    """
    machine = _Machine(functions, persistent)
    try:
        with warnings.catch_warnings(action="ignore"):  # Of unusual escapes in strings.
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count >= MAX_OPCODES:
                    raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")
                machine.step(opcode.name, argument)
        return machine.stack.pop()
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise PickleError(f"its pickle breaks at byte {stream.tell()}, {type(error).__name__}") from None


class _Machine:
    def __init__(self, functions: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> None:
        self.functions = functions
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # The stack beneath each mark.
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says; the most frequent ones come first."""
        stack = self.stack
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.put(argument)
            case "MEMOIZE":
                self.put(len(self.memo))
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE":
                stack.append(argument)
            case "BININT" | "BININT1" | "BININT2" | "INT" | "LONG" | "LONG1" | "LONG4" | "BINFLOAT" | "FLOAT":
                stack.append(argument)
            case (
                "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(name[-1]))))
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "LIST":
                items = self.pop_mark()
                self.stack.append(items)
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS" | "ADDITEMS":
                self.extend(self.pop_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self.pop_mark()
                self.stack.append({})
                self.set_items(items)
            case "SETITEM":
                self.set_items(self.pop(2))
            case "SETITEMS":
                self.set_items(self.pop_mark())
            case "EMPTY_SET":
                stack.append(Placeholder("builtins.set"))
            case "FROZENSET":
                self.pop_mark()
                self.stack.append(Placeholder("builtins.frozenset"))
            case "GLOBAL":
                stack.append(Global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, member = self.pop(2)
                stack.append(Global(f"{_text(module)}.{_text(member)}"))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Global("copyreg.extension"))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "PERSID":
                stack.append(self.persistent(argument))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self.pop(2)
                stack.append(self.call(function, arguments))
            case "NEWOBJ_EX":
                function, arguments, _ = self.pop(3)
                stack.append(self.call(function, arguments))
            case "OBJ":
                function, *items = self.pop_mark()
                self.stack.append(self.call(function, tuple(items)))
            case "INST":
                items = self.pop_mark()
                self.stack.append(self.call(Global(argument.replace(" ", ".", 1)), tuple(items)))
            case "BUILD" | "POP":  # A BUILD's state (attributes, a state dict's versions) is of no use here.
                self.pop(1)
            case "DUP":
                stack.append(stack[-1])
            case "POP_MARK":
                self.pop_mark()
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise PickleError(f"its pickle has the opcode {name}, which torch.save never writes")

    def pop(self, count: int) -> list[Any]:
        """Take the top items off the stack, in the order in which they were pushed."""
        if len(self.stack) < count:
            raise PickleError("its pickle takes more from the stack than is there")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def put(self, index: int) -> None:
        if not 0 <= index < MAX_OPCODES:
            raise PickleError("its pickle has a memo index out of range")
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise TypeError

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            keys = iter(items)
            target.update((key, value) for key, value in zip(keys, keys, strict=True) if is_key(key))
        elif not isinstance(target, Placeholder):
            raise TypeError

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a global of the table gives for the arguments, and a placeholder for everything else."""
        if type(arguments) is not tuple or not isinstance(function, Global | Placeholder):
            raise TypeError
        known = self.functions.get(function.name) if isinstance(function, Global) else None
        return known(*arguments) if known else Placeholder(function.name)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def is_key(value: Any) -> bool:
    """Say whether a key is kept: others, tuples of any depth and integers of one hash, may take for ever to hash."""
    if type(value) is int:
        return -LARGEST_KEY <= value < LARGEST_KEY
    return value is None or type(value) in (str, bytes, bool, float)
