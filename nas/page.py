"""What the report page says about a study, as plain data that its script lays out."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas.arch import parse
from nas.estimates import in_words
from nas.figure import SIZE_TITLES, short
from nas.pareto import (
    answer,
    best_within,
    front,
    front_rows,
    hypervolume,
    known_latency_ms,
    limits_text,
    percent,
    recommended,
    score_of,
    smallest_in_interval,
    within,
)
from nas.record import KB, Budget, Layer, SizeKind, StudyRecord, TrialResult, size_bytes

MARGINS_KB = (8, 16, 32, 64, 128, 256)
# A confusion matrix of 50 classes takes 6 KB: above this, only the front keeps its details.
DETAILED_TRIALS = 1000


@dataclass(frozen=True)
class Extras:
    """What the caller may know about a study beyond its record, all by trial number or name.

    `importance` is {"accuracy" | "size": {choice: share of the variance}}; `layers` the layer
    tables; `test` the accuracies on the test split, with their intervals' ends, of the trials that
    were exported.
    """

    importance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    layers: Mapping[int, Sequence[Layer]] = field(default_factory=dict)
    test: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    battery_mwh: float = 0.0


def study_facts(record: StudyRecord, extras: Extras, common: Budget) -> dict[str, Any]:
    """All that the page says about one study; trials are named by their index in the record.

    `common` is the budget up to which hypervolumes are taken, the same for compared studies.
    """
    inputs, trials = record.inputs, record.trials
    index = {r.trial: i for i, r in enumerate(trials)}
    fit = within(trials, inputs.size_kind, inputs.budget)
    points = front(fit, inputs.size_kind, inputs.budget)
    track = _hypervolume_track(record, common)
    detailed = trials if len(trials) <= DETAILED_TRIALS else points
    return {
        "name": record.name,
        "answer": answer(trials, inputs),
        "note": inputs.data_note,
        "facts": _facts(record)
        | {"Hypervolume": f"{track[-1][1]:.3f}"}
        | _on_the_device(record, points, extras.battery_mwh),
        "caveat": _caveat(points, extras),
        "classes": inputs.classes,
        "export": f"nas export {shlex.quote(record.name)} --trial ",
        "size": SIZE_TITLES[inputs.size_kind],
        "front": [index[r.trial] for r in points],
        "ship": index[recommended(points).trial] if points else None,
        "margins": [[kb, r and index[r.trial]] for kb, r in _margins(record, fit)],
        "smallest": index[smallest_in_interval(points).trial] if points else None,
        "columns": _columns(record),
        "states": Counter(r.state for r in trials),
        "reasons": _reasons(trials),
        "hypervolume": track,
        "importance": extras.importance,
        "parallel": _parallel(points, inputs.size_kind),
        "details": {index[r.trial]: _details(r, extras) for r in detailed},
    }


def _facts(record: StudyRecord) -> dict[str, str]:
    inputs = record.inputs
    hours = sum(r.seconds for r in record.trials) / 3600
    spent = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return {
        "Data": f"{inputs.data}, {len(inputs.classes)} classes",
        "Target": inputs.target,
        "Budget": f"{limits_text(inputs.budget)} ({inputs.size_kind})",
        "Search space": inputs.space_name,
        "Trials": f"{len(record.trials):,} in {spent} of computing",
    }


def _on_the_device(
    record: StudyRecord, points: Sequence[TrialResult], battery_mwh: float
) -> dict[str, str]:
    """The estimates of the network to ship for a microcontroller, with their errors."""
    if not points or not (cost := recommended(points).cost):
        return {}
    clip_s = parse(recommended(points).architecture).front_end.clip_s
    _, *said = in_words(cost, record.inputs.profile, clip_s, battery_mwh) or [""]
    title = f"Trial {recommended(points).trial} there, estimated"
    return {title: "; ".join(line.strip() for line in said)} if said else {}


def _caveat(points: Sequence[TrialResult], extras: Extras) -> str:
    """How far the front's best accuracy may flatter, and what the test split said, if asked."""
    if not points:
        return ""
    best = score_of(points[-1])
    half = 50 * (best.accuracy_high - best.accuracy_low)
    tested = [
        f"On the test split trial {trial} scored {percent(accuracy)} % "
        f"({percent(low)}-{percent(high)})."
        for trial, (accuracy, low, high) in extras.test.items()
    ]
    return " ".join(
        [
            "Accuracies are validation scores of the exported files, with 95 % intervals over "
            f"recordings. The best, {percent(best.accuracy)} %, was picked as the highest of many "
            f"noisy scores (about ±{half:.1f} points), so it reads high.",
            *(tested or ["The test split is read once, by nas export."]),
        ]
    )


