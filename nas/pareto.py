"""The front: complete trials within the budget that none beats on both accuracy and size.

Also what is asked of it: its rows, its hypervolume, and the one network to ship.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nas.record import (
    KB,
    Budget,
    Score,
    SizeKind,
    StudyInputs,
    StudyRecord,
    TrialResult,
    size_bytes,
)

SIZE_WORDS: dict[SizeKind, str] = {
    "file_bytes": "{} KB",
    "parameter_bytes": "{} KB of parameters",
    "flash_bytes": "an estimated {} KB of flash",
}
_Z95 = 1.96


def score_of(result: TrialResult) -> Score:
    """The score of a complete trial. Raises ValueError for a trial that has none."""
    if result.score is None:
        raise ValueError(f"trial {result.trial} has no score")
    return result.score


def within(results: Iterable[TrialResult], kind: SizeKind, budget: Budget) -> list[TrialResult]:
    """The complete trials that meet every limit; an unknown figure does not meet a limit."""
    return [r for r in results if r.state == "complete" and r.score and _fits(r, kind, budget)]


def _fits(result: TrialResult, kind: SizeKind, budget: Budget) -> bool:
    cost = result.cost
    limits: list[tuple[float | None, float | None]] = [
        (size_bytes(result, kind), budget.size_bytes),
        (known_latency_ms(result), budget.latency_ms),
        (cost.ram_bytes if cost else None, budget.ram_bytes),
        (budget.macs_of(cost) if cost else None, budget.macs),
    ]
    return all(most is None or (found is not None and found <= most) for found, most in limits)


def known_latency_ms(result: TrialResult) -> float | None:
    """Latency in ms, measured or estimated; None when the trial has neither."""
    known = result.latency is not None and result.latency.latency_kind != "none"
    return result.latency.latency_ms if known and result.latency else None


def front(results: Iterable[TrialResult], kind: SizeKind, budget: Budget) -> list[TrialResult]:
    """The non-dominated trials within the budget, smallest first (see `non_dominated`)."""
    return non_dominated(within(results, kind, budget), lambda r: size_bytes(r, kind))


def non_dominated(
    results: Iterable[TrialResult], cost: Callable[[TrialResult], float]
) -> list[TrialResult]:
    """The scored trials that none beats on both accuracy (more) and `cost` (less), cheapest first.

    Of trials equal in both, the earliest stays. So both rise strictly along the list.
    """
    best: list[TrialResult] = []
    for result in sorted(results, key=lambda r: (cost(r), -score_of(r).accuracy, r.trial)):
        if not best or score_of(result).accuracy > score_of(best[-1]).accuracy:
            best.append(result)
    return best


def best_within(results: Iterable[TrialResult], kind: SizeKind, kb: float) -> TrialResult | None:
    """The most accurate complete trial of at most `kb` KB (of equals the smallest), or None."""
    points = front(results, kind, Budget(size_bytes=math.floor(kb * KB)))
    return points[-1] if points else None


def hypervolume(points: Sequence[tuple[float, float]], budget: Budget) -> float:
    """Share, 0 to 1, of the accuracy-size rectangle that `points` (bytes, accuracy) dominate.

    The size axis is log2 KB. It runs from 1 KB (from half the budget where that is less), which
    counts as 0, to the budget, which counts as 1; smaller networks count as 0 and larger ones
    are left out. The reference point is (budget, accuracy 0). In other words: the mean over
    the doublings of size up to the budget of the best accuracy that fits. Computed by moocore.
    """
    # Half a second of import, that `nas front` need not pay.
    import moocore

    low = min(KB, budget.size_bytes / 2)
    span = math.log2(budget.size_bytes / low)
    scaled = [
        (math.log2(max(size, low) / low) / span, -accuracy)
        for size, accuracy in points
        if size <= budget.size_bytes
    ]
    return float(moocore.hypervolume(scaled, ref=(1.0, 0.0))) if scaled else 0.0


def standard_error(score: Score) -> float:
    """Standard error of an accuracy, read off its 95 % interval (its wider side)."""
    low, high = (
        score.accuracy - score.accuracy_low,
        score.accuracy_high - score.accuracy,
    )
    return max(low, high, 0.0) / _Z95


def recommended(points: Sequence[TrialResult]) -> TrialResult:
    """The network to ship: the smallest of a front that is as good as its best within noise.

    "Within noise" is the one-standard-error rule (Breiman et al., Classification and Regression
    Trees, 1984): at most one standard error of the best's accuracy below the best.
    """
    best = score_of(points[-1])
    least = best.accuracy - standard_error(best)
    return next(r for r in points if score_of(r).accuracy >= least)


def smallest_in_interval(points: Sequence[TrialResult]) -> TrialResult:
    """The smallest of a front whose accuracy lies in the 95 % interval of the front's best."""
    low = score_of(points[-1]).accuracy_low
    return next(r for r in points if score_of(r).accuracy >= low)


