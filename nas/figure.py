"""Accuracy against size, latency, MACs or RAM as a Plotly figure, drawn by the page and as PNG.

Plain dicts; plotly itself is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from nas.pareto import (
    front,
    known_latency_ms,
    known_size,
    non_dominated,
    percent,
    recommended,
    score_of,
    within,
)
from nas.record import KB, Budget, SizeKind, StudyRecord, TrialResult

SIZE_TITLES: dict[SizeKind, str] = {
    "file_bytes": "File size",
    "parameter_bytes": "Size of the parameters",
    "flash_bytes": "Flash, estimated",
}
SYMBOLS = ("circle", "square", "triangle-up", "diamond")
# Legend order; drawing order is the reverse, the front above the cloud.
RANKS = {"front": 1, "recommended": 2, "other trials": 3, "over a limit": 4, "stopped early": 5}
_RING = {"color": "$ink", "size": 19, "symbol": "circle-open", "line": {"width": 1.5}}


@dataclass(frozen=True)
class Reference:
    """A published network as a mark on the front. `accuracy` is a share; None is unknown."""

    name: str
    accuracy: float
    size_kb: float | None = None
    latency_ms: float | None = None
    macs: float | None = None
    peak_ram_bytes: float | None = None
    source: str = ""


class Axis(NamedTuple):
    """An x axis of the front: where a trial, a reference and a budget stand on it."""

    title: str
    unit: str
    trial: Callable[[TrialResult, SizeKind], float | None]
    reference: Callable[[Reference], float | None]
    limit: Callable[[Budget], float | None]


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


AXES = {
    "size_kb": Axis(
        "KB",
        "KB",
        lambda r, kind: _scaled(known_size(r, kind), KB),
        lambda ref: ref.size_kb,
        lambda budget: budget.size_bytes / KB,
    ),
    "latency_ms": Axis(
        "Latency of one clip, ms",
        "ms",
        lambda r, _: known_latency_ms(r),
        lambda ref: ref.latency_ms,
        lambda budget: budget.latency_ms,
    ),
    "macs": Axis(
        "Multiply-accumulates of one clip, millions",
        "million",
        lambda r, _: _scaled(r.cost.macs if r.cost else None, 1e6),
        lambda ref: _scaled(ref.macs, 1e6),
        lambda budget: _scaled(budget.macs, 1e6),
    ),
    "peak_ram_kb": Axis(
        "Peak RAM, KB, estimated",
        "KB",
        lambda r, _: _scaled(r.cost.peak_ram_bytes if r.cost else None, KB),
        lambda ref: _scaled(ref.peak_ram_bytes, KB),
        lambda budget: _scaled(budget.ram_bytes, KB),
    ),
}


def front_figure(
    records: Sequence[StudyRecord], references: Sequence[Reference] = (), axis: str = "size_kb"
) -> dict[str, Any]:
    """Accuracy against one of AXES as a Plotly figure: plain dicts, colours as "$name".

    Every point carries its index in the record's trials as customdata, and every trace its
    study's number as meta. The front is that of the shown axis, among the trials within budget.
    """
    several = len(records) > 1
    traces = [t for i, r in enumerate(records) for t in _traces(i, r, AXES[axis], several)]
    traces.append(_reference_trace(references, AXES[axis]))
    traces = [t for t in traces if t["x"]]
    return {"data": traces, "layout": _layout(records, traces, axis)}


def _traces(number: int, record: StudyRecord, axis: Axis, several: bool) -> list[dict[str, Any]]:
    kind, budget = record.inputs.size_kind, record.inputs.budget
    placed = [r for r in record.trials if axis.trial(r, kind)]
    done = [r for r in placed if r.state == "complete" and r.score]
    fit = within(done, kind, budget)
    fits = {r.trial for r in fit}
    best = non_dominated(fit, lambda r: axis.trial(r, kind) or 0.0)
    ship = _ship(record)
    trace = partial(_trace, number, record, axis, several)
    symbol = SYMBOLS[number % 4]
    quiet = {"color": "$quiet", "size": 5, "symbol": symbol, "opacity": 0.55}
    over = [r for r in done if r.trial not in fits]
    stopped = [r for r in placed if r.state == "stopped" and r.rungs]
    return [
        trace("stopped early", stopped, marker={**quiet, "symbol": "x-thin-open"}),
        trace("over a limit", over, marker={**quiet, "symbol": f"{symbol}-open"}),
        trace("other trials", fit, marker=quiet),
        trace("front", best, **_front_style(number, best)),
        trace("recommended", [ship] if ship in placed else [], marker=_RING),
    ]


def _trace(
    number: int,
    record: StudyRecord,
    axis: Axis,
    several: bool,
    label: str,
    results: Sequence[TrialResult],
    **style: Any,
) -> dict[str, Any]:
    index = {r.trial: i for i, r in enumerate(record.trials)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": record.name if several and label == "front" else label,
        "showlegend": number == 0 or label == "front",
        "legendrank": RANKS[label],
        "x": [short(axis.trial(r, record.inputs.size_kind)) for r in results],
        "y": [short(100 * _accuracy(r)) for r in results],
        "customdata": [index[r.trial] for r in results],
        "meta": number,
        "hoverinfo": "none",
        **style,
    }


def _accuracy(result: TrialResult) -> float:
    """Accuracy of the artefact, or where the trial was stopped that of its last rung."""
    return result.score.accuracy if result.score else result.rungs[-1][1]


def _front_style(number: int, best: Sequence[TrialResult]) -> dict[str, Any]:
    colour = f"$study{number % 4}"
    scores = [score_of(r) for r in best]
    return {
        "mode": "lines+markers",
        # A step: between two points the smaller network is the best that fits.
        "line": {"color": colour, "width": 2, "shape": "hv"},
        "marker": {
            "color": colour,
            "size": 9,
            "symbol": SYMBOLS[number % 4],
            "line": {"color": "$surface", "width": 1.5},
        },
        "error_y": {
            "array": [short(100 * (s.accuracy_high - s.accuracy)) for s in scores],
            "arrayminus": [short(100 * (s.accuracy - s.accuracy_low)) for s in scores],
            "color": colour,
            "thickness": 1.2,
            "width": 3,
        },
    }


def _reference_trace(references: Sequence[Reference], axis: Axis) -> dict[str, Any]:
    marks = [r for r in references if axis.reference(r)]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "published",
        "x": [short(axis.reference(r)) for r in marks],
        "y": [short(100 * r.accuracy) for r in marks],
        "text": [r.name for r in marks],
        "hovertext": [f"{r.name}: {percent(r.accuracy)} %. {r.source}" for r in marks],
        "hoverinfo": "none",
        "textposition": "bottom center",
        "textfont": {"color": "$muted", "size": 11},
        "marker": {"color": "$ink", "size": 9, "symbol": "diamond-open"},
        "legendrank": 6,
        # A label may hang over the edge of the plot.
        "cliponaxis": False,
    }


def _layout(
    records: Sequence[StudyRecord], traces: Sequence[dict[str, Any]], axis: str
) -> dict[str, Any]:
    limits = {AXES[axis].limit(r.inputs.budget) for r in records} - {None}
    x = [v for t in traces for v in t["x"]] + [v for v in limits if v]
    title = AXES[axis].title
    if axis == "size_kb" and records:
        title = f"{SIZE_TITLES[records[0].inputs.size_kind]}, {title}"
    ends = _log_range(x)
    ticks = _ticks(10 ** ends[0], 10 ** ends[1], 2.0 if axis.endswith("_kb") else 10.0)
    line = {"gridcolor": "$grid", "linecolor": "$line", "zeroline": False}
    low, high = _accuracy_range(traces)
    return {
        "paper_bgcolor": "$surface",
        "plot_bgcolor": "$surface",
        "font": {"color": "$ink", "size": 13, "family": "system-ui, sans-serif"},
        "margin": {"l": 52, "r": 14, "t": 62, "b": 48},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {
            **line,
            "type": "log",
            "title": {"text": title},
            "tickvals": ticks,
            "ticktext": [f"{t:g}" for t in ticks],
            "range": ends,
        },
        "yaxis": {
            **line,
            "title": {"text": "Accuracy, %"},
            "range": [low, high],
            "dtick": 20 if high - low > 60 else 10 if high - low > 25 else 5,
        },
        "shapes": [_limit_line(v) for v in limits if v],
        "annotations": [_limit_label(v, AXES[axis].unit) for v in limits if v],
    }


def _log_range(values: Sequence[float]) -> list[float]:
    low, high = (min(values), max(values)) if values else (1.0, 100.0)
    pad = 0.05 * math.log10(high / low) + (0.04 if high > low else 1)
    return [short(math.log10(low) - pad), short(math.log10(high) + pad)]


def _ticks(low: float, high: float, base: float) -> list[float]:
    """Powers of two, or 1-2-5 steps, that cover a range."""
    steps = (1.0,) if base == 2.0 else (1.0, 2.0, 5.0)
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    return [step * base**e for e in range(first, last + 1) for step in steps]


def _accuracy_range(traces: Sequence[dict[str, Any]]) -> list[float]:
    """Room for the whole front and its intervals, and for the upper nine tenths of the others."""
    values = sorted(y for t in traces if t["name"] != "stopped early" for y in t["y"])
    bars = [(t["y"], t["error_y"]) for t in traces if "error_y" in t]
    lows = [y - e for ys, bar in bars for y, e in zip(ys, bar["arrayminus"], strict=True)]
    highs = [y + e for ys, bar in bars for y, e in zip(ys, bar["array"], strict=True)]
    low = min([*lows, values[len(values) // 10]]) if values else 0.0
    return [max(0.0, low - 3), min(101.0, max([*highs, *values, 50.0]) + 3)]


def _limit_line(value: float) -> dict[str, Any]:
    line = {"color": "$budget", "width": 1.5, "dash": "dash"}
    return {
        "type": "line",
        "x0": value,
        "x1": value,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": line,
    }


def _limit_label(value: float, unit: str) -> dict[str, Any]:
    return {
        # Plotly places annotations on a log axis by the logarithm, shapes by the value.
        "x": math.log10(value),
        "xanchor": "right",
        "xshift": -4,
        "yref": "paper",
        "y": 0,
        "yanchor": "bottom",
        "showarrow": False,
        "text": f"budget {value:.4g} {unit}",
        "font": {"color": "$budget", "size": 12},
        "bgcolor": "$surface",
    }


def short(value: float | None) -> float:
    """Four significant digits, which is more than a plot shows and half the bytes."""
    return float(f"{value or 0:.4g}")


def _ship(record: StudyRecord) -> TrialResult | None:
    points = front(record.trials, record.inputs.size_kind, record.inputs.budget)
    return recommended(points) if points else None
