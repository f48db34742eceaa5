"""The search: ask for an architecture, refuse what cannot fit, have it evaluated, record it.

One process asks and records; its workers evaluate. Any number of such processes may join a study.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nas import workers as pools
from nas.arch import Architecture
from nas.cost import estimate
from nas.errors import UserError
from nas.pareto import best_within, percent
from nas.pipeline import Job, over_budget
from nas.progress import Progress, Standing
from nas.record import KB, Cost, StudyInputs, StudyRecord, TrialResult, size_bytes
from nas.space import SearchSpace, space_from_toml
from nas.study import Study, Trial, load_study, open_study, record, results, start, study_folder
from nas.workers import Order

# A proposal that cannot fit costs milliseconds; so many in a row mean that there is nothing left.
MOST_REFUSED_IN_A_ROW = 3000


@dataclass(frozen=True)
class Limits:
    """When a search ends: after so many finished trials in the study, or so many minutes."""

    trials: int | None
    minutes: float | None


def run_search(
    name: str,
    inputs: StudyInputs,
    job: Job,
    limits: Limits,
    workers: int,
    progress: Progress,
    storage: str | None = None,
) -> StudyRecord:
    """Runs or continues the study until its limits; returns all that it holds.

    Raises UserError if the study exists with other inputs or if nothing in the space fits the
    budget. KeyboardInterrupt passes through with every finished trial recorded.
    """
    folder = study_folder(name)
    space = space_from_toml(inputs.space, inputs.space_name)
    _refuse_impossible(space, inputs, job.dataset.clip_s)
    study = open_study(name, storage, inputs)
    (folder / "artifacts").mkdir(exist_ok=True)
    run = _Run(study, space, inputs, job, limits, progress, folder)
    if run.left() != 0:
        with pools.pool(workers, job, folder / "workers.log") as pool:
            run.loop(pool)
    return load_study(name, storage)


class _Run:
    """One process's part in a study: its counts, and the loop that keeps its workers busy."""

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        inputs: StudyInputs,
        job: Job,
        limits: Limits,
        progress: Progress,
        folder: Path,
    ) -> None:
        self.study, self.space, self.inputs, self.job = study, space, inputs, job
        self.limits, self.progress, self.folder = limits, progress, folder
        self.start = time.monotonic()
        self.results = {r.trial: r for r in results(study)}
        self.running: dict[int, Trial] = {}

    def left(self) -> int | None:
        """Trials still to start; None if only time limits the search."""
        if self.limits.minutes and self._minutes() >= self.limits.minutes:
            return 0
        if self.limits.trials is None:
            return None
        return max(0, self.limits.trials - len(self._finished()) - len(self.running))

    def loop(self, pool: list[pools.Worker]) -> None:
        while True:
            for worker in pool:
                if worker.order is None and self.left() != 0:
                    self._give(worker)
            if not self.running:
                return
            for worker in pools.ready(pool, timeout_s=1.0):
                self._take(worker, pool)
            self.progress.standing(self._standing())

    def _give(self, worker: pools.Worker) -> None:
        """The next architecture that fits and has not been measured goes to the worker."""
        for _ in range(MOST_REFUSED_IN_A_ROW):
            trial = self.study.ask()
            architecture = self.space.sample(trial, self.job.dataset.clip_s)
            cost = estimate(architecture, len(self.inputs.classes))
            if not (
                self._refused(trial, architecture, cost) or self._repeated(trial, architecture)
            ):
                start(trial, str(architecture))
                self.running[trial.number] = trial
                stem = self.folder / "artifacts" / f"{trial.number:05d}"
                seed = self.inputs.seed_of(trial.number)
                worker.give(Order(trial.number, str(architecture), seed, os.fspath(stem)))
                return
        raise UserError(
            f"search space '{self.space.name}': {MOST_REFUSED_IN_A_ROW} proposals in a row were "
            "over the budget or known; it seems exhausted: raise --budget-kb or use a wider --space"
        )

    def _refused(self, trial: Trial, architecture: Architecture, cost: Cost) -> bool:
        over = over_budget(cost, self.inputs.size_kind, self.inputs.budget)
        if not over:
            return False
        for limit, share in over.items():
            trial.set_constraint(limit, share)
        reason = ", ".join(f"{limit} is {share:.0%} over" for limit, share in over.items())
        self._record(
            trial, TrialResult(str(architecture), "infeasible", f"estimated {reason}", cost)
        )
        return True

    def _repeated(self, trial: Trial, architecture: Architecture) -> bool:
        """A known architecture is not trained again; the sampler learns its result once more."""
        known = next((r for r in self._finished() if r.architecture == str(architecture)), None)
        if known is None or known.state != "complete":
            return False
        reason = f"same architecture as trial {known.trial}"
        self._record(trial, msgspec.structs.replace(known, state="repeated", reason=reason))
        return True

    def _take(self, worker: pools.Worker, pool: list[pools.Worker]) -> None:
        result = worker.take()
        self._record(self.running.pop(result.trial), result)
        self.progress.event(_event(result, self.inputs))
        if not worker.process.is_alive():
            pool[pool.index(worker)] = pools.start(self.job, self.folder / "workers.log")

    def _record(self, trial: Trial, result: TrialResult) -> None:
        self.results[trial.number] = record(self.study, trial, result, self.inputs)

    def _finished(self) -> list[TrialResult]:
        return [r for r in self.results.values() if r.state in ("complete", "stopped", "failed")]

    def _minutes(self) -> float:
        return (time.monotonic() - self.start) / 60

    def _standing(self) -> Standing:
        finished, left = self._finished(), self.left()
        states = [r.state for r in self.results.values()]
        return Standing(
            done=len(finished),
            running=len(self.running),
            left=left,
            infeasible=states.count("infeasible"),
            failed=states.count("failed"),
            best=_best(finished, self.inputs),
            seconds_left=self._seconds_left(left),
        )

    def _seconds_left(self, left: int | None) -> float | None:
        seconds = [r.seconds for r in self.results.values() if r.state == "complete"]
        if left is None:
            return max(0.0, 60 * ((self.limits.minutes or 0) - self._minutes()))
        if not seconds or not self.running:
            return None
        to_do = left + len(self.running) / 2
        return to_do * sum(seconds) / len(seconds) / len(self.running)


