"""`make bench [ONLY=name]`: runs tests/bench/<name>.py and writes docs/benchmarks.md.

A bench is a file with a docstring (the first line is its title, the rest says what is shown) and a
function `cases()` that yields (key, measure) pairs: `measure()` returns one row of the table as a
dict of column to figure. A finished row is saved at once in rows/<name>.jsonl, and a second call
runs only the keys that this machine has not finished; delete the file to measure again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROWS = FOLDER / "rows"
PAGE = FOLDER.parent.parent / "docs" / "benchmarks.md"
LIBRARIES = ("tinyaudio-nas", "torch", "nncf", "onnxruntime", "optuna")

Row = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Row]]]


def main() -> int:
    known = sorted(path.stem for path in FOLDER.glob("*.py") if path != Path(__file__).resolve())
    names = sys.argv[1:] or known
    if unknown := set(names) - set(known):
        print(f"unknown bench {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    failures = sum(_run(name) for name in names)
    _write(PAGE, _page([name for name in known if (ROWS / f"{name}.jsonl").exists()]))
    return 1 if failures else 0


def _run(name: str) -> int:
    """Measures and saves the unfinished rows of one bench; returns how many of them failed."""
    failures, machine = 0, _machine()
    done = {row["key"] for row in _rows(name) if row["machine"] == machine}
    for key, measure in _load(name).cases():
        if key in done:
            continue
        print(f"{name}: {key} ...", file=sys.stderr, flush=True)
        started = perf_counter()
        try:
            figures = measure()
        except Exception:
            failures += 1
            traceback.print_exc()
            continue
        row = {"key": key, "figures": figures, "seconds": round(perf_counter() - started, 1)}
        _save(name, row | {"date": f"{date.today()}", "machine": machine, "versions": _versions()})
    return failures


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(name: str) -> list[Row]:
    path = ROWS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _save(name: str, row: Row) -> None:
    """Replaces the row of the same key; the file on disk is whole at any moment."""
    rows = [old for old in _rows(name) if old["key"] != row["key"]] + [row]
    _write(ROWS / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    model = models[0].split(":")[1].strip() if models else platform.machine()
    # int8 is slower on x86 CPUs without it; one name of a model stands for several of them.
    vnni = "" if "vnni" in info.read_text() else ", no VNNI"
    return f"{model}{vnni}, {os.cpu_count()} cores, {platform.system()}"


def _versions() -> str:
    libraries = (f"{name} {version(name)}" for name in LIBRARIES)
    return ", ".join([f"Python {platform.python_version()}", *libraries])


def _page(names: list[str]) -> str:
    head = (
        "# Benchmarks\n\nWritten by `make bench` from the rows it measured; not edited by hand.\n"
    )
    return "\n".join([head, *(_section(name) for name in names)])


def _section(name: str) -> str:
    title, _, text = (_load(name).__doc__ or name).strip().partition("\n")
    rows = _rows(name)
    columns = list(dict.fromkeys(column for row in rows for column in row["figures"]))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    marks = _marks(rows)
    for row in rows:
        figures = (_figure(row["figures"].get(column, "")) for column in columns)
        lines.append(f"| {row['key']}{marks[row['machine']]} | " + " | ".join(figures) + " |")
    return "\n".join([f"## {title}\n", f"{text.strip()}\n", *lines, "", _origin(name, rows)])


def _marks(rows: list[Row]) -> dict[str, str]:
    """What tells the machines of a table apart; nothing if all rows are of one."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    several = len(machines) > 1
    return {name: f" [{i}]" if several else "" for i, name in enumerate(machines, start=1)}


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _origin(name: str, rows: list[Row]) -> str:
    """When, where and with what the rows were measured, one line for each distinct answer."""
    days: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        days.setdefault((row["machine"], row["versions"]), []).append(row["date"])
    marks = _marks(rows)
    lines = [
        f"Measured {' to '.join(sorted({min(dates), max(dates)}))} on {machine}{marks[machine]}; "
        f"{versions}; "
        f"`make bench ONLY={name}`.\n"
        for (machine, versions), dates in days.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