def _margins(
    record: StudyRecord, fit: Sequence[TrialResult]
) -> list[tuple[float, TrialResult | None]]:
    """The most accurate network for each of MARGINS_KB up to the budget, and for the budget."""
    budget_kb = record.inputs.budget.size_bytes / KB
    sizes = [float(kb) for kb in MARGINS_KB if kb < budget_kb]
    return [(kb, best_within(fit, record.inputs.size_kind, kb)) for kb in [*sizes, budget_kb]]


def _columns(record: StudyRecord) -> dict[str, list[Any]]:
    rows = front_rows(record, all_trials=True)
    dropped = {"artifact", "size_kind", "quantization"}
    columns = {k: [r[k] for r in rows] for k in (rows[0] if rows else {}) if k not in dropped}
    for values in columns.values():
        values[:] = [float(f"{v:.6g}") if isinstance(v, float) else v for v in values]
    columns["lowest"] = [_lowest(r.score.class_accuracy) if r.score else [] for r in record.trials]
    return columns


def _lowest(accuracy: Mapping[str, float]) -> list[tuple[str, float]]:
    """The three names that score lowest."""
    return [(k, short(v)) for k, v in sorted(accuracy.items(), key=lambda item: item[1])[:3]]


def _reasons(trials: Sequence[TrialResult]) -> list[tuple[str, int, str]]:
    """(state, trials, an example) of every reason; reasons differing in numbers count as one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for r in trials:
        if r.reason:
            groups.setdefault((r.state, re.sub(r"\d[\d.,]*", "#", r.reason)), []).append(r.reason)
    rows = [(state, len(texts), texts[0]) for (state, _), texts in groups.items()]
    return sorted(rows, key=lambda row: -row[1])


def _hypervolume_track(record: StudyRecord, budget: Budget) -> list[tuple[float, float, int]]:
    """(hours of computing, hypervolume, trials so far) after every trial that changed the front."""
    kind = record.inputs.size_kind
    fits = {r.trial for r in within(record.trials, kind, record.inputs.budget)}
    points: list[tuple[int, float]] = []
    track: list[tuple[float, float, int]] = [(0.0, 0.0, 0)]
    hours = 0.0
    for count, result in enumerate(sorted(record.trials, key=lambda r: r.finished_at), start=1):
        hours += result.seconds / 3600
        if result.trial in fits:
            new = size_bytes(result, kind), score_of(result).accuracy
            if not any(size <= new[0] and accuracy >= new[1] for size, accuracy in points):
                points = [p for p in points if p[0] < new[0] or p[1] > new[1]] + [new]
                track.append((short(hours), short(hypervolume(points, budget)), count))
    return [*track, (short(hours), track[-1][1], len(record.trials))]


def _parallel(points: Sequence[TrialResult], kind: SizeKind) -> list[tuple[str, list[Any]]]:
    """The axes of the parallel coordinates: outcomes of the front's networks, then choices."""
    built = [parse(r.architecture) for r in points]
    return [
        ("Accuracy, %", [short(100 * score_of(r).accuracy) for r in points]),
        ("KB", [short(size_bytes(r, kind) / KB) for r in points]),
        ("ms", [known_latency_ms(r) for r in points]),
        ("MMACs", [short(r.cost.macs / 1e6) if r.cost else None for r in points]),
        ("RAM, KB", [short(r.cost.peak_ram_bytes / KB) if r.cost else None for r in points]),
        ("Format", [a.quantization.scheme for a in built]),
        ("Blocks", ["+".join(dict.fromkeys(s.kind for s in a.stages[1:])) for a in built]),
        ("Depth", [sum(s.repeats for s in a.stages) for a in built]),
        ("Width", [max(s.channels for s in a.stages) for a in built]),
        ("Mel bands", [a.front_end.mels for a in built]),
        ("Frames", [a.front_end.frames for a in built]),
    ]


def _details(result: TrialResult, extras: Extras) -> dict[str, Any]:
    score = result.score
    return {
        "confusion": score.confusion if score else [],
        "groups": _lowest(score.group_accuracy) if score else [],
        "rungs": [(epoch, short(accuracy)) for epoch, accuracy in result.rungs],
        "layers": extras.layers.get(result.trial, ()),
        "ledger": result.cost.ledger if result.cost else None,
        "test": extras.test.get(result.trial),
    }
