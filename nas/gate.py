"""What is refused before it is trained: a candidate over a limit, and a space with no other.

Nothing here trains or measures: all is known from the structure.
"""

from __future__ import annotations

from nas.arch import Architecture
from nas.compliance import over_limits
from nas.cost import estimate
from nas.errors import UserError
from nas.record import KB, Cost, StudyInputs
from nas.space import SearchSpace


def fits(inputs: StudyInputs, architecture: Architecture) -> bool:
    """Whether the candidate keeps all limits that can be known before training."""
    return not excesses(architecture, cost_of(architecture, inputs), inputs)


def cost_of(architecture: Architecture, inputs: StudyInputs) -> Cost:
    """What the candidate costs with the study's classes on the study's target."""
    return estimate(architecture, len(inputs.classes), inputs.profile)


def excesses(architecture: Architecture, cost: Cost, inputs: StudyInputs) -> dict[str, float]:
    """By how much the candidate is over each limit, as a share of it; {} if it fits."""
    shares = over_limits(architecture, cost, inputs)
    return {limit: share for limit, share in shares.items() if share > 0}


def why(limit: str, share: float, architecture: Architecture, cost: Cost) -> str:
    """One excess in words."""
    if limit == "format" or (limit == "latency_ms" and cost.latency_ms is None):
        return f"{limit} is not known or not allowed for {architecture.quantization}"
    return f"{limit} is {share:.0%} over"


def refuse_impossible(space: SearchSpace, inputs: StudyInputs, clip_s: float) -> None:
    """Raises UserError, with the smallest size, if nothing in the space can meet the budget."""

    def excess(architecture: Architecture) -> float:
        return max(over_limits(architecture, cost_of(architecture, inputs), inputs).values())

    least = space.smallest(excess, clip_s, enough=0.0)
    smallest = cost_of(least, inputs)
    over = excesses(least, smallest, inputs)
    if over:
        kb = getattr(smallest, inputs.size_kind) / KB
        flags = {
            "ram_bytes": "--max-ram-kb",
            "macs": "--max-mmacs",
            "latency_ms": "--max-latency-ms",
            "format": "or change the number formats of --space",
        }
        raise UserError(
            f"nothing in the search space '{space.name}' fits the budget: its smallest network "
            f"has {kb:.2g} KB ({inputs.size_kind}), {smallest.ram_bytes / KB:.2g} KB of RAM "
            f"and {smallest.macs / 1e6:.2g} MMACs{_estimated_ms(smallest)}; raise "
            + " and ".join(flags.get(limit, "--budget-kb") for limit in over)
        )


def _estimated_ms(cost: Cost) -> str:
    return "" if cost.latency_ms is None else f" and takes an estimated {cost.latency_ms:.3g} ms"