def answer(results: Sequence[TrialResult], inputs: StudyInputs) -> str:
    """One plain sentence: which trial to ship, and what the next better one would cost.

    The choice is `recommended`; "within noise" means that the next accuracy lies in the chosen
    one's 95 % interval. When nothing can be shipped, the sentence says why.
    """
    kind = inputs.size_kind
    points = front(results, kind, inputs.budget)
    if not points:
        return _no_answer(results, inputs)
    ship = recommended(points)
    score = score_of(ship)
    low, high = percent(score.accuracy_low), percent(score.accuracy_high)
    said = (
        f"Ship trial {ship.trial}: {percent(score.accuracy)} % ({low}-{high}) "
        f"at {SIZE_WORDS[kind].format(kb_text(size_bytes(ship, kind)))}{_latency_words(ship)}"
    )
    return f"{said}; {_alternative(points, ship, kind)}."


def _alternative(points: Sequence[TrialResult], ship: TrialResult, kind: SizeKind) -> str:
    place = points.index(ship)
    if place + 1 < len(points):
        better = points[place + 1]
        gain = score_of(better).accuracy - score_of(ship).accuracy
        noise = score_of(better).accuracy <= score_of(ship).accuracy_high
        return (
            f"the next better costs {_kb_apart(better, ship, kind)} more for {_points(gain)}, "
            f"{'within' if noise else 'more than'} noise"
        )
    if place == 0:
        return "no other network measured within the budget is smaller or better"
    smaller = points[place - 1]
    loss = score_of(ship).accuracy - score_of(smaller).accuracy
    return (
        "none within the budget is better; "
        f"the next smaller saves {_kb_apart(ship, smaller, kind)} and loses {_points(loss)}"
    )


def _no_answer(results: Sequence[TrialResult], inputs: StudyInputs) -> str:
    kind, budget = inputs.size_kind, inputs.budget
    done = [r for r in results if r.state == "complete" and r.score]
    if not results:
        return "Nothing to ship yet: no trial has finished."
    if not done:
        return f"Nothing to ship yet: none of the {len(results)} trials is complete."
    least = min(done, key=lambda r: (size_bytes(r, kind), r.trial))
    size = size_bytes(least, kind)
    if size > budget.size_bytes:
        return (
            f"Nothing to ship: no complete trial fits the budget of "
            f"{budget.size_bytes / KB:.4g} KB; the smallest, trial {least.trial}, takes "
            f"{SIZE_WORDS[kind].format(kb_text(size))}."
        )
    return (
        f"Nothing to ship: of {len(done)} complete trials none meets all the limits "
        f"({limits_text(budget)})."
    )


def limits_text(budget: Budget) -> str:
    """The limits in words: "64 KB, 5 ms, 256 KB of RAM, 10 million MACs"."""
    words = [f"{budget.size_bytes / KB:.4g} KB"]
    if budget.latency_ms is not None:
        words.append(f"{budget.latency_ms:.4g} ms")
    if budget.ram_bytes is not None:
        words.append(f"{budget.ram_bytes / KB:.4g} KB of RAM")
    if budget.macs is not None:
        words.append(f"{budget.macs / 1e6:.4g} million MACs")
    return ", ".join(words)


