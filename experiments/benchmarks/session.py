"""One invocation: its settings, and the file of results, which is written after every row."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from experiments.benchmarks import machine
from experiments.benchmarks.timing import first_line
from experiments.output import write_json

Result = dict[str, Any]
# PyTorch's threads wait for each other, so a busy processor slows it down more than XLA, and no ratio is right.
BUSY = 0.25  # Share of each processor that others use.


class Session:
    """What the parts measure with.

    A row that the file already holds is not measured again where it was made with the same settings and did not fail.

    Attributes:
      file: of the results, JSON.
      repeats: rounds of each race.
      quick: tiny sizes and networks, to see that everything works.
      only: part of the names of the rows to measure; others stay as the file has them.
      failures: "part: row" of rows that failed in this session.

    Raises:
      UserError: a file that cannot be read, or that holds results of another machine, other versions or another size.
    """

    def __init__(self, file: Path, *, repeats: int, quick: bool, again: bool = False, only: str = "") -> None:
        self.file, self.repeats, self.quick, self.only, self._again = file, repeats, quick, only, again
        self.failures: list[str] = []
        self.platform = machine.platform()
        self._code = machine.code_fingerprint()
        here = {"machine": machine.describe_machine(), "versions": machine.versions(), "quick": quick}
        self._content: dict[str, Any] = read_results(file) if file.exists() else {**here, "parts": {}}
        for name, value in here.items():
            difference = _difference(self._content.get(name), value)
            if difference:
                raise UserError(
                    f"{file} holds results of another {name}: {difference}; give another --out, or remove the file"
                )
        self._content.update(here)  # A peer may have been installed since.
        if (load := machine.load()) > BUSY * machine.cores():
            print(f"note: the machine is busy (load {load}); times and ratios mean little", flush=True)

    def row(
        self,
        part: str,
        name: str,
        settings: Mapping[str, Any],
        measure: Callable[[], Result],
    ) -> Result | None:
        """Return a row's result: the file's, or else measured and written now.

        Args:
          part, name: of the row.
          settings: JSON; what would make it another measurement. The session's own are added.
          measure: makes the result, JSON. What it raises becomes the row's error, where it has no older result, and the
            session goes on.

        Returns:
          The result, or None where it failed or is not there.
        """
        wanted = json.loads(json.dumps({**settings, "repeats": self.repeats}))
        old = self._content["parts"].get(part, {}).get(name)
        if self.only not in name:
            return old.get("result") if old else None
        if old and "result" in old and old["settings"] == wanted and not self._again:
            note = "" if old["code"] == self._code else ", with other code than today's (--again measures it again)"
            print(f"{part:10} {name}: kept from {old['date']}{note}", flush=True)
            return old["result"]
        row: dict[str, Any] = {"settings": wanted, "date": _now(), "code": self._code}
        result: Result | None = None
        jax.clear_caches()  # The programs of other rows, and what they hold.
        others = machine.Others()
        try:
            result = row["result"] = measure()
            text = ", ".join(_numbers(result))
        except Exception as error:
            row["error"] = text = first_line(error)
            text = f"FAILED, {text}"
            self.failures.append(f"{part}: {name}")
        row["others"] = others.processors()
        if "error" in row and old and "result" in old:
            print(f"{part:10} {name}: {text}; the result from {old['date']} stays", flush=True)
            return None
        print(f"{part:10} {name}: {text}", flush=True)
        self.put(part, name, row)
        return result

    def put(self, part: str, name: str, row: Mapping[str, Any]) -> None:
        """Write a row that follows from others, or is finished."""
        self._content["parts"].setdefault(part, {})[name] = dict(row)
        write_json(self.file, self._content)


def read_results(file: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
      UserError: there is none, or it holds something else.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as results ({error}); measure first, or give another --out") from None
    if not isinstance(content, dict) or "parts" not in content:
        raise UserError(f"{file}: holds no results of benchmarks; give another --out")
    return content


def _numbers(result: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Yield every number and word of a result behind its keys, but no lists of samples."""
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}{key} ")
        elif isinstance(value, int | float):
            yield f"{name}{key} {value:.4g}"
        elif isinstance(value, str):
            yield f"{name}{key} {value}"


def _difference(old: Any, new: Any) -> str:
    """Say what differs, "" where nothing does; a package that was not there makes no row wrong."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [key for key in new if old.get(key, machine.NOT_INSTALLED) not in (new[key], machine.NOT_INSTALLED)]
        return "; ".join(f"{key} {old.get(key)}, here {new[key]}" for key in changed)
    return "" if old == new else f"{old}, here {new}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
