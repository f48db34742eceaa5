"""A candidate held against a target's limits and rules: what it is over, and the sheet of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nas.arch import Architecture
from nas.record import Cost, SizeKind, StudyInputs
from nas.target import TargetProfile

_SIZES: dict[SizeKind, str] = {
    "file_bytes": "bytes of the file",
    "parameter_bytes": "bytes of parameters",
    "flash_bytes": "bytes of flash",
}


class Check(msgspec.Struct, frozen=True):
    """One rule, the candidate's figure, and whether it passes; None: not known yet."""

    rule: str
    figure: str
    passed: bool | None


def over_limits(architecture: Architecture, cost: Cost, inputs: StudyInputs) -> dict[str, float]:
    """How far the candidate is over each limit that can be known before training, as a share of
    the limit; at most 0 it fits. What is not allowed, or must be known and is not, is 1 over."""
    target, budget = inputs.profile, inputs.budget
    over = {str(target.size_kind): getattr(cost, target.size_kind) / budget.size_bytes - 1}
    if budget.ram_bytes:
        over["ram_bytes"] = cost.ram_bytes / budget.ram_bytes - 1
    if budget.macs:
        over["macs"] = budget.macs_of(cost) / budget.macs - 1
    if budget.latency_ms and target.mcu:
        latency_ms = cost.latency_ms or 2 * budget.latency_ms
        over["latency_ms"] = latency_ms / budget.latency_ms - 1
    if target.mcu:  # the C of a bundle is that of int8 networks
        over["format"] = 0.0 if architecture.quantization.scheme == "int8" else 1.0
    elif target.rules and target.rules.formats:
        over["format"] = 0.0 if _format_allowed(architecture, target.rules.formats) else 1.0
    return over


def _format_allowed(architecture: Architecture, formats: Sequence[str]) -> bool:
    quantization = architecture.quantization
    return quantization.scheme in formats and (
        quantization.keep_float == "none" or "float32" in formats
    )


def sheet(
    architecture: Architecture, cost: Cost, target: TargetProfile, accuracy: float | None = None
) -> list[Check]:
    """Every limit and rule of the target; accuracies are shares."""
    limits, rules, found = target.limits, target.rules, list[Check]()
    if limits.size_bytes:
        size = getattr(cost, target.size_kind)
        found.append(_most("size", _SIZES[target.size_kind], limits.size_bytes, size))
    if limits.ram_bytes:
        found.append(_most("memory", "bytes of RAM", limits.ram_bytes, cost.ram_bytes))
    if limits.macs:
        norms = bool(rules and rules.norm_macs)
        macs = cost.macs + norms * cost.norm_macs
        found.append(_most("MACs", "MACs" + ", norms counted" * norms, limits.macs, macs))
    if limits.latency_ms:
        found.append(_most("time", "ms", limits.latency_ms, cost.latency_ms))
    if not rules:
        return found
    if rules.formats:
        passed = _format_allowed(architecture, rules.formats)
        allowed = " or ".join(rules.formats)
        found.append(Check(f"format: {allowed}", str(architecture.quantization), passed))
    if rules.clip_s:
        clip_s = architecture.front_end.clip_s
        found.append(Check(f"clip: {rules.clip_s:g} s", f"{clip_s:g} s", clip_s == rules.clip_s))
    if rules.accuracy:
        least = f"accuracy: at least {rules.accuracy:.1%}"
        figure = "not tested yet" if accuracy is None else f"{accuracy:.1%}"
        found.append(Check(least, figure, None if accuracy is None else accuracy >= rules.accuracy))
    return [_marked(check, rules.unverified) for check in found]


def _most(what: str, unit: str, limit: float, figure: float | None) -> Check:
    said = "not known" if figure is None else f"{figure:,}"
    passed = None if figure is None else figure <= limit
    return Check(f"{what}: at most {limit:,} {unit}", said, passed)


def _marked(check: Check, unverified: Sequence[str]) -> Check:
    if check.rule.split(":")[0] not in unverified:
        return check
    return msgspec.structs.replace(check, rule=f"{check.rule} (rule not verified)")


def in_lines(checks: Sequence[Check]) -> list[str]:
    """The sheet as lines of text; [] without a rule."""
    rows = [(_VERDICT[check.passed], check.rule, check.figure) for check in checks]
    return ["compliance:", *(f"  {v:4}  {rule}; found {f}" for v, rule, f in rows)] if rows else []


def in_rows(checks: Sequence[Check]) -> list[list[str]]:
    """The sheet as rows of a table: rule, figure, verdict."""
    return [[check.rule, check.figure, _VERDICT[check.passed]] for check in checks]


_VERDICT = {True: "pass", False: "fail", None: "open"}
