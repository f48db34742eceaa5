"""One training, several number formats: a network that was trained for one is measured in those
others that promise a place on the front, with the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from nas.arch import Architecture, parse
from nas.gate import cost_of, fits
from nas.pareto import front, score_of, standard_error
from nas.record import Score, StudyInputs, Trained, Training, TrialResult, size_bytes
from nas.space import SearchSpace


def trained_before(
    architecture: str, training: Training, results: Iterable[TrialResult]
) -> Trained | None:
    """The weights of this network from a trial in another number format."""
    network = _without_format(architecture)
    for r in results:
        same = _without_format(r.architecture) == network and r.training == training
        if same and r.state == "complete" and r.artifact:
            return Trained(r.trained_by, r.artifact.removesuffix("onnx") + "safetensors")
    return None


def next_format(
    result: TrialResult,
    results: Iterable[TrialResult],
    space: SearchSpace,
    inputs: StudyInputs,
    clip_s: float,
) -> dict[str, Any] | None:
    """The choices of the network of `result` in the smallest format that nobody has measured and
    that would be on the front of the `results`, one standard error above what is no larger, if it
    were as accurate as in float; None if there is none."""
    results, kind, hoped = list(results), inputs.size_kind, result.float_accuracy
    if result.state != "complete" or hoped is None:
        return None
    known = {r.architecture for r in results if r.training == result.training}
    points = front(results, kind, inputs.budget)
    for size, other in _by_size(parse(result.architecture), space, inputs):
        smaller = [_beaten_at(score_of(p)) for p in points if size_bytes(p, kind) <= size]
        if str(other) not in known and max(smaller, default=0.0) < hoped and fits(inputs, other):
            choices = space.choices_of(other, clip_s)
            return choices and choices | space.choices_of_training(result.training)
    return None


def _beaten_at(score: Score) -> float:
    """Its accuracy and one standard error: less is noise."""
    return score.accuracy + standard_error(score)


def _by_size(
    architecture: Architecture, space: SearchSpace, inputs: StudyInputs
) -> list[tuple[int, Architecture]]:
    """The architecture in all formats of the space, with its size in bytes, the smallest first."""
    found = [replace(architecture, quantization=each) for each in space.formats()]
    sizes = [(getattr(cost_of(each, inputs), inputs.size_kind), each) for each in found]
    return sorted(sizes, key=lambda sized: sized[0])


def _without_format(architecture: str) -> str:
    return architecture.rpartition("/")[0]
