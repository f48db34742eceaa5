"""Early stopping for two objectives: what a trial must reach at each rung of its proxy to go on.

At a rung a trial is compared with the trials of similar or smaller size only, at the same rung of
the same schedule: a small network need not be as accurate as a large one. Size is the number of
parameters: what is compared is the float network, which may yet be measured in a smaller number
format. The idea is that of MO-ASHA (Schmucker, Donini, Zafar, Salinas & Archambeau 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nas.record import TrialResult

SHARES = (0.25, 0.5)
SIMILAR = 1.1
FEWEST_PEERS = 8
KEPT = 0.5

Rungs = Sequence[tuple[int, float]]


def rung_epochs(epochs: int) -> list[int]:
    """The epochs, of a proxy of so many, after which a trial may be stopped."""
    return sorted({round(share * epochs) for share in SHARES} - {0, epochs})


def bars(
    parameters: int, epochs: Iterable[int], others: Iterable[tuple[int, Rungs]]
) -> dict[int, float]:
    """The accuracy below which a trial of this size is weak, by rung.

    `others` are the parameters and the rungs (epoch, accuracy) of the trials so far. At each rung
    the trial must be among the best KEPT of those of at most SIMILAR times its size, itself
    counted. While there are fewer than FEWEST_PEERS of those the bar is 0, which nothing is below.
    """
    peers = [dict(rungs) for size, rungs in others if size <= SIMILAR * parameters]
    return {e: _bar([rungs[e] for rungs in peers if e in rungs]) for e in epochs}


def _bar(accuracies: Sequence[float]) -> float:
    if len(accuracies) < FEWEST_PEERS:
        return 0.0
    places = math.ceil(KEPT * (len(accuracies) + 1))
    return sorted(accuracies, reverse=True)[places - 1]


def ran(results: Iterable[TrialResult]) -> list[tuple[int, Rungs]]:
    """Parameters and rungs of the trials that were trained, for `bars`."""
    return [
        (r.cost.parameters, r.rungs)
        for r in results
        if r.cost and r.rungs and r.state in ("complete", "stopped")
    ]
