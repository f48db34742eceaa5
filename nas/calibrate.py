"""A microcontroller's profile, refitted from the user's own measurements, with its known error."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError

from nas.errors import UserError
from nas.foreign import work_of_file
from nas.ledger import WIDTH, weight_widths
from nas.mcu import Work, latency_ms, model_bytes, peak_ram_bytes, work
from nas.published import architecture_named
from nas.target import Microcontroller, Spread, TargetProfile
from nas.trace import operations

NEEDED = ("architecture", "latency_ms")
OPTIONAL = ("ram_bytes", "flash_bytes", "classes")
FEWEST = 3  # two numbers are fitted


@dataclass(frozen=True)
class Measured:
    """One network on the device; None: not measured."""

    work: Work
    latency_ms: float
    ram_bytes: float | None = None
    flash_bytes: float | None = None


@dataclass(frozen=True)
class Calibrated:
    """The new profile, and the error of its times before (of the old profile) and after, each
    network left out of the fit in turn."""

    target: TargetProfile
    before: Spread
    after: Spread


def read_measurements(path: Path) -> list[Measured]:
    """The rows of a CSV file with the columns NEEDED and any of OPTIONAL. An architecture is a
    published name, a canonical string or the path of an int8 ONNX file, from the CSV's folder.

    Raises UserError naming the file, the row and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file: give a CSV file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a CSV file of measurements") from None
    reader = csv.DictReader(lines, skipinitialspace=True)
    _check_columns(path, [column.strip() for column in reader.fieldnames or []])
    rows = [_measured(path, row, f"{path}, row {place}") for place, row in enumerate(reader, 1)]
    if len(rows) < FEWEST:
        raise UserError(
            f"{path} has {len(rows)} row(s) of measurements, at least {FEWEST} are needed: "
            "measure more networks, some with many depthwise layers and some with few"
        )
    return rows


def _check_columns(path: Path, found: Sequence[str]) -> None:
    missing = [column for column in NEEDED if column not in found]
    unknown = [column for column in found if column not in NEEDED + OPTIONAL]
    if missing or unknown:
        raise UserError(
            f"{path} has the columns {', '.join(found) or 'none'}: needed are "
            f"{' and '.join(NEEDED)}, allowed {', '.join(OPTIONAL)}"
        )


def _measured(path: Path, row: dict[str, str], place: str) -> Measured:
    numbers = {
        key: _number(row[key], f"{place}: {key}")
        for key in ("latency_ms", "ram_bytes", "flash_bytes", "classes")
        if (row.get(key) or "").strip()
    }
    if "latency_ms" not in numbers:
        raise UserError(f"{place}: latency_ms is empty; give milliseconds")
    name = (row["architecture"] or "").strip()
    try:
        asked = _work(name, path.parent, int(numbers.get("classes", 0)))
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    ram, flash = numbers.get("ram_bytes"), numbers.get("flash_bytes")
    return Measured(asked, numbers["latency_ms"], ram, flash)


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < 1e12:
        raise UserError(f"{what} is '{text.strip()}', it must be a number above 0")
    return number


def _work(name: str, folder: Path, classes: int) -> Work:
    if name.endswith(".onnx"):
        asked, int8 = work_of_file(_model(folder / name), name)
    else:
        architecture, published_classes = architecture_named(name)
        found = operations(architecture, classes or published_classes or 10)
        quantization = architecture.quantization
        int8 = (quantization.scheme, quantization.keep_float) == ("int8", "none")
        widths, shape = weight_widths(found, quantization), architecture.front_end.shape
        asked = work(found, widths, shape, WIDTH[quantization.scheme])
    if not int8:
        raise UserError(f"'{name}' is not int8 throughout; the model of cycles is of int8 networks")
    return asked