def three_figures(value: float) -> str:
    """Three significant figures, more for whole numbers: "0.420", "8.60", "38.2", "1234"."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def percent(share: float) -> str:
    """A share in percent, to one decimal, halves up as on the page."""
    return f"{math.floor(1000 * share + 0.5) / 10:.1f}"


def kb_text(size: float) -> str:
    """Bytes as KB of 1,024 in three figures, without the unit."""
    return three_figures(size / KB)


def _kb_apart(larger: TrialResult, smaller: TrialResult, kind: SizeKind) -> str:
    return f"{kb_text(size_bytes(larger, kind) - size_bytes(smaller, kind))} KB"


def _points(share: float) -> str:
    return f"{percent(share)} points"


def _latency_words(result: TrialResult) -> str:
    ms = known_latency_ms(result)
    if ms is None or result.latency is None:
        return ""
    said = "an estimated " if result.latency.latency_kind == "estimated" else ""
    return f" and {said}{three_figures(ms)} ms"


def front_rows(record: StudyRecord, all_trials: bool = False) -> list[dict[str, Any]]:
    """The front as one dict per trial, smallest first; every trial in order with `all_trials`.

    Every row has the same keys; a figure that a trial cannot know is None.
    """
    inputs = record.inputs
    chosen = record.trials if all_trials else front(record.trials, inputs.size_kind, inputs.budget)
    return [row(r, inputs.size_kind) for r in chosen]


def row(result: TrialResult, kind: SizeKind) -> dict[str, Any]:
    """One trial as plain figures, for JSON and CSV."""
    score, cost, latency = result.score, result.cost, result.latency
    size = known_size(result, kind)
    return {
        "trial": result.trial,
        "state": result.state,
        "reason": result.reason,
        "architecture": result.architecture,
        "accuracy": score.accuracy if score else None,
        "accuracy_low": score.accuracy_low if score else None,
        "accuracy_high": score.accuracy_high if score else None,
        "float_accuracy": result.float_accuracy,
        "logit_error": result.logit_error,
        "fine_tuned": result.fine_tuned,
        "size_kb": None if size is None else size / KB,
        "size_kind": kind,
        "file_bytes": result.file_bytes,
        "parameter_bytes": cost.parameter_bytes if cost else None,
        "flash_bytes": cost.flash_bytes if cost else None,
        "latency_ms": known_latency_ms(result),
        "latency_median_ms": latency.latency_median_ms if latency else None,
        "latency_p95_ms": latency.latency_p95_ms if latency else None,
        "float_latency_ms": latency.float_latency_ms if latency else None,
        "front_end_ms": result.front_end_ms,
        "latency_kind": latency.latency_kind if latency else "none",
        "macs": cost.macs if cost else None,
        "front_end_macs": cost.front_end_macs if cost else None,
        "peak_ram_bytes": cost.peak_ram_bytes if cost else None,
        "energy_mj": cost.energy_mj if cost else None,
        "quantization": quantization(result),
        "parameters": cost.parameters if cost else None,
        "training": " ".join(f"{key}={value:g}" for key, value in result.training.items()),
        "trained_by": result.trained_by if result.state == "complete" else None,
        "artifact": result.artifact,
        "seconds": result.seconds,
    }


def known_size(result: TrialResult, kind: SizeKind) -> int | None:
    """Bytes of the kind that the budget means: measured, else the estimate, else None."""
    measured = kind == "file_bytes" and result.file_bytes is not None
    return size_bytes(result, kind) if measured or result.cost else None


def quantization(result: TrialResult) -> str:
    """Number format of a trial's artefact as its architecture says it: "int8_channel_none"."""
    return result.architecture.rsplit("/", 1)[-1]