def _event(result: TrialResult, inputs: StudyInputs) -> str:
    if result.score is None or result.latency is None:
        return f"trial {result.trial} {result.state}: {result.reason}"
    kb = size_bytes(result, inputs.size_kind) / KB
    return (
        f"trial {result.trial}: {percent(result.score.accuracy)} % at {kb:.1f} KB, "
        f"{result.latency.latency_ms:.2f} ms, {result.seconds:.0f} s  {result.architecture}"
    )


def _best(results: Sequence[TrialResult], inputs: StudyInputs) -> str:
    kb = inputs.budget.size_bytes / KB
    best = best_within(results, inputs.size_kind, kb)
    if best is None or best.score is None:
        return f"nothing within {kb:g} KB yet"
    size = size_bytes(best, inputs.size_kind) / KB
    return f"best within {kb:g} KB: {percent(best.score.accuracy)} % at {size:.1f} KB"


def _refuse_impossible(space: SearchSpace, inputs: StudyInputs, clip_s: float) -> None:
    """Raises UserError, with the smallest size, if nothing in the space can meet the budget."""

    def excess(architecture: Architecture) -> float:
        return _excess(estimate(architecture, len(inputs.classes)), inputs)

    smallest = estimate(space.smallest(excess, clip_s), len(inputs.classes))
    over = over_budget(smallest, inputs.size_kind, inputs.budget)
    if over:
        kb = getattr(smallest, inputs.size_kind) / KB
        flags = {"ram_bytes": "--max-ram-kb", "macs": "--max-mmacs"}
        raise UserError(
            f"nothing in the search space '{space.name}' fits the budget: its smallest network "
            f"has {kb:.1f} KB ({inputs.size_kind}), {smallest.ram_bytes / KB:.0f} KB of RAM "
            f"and {smallest.macs / 1e6:.2f} MMACs; raise "
            + " and ".join(flags.get(limit, "--budget-kb") for limit in over)
        )


def _excess(cost: Cost, inputs: StudyInputs) -> float:
    """The largest ratio of a figure to its limit."""
    budget = inputs.budget
    ratios = [int(getattr(cost, inputs.size_kind)) / budget.size_bytes]
    ratios += [cost.ram_bytes / budget.ram_bytes] if budget.ram_bytes else []
    return max(ratios + ([cost.macs / budget.macs] if budget.macs else []))