def _model(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give an ONNX file") from None
    except DecodeError:
        raise UserError(f"{path} is not an ONNX file") from None


def calibrate(target: TargetProfile, rows: Sequence[Measured], origin: str) -> Calibrated:
    """The profile refitted to the measurements; `origin` becomes the source of what is new.

    Raises UserError for a target that is no microcontroller, and for networks too alike to tell
    dense from depthwise layers.
    """
    mcu = target.mcu
    if mcu is None:
        raise UserError(f"target '{target.name}' is no microcontroller: nothing to calibrate")
    new = _fitted_sizes(_fitted_cycles(mcu, rows), rows)
    after = left_out(mcu, rows)
    before = spread([(latency_ms(row.work, mcu), row.latency_ms) for row in rows])
    changed = [key for key in _FITTED if getattr(new, key) != getattr(mcu, key)]
    sources = mcu.sources | dict.fromkeys([*changed, "latency_error"], origin)
    new = msgspec.structs.replace(new, latency_error=after, sources=sources)
    return Calibrated(
        msgspec.structs.replace(target, mcu=new, source=f"{target.source}; refitted to {origin}"),
        before,
        after,
    )


_FITTED = (
    *("cycles_per_dense_mac", "cycles_per_depthwise_mac"),
    *("runtime_ram_bytes", "runtime_flash_bytes"),
)


def fit_cycles(dense: Sequence[int], depthwise: Sequence[int], cycles: Sequence[float]) -> Any:
    """Cycles per dense and per depthwise MAC with the least squares of relative errors: [2]."""
    weights = 1 / np.array(cycles)
    asked = np.array([dense, depthwise]).T * weights[:, None]
    return np.linalg.lstsq(asked, np.ones(len(weights)), rcond=None)[0]


def _fitted_cycles(mcu: Microcontroller, rows: Sequence[Measured]) -> Microcontroller:
    dense, depthwise = fit_cycles(
        [row.work.dense_macs for row in rows],
        [row.work.depthwise_macs for row in rows],
        [row.latency_ms * mcu.clock_mhz * 1e3 for row in rows],
    )
    if min(dense, depthwise) <= 0:
        raise UserError(
            f"the measurements give {dense:.3g} cycles per dense and {depthwise:.3g} per depthwise "
            "multiply-accumulate, both must be above 0: the networks are too alike, or a row is "
            "wrong; add networks with more and with fewer depthwise layers"
        )
    return msgspec.structs.replace(
        mcu,
        cycles_per_dense_mac=round(float(dense), 4),
        cycles_per_depthwise_mac=round(float(depthwise), 4),
    )


def left_out(mcu: Microcontroller, rows: Sequence[Measured]) -> Spread:
    """Error of the time of every network, predicted from the others."""
    pairs = []
    for place, row in enumerate(rows):
        others = [*rows[:place], *rows[place + 1 :]]
        pairs.append((latency_ms(row.work, _fitted_cycles(mcu, others)), row.latency_ms))
    return spread(pairs)


def spread(pairs: Sequence[tuple[float, float]]) -> Spread:
    """How far the first of each pair is from the second, which was measured."""
    errors = [100 * abs(estimated / measured - 1) for estimated, measured in pairs]
    mean, worst = sum(errors) / len(errors), max(errors)
    return Spread(round(mean, 2), round(worst, 2), len(errors))


def _fitted_sizes(mcu: Microcontroller, rows: Sequence[Measured]) -> Microcontroller:
    """What the runtime takes, as the median of what the model leaves unexplained; the error is
    that of the fit."""
    for measured, runtime, error, predicted in (
        ("ram_bytes", "runtime_ram_bytes", "ram_error", _ram_without_runtime),
        ("flash_bytes", "runtime_flash_bytes", "flash_error", model_bytes),
    ):
        pairs = [(predicted(r.work, mcu), m) for r in rows if (m := getattr(r, measured))]
        if pairs:
            rest = max(0, round(float(np.median([found - known for known, found in pairs]))))
            fit = spread([(known + rest, found) for known, found in pairs])
            mcu = msgspec.structs.replace(mcu, **{runtime: rest, error: fit})
    return mcu


def _ram_without_runtime(asked: Work, mcu: Microcontroller) -> int:
    return peak_ram_bytes(asked, mcu) - mcu.runtime_ram_bytes


def to_toml(target: TargetProfile, comment: str) -> str:
    """The profile as a TOML file that opens with `comment`."""
    return "\n".join([f"# {comment}", *_table(msgspec.to_builtins(target), "")]) + "\n"


def _table(values: dict[str, Any], path: str) -> Iterator[str]:
    """The lines of a table: its values, then the tables in it. TOML has no null."""
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    for key, value in values.items():
        if key not in inner and value is not None:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        if value:
            yield f"\n[{path}{key}]"
            yield from _table(value, f"{path}{key}.")
