"""A run of the benchmarks: its settings, and its file of results, which is written after every row."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from deeplab_jax.errors import UserError
from deeplab_jax.files import save_json
from experiments.benchmarks import machine
from experiments.benchmarks.timing import first_line
from experiments.outcomes.files import read_given

Result = dict[str, Any]
# PyTorch's threads wait for each other, so a busy processor slows it down more than XLA, and ratios are wrong.
BUSY = 0.25  # Share of each processor that other programs may use without a note.


class Session:
    """A run of the benchmarks, which measures rows and keeps their results.

    A row that the file already holds with the same settings is not measured again, unless it failed.

    Attributes:
      file: file of the results, JSON.
      repeats: rounds of each race.
      quick: tiny sizes and networks, to test that everything works.
      compiled_peers: whether PyTorch also runs by `torch.compile`, which takes a minute for each network.
      only: text in the names of the rows to measure; other rows stay as the file has them.
      failures: "part: row" of rows that failed in this session.

    Raises:
      UserError: the file cannot be read, or holds results of another machine, other versions or another `quick`.
    """

    def __init__(
        self,
        file: Path,
        *,
        repeats: int,
        quick: bool,
        again: bool = False,
        only: str = "",
        compiled_peers: bool = True,
    ) -> None:
        self.compiled_peers = compiled_peers and not quick
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

    def row(self, part: str, name: str, settings: Mapping[str, Any], measure: Callable[..., Result]) -> Result | None:
        """Return a row's result: the file's, or else measured and written now.

        Args:
          part, name: the part and the name of the row.
          settings: the keyword arguments of `measure`, JSON. The file also has the session's own settings.
          measure: returns the result, JSON. Where it raises, the session goes on, and a row without an older result
            gets the error.

        Returns:
          The result, or None where the measurement failed or `only` leaves out a row that the file lacks.
        """
        wanted = json.loads(json.dumps({**settings, "repeats": self.repeats}))
        old = self._content["parts"].get(part, {}).get(name)
        if self.only not in name:
            return old.get("result") if old else None
        if old and "result" in old and old["settings"] == wanted and not self._again:
            note = "" if old["code"] == self._code else ", with other code than today's (--again measures it again)"
            print(f"{part:10} {name}: kept from {old['date']}{note}", flush=True)
            return old["result"]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row: dict[str, Any] = {"settings": wanted, "date": now, "code": self._code}
        result: Result | None = None
        jax.clear_caches()  # It releases the programs of other rows and their memory.
        others = machine.Others()
        try:
            result = row["result"] = measure(**settings)
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

    def report_failures(self) -> int:
        """Print the rows that failed, and return the exit code for them."""
        for failure in self.failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if self.failures else 0

    def put(self, part: str, name: str, row: Mapping[str, Any]) -> None:
        """Write a finished row."""
        self._content["parts"].setdefault(part, {})[name] = dict(row)
        save_json(self.file, self._content)


def read_results(file: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
      UserError: the file is missing, or holds no results of benchmarks.
    """
    content = read_given(file, needs=("parts",), fix=", so it holds no results of benchmarks; give another --out")
    if content is None:
        raise UserError(f"{file}: it is not there; measure first, or give another --out")
    return content


def _numbers(result: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Yield every number and word of a result after its keys, without lists of samples."""
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}{key} ")
        elif isinstance(value, int | float):
            yield f"{name}{key} {value:.4g}"
        elif isinstance(value, str):
            yield f"{name}{key} {value}"


def _difference(old: Any, new: Any) -> str:
    """Return the differences in words, "" where there are none. A package that was installed since is no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [key for key in new if old.get(key, machine.NOT_INSTALLED) not in (new[key], machine.NOT_INSTALLED)]
        return "; ".join(f"{key} {old.get(key)}, here {new[key]}" for key in changed)
    return "" if old == new else f"{old}, here {new}"
