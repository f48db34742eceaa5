"""What a search is asked to do: a study's TOML file, overridden by flags or keyword arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from nas.errors import UserError
from nas.record import KB, Budget, Proxy
from nas.shipped import decode, read
from nas.target import TargetProfile

DEFAULT_TRIALS = 40
_NAME = r"\w[\w.-]*"
DEFAULT_BUDGET_KB = 64.0
LONGEST_SHORT_S = 1.5


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One search. None means the default: the target's limit, or no limit; no `space` that of
    `default_space`; `workers` of 0 one per core; without `trials` and `minutes` DEFAULT_TRIALS."""

    name: str = ""
    data: str = "synthetic-scenes"
    space: str = ""
    target: str = "host"
    remote: str | None = None
    budget_kb: float | None = None
    max_latency_ms: float | None = None
    max_ram_kb: float | None = None
    max_mmacs: float | None = None
    trials: int | None = None
    minutes: float | None = None
    workers: int = 0
    seed: int = 0
    storage: str | None = None
    artifacts: str | None = None
    from_study: str | None = None
    tolerate_bad_files: bool = False
    proxy: Proxy = Proxy()


def load_settings(study: str | None, overrides: dict[str, Any]) -> Settings:
    """The settings of a built-in study or TOML file, with the overrides that are not None.

    Raises UserError for unknown keys, wrong types and numbers that make no sense.
    """
    settings = Settings()
    if study:
        settings = decode(read("studies", study)[1], Settings, study)
        settings = _beside(settings, Path(study).parent)
    given = {key: value for key, value in overrides.items() if value is not None}
    unknown = set(given) - set(Settings.__struct_fields__)
    if unknown:
        raise UserError(f"unknown setting '{min(unknown)}': known are {_names()}")
    settings = msgspec.structs.replace(settings, **given)
    _check(settings)
    return settings


def _beside(settings: Settings, folder: Path) -> Settings:
    """Paths in a study file may be relative to the file."""
    found = {
        key: str(folder / getattr(settings, key))
        for key in ("data", "space", "target")
        if getattr(settings, key) and (folder / getattr(settings, key)).exists()
    }
    return msgspec.structs.replace(settings, **found)


def budget_of(settings: Settings, target: TargetProfile) -> Budget:
    """The tighter of the user's limits and the target's."""
    limits = target.limits
    asked_kb = settings.budget_kb
    if asked_kb is None and limits.size_bytes is None:
        asked_kb = DEFAULT_BUDGET_KB
    return Budget(
        size_bytes=_whole(_tighter(_times(asked_kb, KB), limits.size_bytes)) or 1,
        latency_ms=_tighter(settings.max_latency_ms, limits.latency_ms),
        ram_bytes=_whole(_tighter(_times(settings.max_ram_kb, KB), limits.ram_bytes)),
        macs=_whole(_tighter(_times(settings.max_mmacs, 1e6), limits.macs)),
        norm_macs=bool(target.rules and target.rules.norm_macs),
    )


def _times(limit: float | None, unit: float) -> float | None:
    return None if limit is None else limit * unit


def _tighter(asked: float | None, allowed: float | None) -> float | None:
    known = [limit for limit in (asked, allowed) if limit is not None]
    return min(known) if known else None


def _whole(limit: float | None) -> int | None:
    """At least 1: a limit of 0 would read as none."""
    return None if limit is None else max(1, round(limit))


def _names() -> str:
    return ", ".join(Settings.__struct_fields__)


def _check(settings: Settings) -> None:
    for key in ("budget_kb", "max_latency_ms", "max_ram_kb", "max_mmacs", "trials", "minutes"):
        value = getattr(settings, key)
        if value is not None:
            refuse_no_number(key, value)
    if settings.workers < 0:
        raise UserError(f"--workers is {settings.workers}; it must be 0 (one per core) or more")
    refuse_no_seed(settings.seed)
    if settings.name and not re.fullmatch(_NAME, settings.name):
        raise UserError(
            f"--name is '{settings.name}'; letters, digits, '-', '_' and '.' are allowed, "
            "the first of them a letter, a digit or '_'"
        )


def refuse_no_number(key: str, value: float) -> None:
    """Raises UserError, which names the flag of this `key`, unless `value` can be a limit."""
    if not 0 < value < 1e12:
        raise UserError(f"--{key.replace('_', '-')} is {value:g}; it must be above 0 and finite")


def refuse_no_seed(seed: int) -> None:
    """Raises UserError unless all libraries take `seed`."""
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed is {seed}; it must be 0 to {2**31 - 1}")


def default_space(clip_s: float) -> str:
    """The search space for clips of so many seconds."""
    return "short" if clip_s <= LONGEST_SHORT_S else "small"


def default_name(data: str, space: str) -> str:
    """A study's name from those of its data and its space, with what a name cannot hold as '-'."""
    return re.sub(r"[^\w.-]", "-", f"{data}-{space}").lstrip(".-") or "study"
