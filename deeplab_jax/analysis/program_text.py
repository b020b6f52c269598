"""The text of a compiled program (`compiled.as_text()`): what it holds, and what XLA for TPUs estimates of it.

XLA for TPUs writes its own estimate of the cycles behind each operation. Each operation also has a name, which holds
the path of the module that asked for it, and the lines of Python that led to it. So cycles have a layer and a kind.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
MOVES = frozenset({"copy", "copy-start", "copy-done", "transpose", "bitcast", "reshape", "parameter", "slice", "pad"})

_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(([^)]*)\)")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NUMBER = re.compile(r"^s32\[\]\S* constant\((\d+)\)")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its name in the program.
      type: of its result, such as `bf16[1,5,5,240]{3,0,2,1}`.
      opcode: such as `fusion`.
      operands: names of the instructions whose results it takes.
      line: the whole line behind the name.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    @property
    def op_name(self) -> str:
        """The path of functions and modules that asked for it; "" for none."""
        found = _NAME.search(self.line)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """XLA's estimate; 0 where it gives none."""
        found = _CYCLES.search(self.line)
        return int(found[1]) if found else 0

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs, except those of a loop."""
        branches = _BRANCHES.search(self.line)
        names = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
        return [*_CALLED.findall(self.line), *names]


@dataclass(frozen=True)
class ProgramText:
    """A compiled program, read from its text.

    Attributes:
      computations: the instructions of each computation, by name.
      entry: name of the computation that runs.
      files: the Python files that led to an operation, by the number of its stack frame.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    files: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def runs(self) -> tuple[tuple[Instruction, int], ...]:
        """Every instruction that is scheduled, and how often. A loop of unknown length counts once. Each branch
        of a condition counts.
        """
        return tuple(self._run(self.entry, 1))

    def _run(self, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for one in self.computations.get(name, ()):
            yield one, times
            if one.opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", one.line)
                yield from self._run(body[1] if body else "", times * (self.trips(one) or 1))
            elif one.opcode in ("call", "conditional"):
                for called in one.called:
                    yield from self._run(called, times)

    def trips(self, loop: Instruction) -> int | None:
        """Return how often a loop runs; None where the program does not say it."""
        if known := _TRIPS.search(loop.line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
        inside = self.computations.get(condition[1], ()) if condition else ()
        found = [number[1] for one in inside if (number := _NUMBER.match(one.line))]
        return int(found[0]) if len(found) == 1 else None

    def inside(self, one: Instruction) -> list[Instruction]:
        """Return an instruction, and those of the computations that it fuses or calls."""
        found = [one]
        if one.opcode == "fusion" or one.opcode.startswith("async"):
            for called in one.called:
                for inner in self.computations.get(called, ()):
                    found += self.inside(inner)
        return found

    def kind(self, one: Instruction) -> str:
        """Return the kind of work of an instruction; see `KINDS`."""
        parts = self.inside(one)
        opcodes = {part.opcode for part in parts}
        if any(opcode.startswith(COLLECTIVES) for opcode in opcodes):
            return "collectives"
        for part in parts:
            if part.opcode == "convolution":
                if self.comes_from(part, "ops/resize.py"):
                    return "resize"
                return "convolution gradients" if "transpose(jvp" in part.op_name else "convolutions"
        if one.op_name == "" and opcodes - {"fusion"} <= MOVES:
            return "copies"
        return next((kind for kind, belongs in KINDS.items() if belongs(self, one)), "other")

    def layer(self, one: Instruction) -> str:
        """Return the path of the module that asked for an instruction, such as `backbone/stem/conv`; else its kind."""
        named = [one, *(part for part in self.inside(one) if part.opcode == "convolution")]
        return next(filter(None, (module_path(part.op_name) for part in reversed(named))), "") or self.kind(one)

    def comes_from(self, one: Instruction, file: str) -> bool:
        """Whether the Python file whose path ends so led to an instruction."""
        return any(name.endswith(file) for name in self.files_of(one))

    def files_of(self, one: Instruction) -> frozenset[str]:
        """Return the Python files that led to an instruction."""
        frame = _FRAME.search(one.line)
        return self.files.get(frame[1], frozenset()) if frame else frozenset()


KINDS: Mapping[str, Callable[[ProgramText, Instruction], bool]] = {
    "copies": lambda text, one: one.opcode in ("copy", "copy-start", "copy-done", "transpose"),
    "batch norm": lambda text, one: "/norm/" in one.op_name or text.comes_from(one, "ops/batch_norm.py"),
    "resize": lambda text, one: text.comes_from(one, "ops/resize.py"),
    "preprocessing": lambda text, one: text.comes_from(one, "models/preprocessing.py"),
    "loss": lambda text, one: any("/ops/loss" in name for name in text.files_of(one)),
    "elementwise": lambda text, one: bool(module_path(one.op_name)),
    "update": lambda text, one: (
        text.comes_from(one, "train/step.py") or any("/optax/" in name for name in text.files_of(one))
    ),
}
"""What is no convolution and no collective: the first entry that fits names its kind. The rest is "other". The
update takes everything of a training step that no module and no loss asked for.
"""


def read_program(text: str) -> ProgramText:
    """Return the computations of a program's text."""
    computations: dict[str, list[Instruction]] = {}
    tables: dict[str, dict[str, str]] = {}
    current: list[Instruction] | None = None
    entry, table = "", ""
    for line in text.splitlines():
        if current is not None:
            if line.startswith("}"):
                current = None
            elif found := _INSTRUCTION.match(line):
                current.append(_instruction(found[1], found[2]))
        elif found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            tables.setdefault(table, {})[row[1]] = row[2]
    return ProgramText({name: tuple(lines) for name, lines in computations.items()}, entry, _files(tables))


def module_path(op_name: str) -> str:
    """Return the path of the module in an operation's name: `a/b` of `jit(f)/jvp(N.call)/N._part/a/b/jit(g)/add`."""
    words: list[str] = []
    *parts, _ = op_name.split("/") if "/" in op_name else ("",)
    network = False
    for part in parts:
        if re.match(r"(\w+\()*[A-Z]\w*\.\w+\)*$", part):  # A method of a module, such as `jvp(Segmenter.__call__)`.
            network, words = True, []
        elif "(" in part or part in ("while", "cond", "checkpoint", "body"):
            if words:
                break
        elif network:
            words.append(part)
    return "/".join(words)


def bytes_of(type_text: str) -> int:
    """Return the bytes of the arrays in the text of a type, without padding."""
    return sum(
        BYTES.get(kind, 0) * math.prod(int(side) for side in sides.split(",") if side)
        for kind, sides in _ARRAY.findall(type_text)
    )


def result_bytes(one: Instruction) -> int:
    """Return the bytes of a collective's result, without the operands that the type of an asynchronous one repeats."""
    repeats = one.opcode in ("all-gather-start", "collective-permute-start")
    return bytes_of(_elements(one.type)[1] if repeats else one.type)


def _elements(type_text: str) -> list[str]:
    """Return the elements of a tuple's type."""
    depth, found = 0, [""]
    for letter in type_text[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def _instruction(name: str, line: str) -> Instruction:
    end = line.index(" ") if not line.startswith("(") else _closing(line) + 1
    found = _OPCODE.match(line[end:])
    operands = re.findall(r"%([\w.\-]+)", found[2]) if found else []
    return Instruction(name, line[:end], found[1] if found else "", tuple(operands), line)


def _closing(line: str) -> int:
    depth = 0
    for index, letter in enumerate(line):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return index
    return len(line) - 1


def _files(tables: Mapping[str, Mapping[str, str]]) -> dict[str, frozenset[str]]:
    """Return the files of each stack frame and of those that called it."""
    names = {number: name.strip('"') for number, name in tables.get("FileNames", {}).items()}
    places = {
        number: names.get(_value(row, "file_name_id"), "") for number, row in tables.get("FileLocations", {}).items()
    }
    frames = tables.get("StackFrames", {})
    found: dict[str, frozenset[str]] = {}
    for number in frames:
        chain: list[str] = []
        while number in frames and number not in chain:
            chain.append(number)
            number = _value(frames[number], "parent_frame_id")
        found[chain[0]] = frozenset(places.get(_value(frames[one], "file_location_id"), "") for one in chain)
    return found


def _value(row: str, key: str) -> str:
    found = re.search(rf"{key}=(\d+)", row)
    return found[1] if found else ""
