"""What a running search shows: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nas.pareto import front, percent
from nas.record import KB, Latency, StudyInputs, TrialResult, size_bytes


@dataclass(frozen=True)
class Standing:
    """Where a search stands. `left` and `seconds_left` are None when only time limits it."""

    done: int
    running: int
    left: int | None
    infeasible: int
    failed: int
    best: str
    seconds_left: float | None

    def __str__(self) -> str:
        left = f", {self.left} left" if self.left is not None else ""
        time_left = f", about {minutes(self.seconds_left)}" if self.seconds_left is not None else ""
        extra = f" ({self.infeasible} could not fit)" if self.infeasible else ""
        extra += f" ({self.failed} failed)" if self.failed else ""
        return (
            f"{self.done} trials done{extra}, {self.running} running{left}{time_left}; {self.best}"
        )


def minutes(seconds: float) -> str:
    """A length of time for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


SECONDS_BETWEEN_LINES = 30  # of a log, where nothing can be replaced


class Progress:
    """Prints to stderr; `event` stays on the screen, `standing` is replaced by the next one."""

    def __init__(self, live: Live | None, silent: bool = False) -> None:
        self._live = live
        self._silent = silent
        self._last = 0.0

    def event(self, text: str) -> None:
        """A line that stays."""
        if self._silent:
            return
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def standing(self, standing: Standing) -> None:
        """Where the search stands now; a log gets it every SECONDS_BETWEEN_LINES."""
        if self._live:
            self._live.update(Text(str(standing)))
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.event(str(standing))


@contextlib.contextmanager
def progress(silent: bool = False) -> Iterator[Progress]:
    """The progress of one search, live if stderr is a terminal."""
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield Progress(None, silent)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield Progress(live)


def event_of(result: TrialResult, inputs: StudyInputs) -> str:
    """What became of a trial, in a line."""
    if result.score is None:
        return f"trial {result.trial} {result.state}: {result.reason}"
    kb = size_bytes(result, inputs.size_kind) / KB
    taken = f" with the weights of trial {result.trained_by}" * (result.weights_of is not None)
    return (
        f"trial {result.trial}: {percent(result.score.accuracy)} % at {kb:.1f} KB, "
        f"{_ms(result.latency)}, {result.seconds:.0f} s{taken}  {result.architecture}"
    )


def _ms(latency: Latency | None) -> str:
    if latency is None:
        return "no latency"
    in_float, ms = latency.float_latency_ms, latency.latency_ms
    slower = f" (float32: {in_float:.2f})" if in_float and in_float < ms else ""
    return f"{ms:.2f} ms{slower}{', estimated' * (latency.latency_kind == 'estimated')}"


def best_of(results: Sequence[TrialResult], inputs: StudyInputs) -> str:
    """The most accurate network within the budget so far, in words."""
    kb = inputs.budget.size_bytes / KB
    points = front(results, inputs.size_kind, inputs.budget)
    if not points or points[-1].score is None:
        return f"nothing within {kb:g} KB yet"
    size = size_bytes(points[-1], inputs.size_kind) / KB
    return f"best within {kb:g} KB: {percent(points[-1].score.accuracy)} % at {size:.1f} KB"
