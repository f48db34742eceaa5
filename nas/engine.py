"""The search: ask for an architecture, refuse what cannot fit, have it evaluated, record it.

One process asks and records; its workers evaluate. Other processes, on this machine or others, may
join the study by name: each sees what all have finished and are running.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec

from nas import workers as pools
from nas.arch import Architecture
from nas.artifacts import fetch, place_of, prepare
from nas.errors import UserError
from nas.formats import next_format, trained_before
from nas.gate import cost_of, excesses, fits, refuse_impossible, why
from nas.measure import TOGETHER, latencies_if_there
from nas.pareto import front
from nas.pipeline import Job
from nas.progress import Progress, Standing, best_of, event_of
from nas.record import (
    State,
    StudyInputs,
    StudyRecord,
    Training,
    TrialResult,
)
from nas.rungs import bars, ran, rung_epochs
from nas.space import SearchSpace
from nas.storage import study_folder, told, uninterrupted
from nas.study import (
    GivenUp,
    Pulse,
    Study,
    Trial,
    ask,
    front_times,
    load_study,
    look,
    open_study,
    record,
    start,
    time_again,
    withdraw,
)
from nas.warm import beginnings, ladder
from nas.workers import Order

# A proposal that cannot fit costs some tens of milliseconds. So many in a row, and there is
# nothing left; fewer in one turn, and finished trials do not wait to be recorded.
MOST_REFUSED_IN_A_ROW = 1000
PROPOSALS_PER_TURN = 10
MOST_FAILED_IN_A_ROW = 5
# A process chooses in tenths of a second; one that was killed at it never does.
MOST_CHOOSING_S, CHOOSING_S = 5.0, 0.05
IDLE_S = 0.5  # between two looks at what other processes do, while they run the last trials
MOST_SLOW_IN_A_ROW = 40
MOST_FRONTS_TIMED = 3
# After the minutes of a search, what still runs may end for so long.
OVERTIME_S = 30.0


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
    artifacts: str | None = None,
    networks: Sequence[Architecture] = (),
) -> StudyRecord:
    """Runs or continues the study until its limits; returns all that it holds. It begins with those
    of the `networks` that the space holds and that fit, then with a ladder.

    Raises UserError if the study exists with other inputs or if nothing in the space fits the
    budget. KeyboardInterrupt passes through with every finished trial recorded.
    """
    folder, place = study_folder(name), place_of(artifacts, name)
    space = msgspec.json.decode(inputs.space, type=SearchSpace)
    refuse_impossible(space, inputs, job.dataset.clip_s)
    with told(name):
        folder.mkdir(parents=True, exist_ok=True)
        prepare(place)
        study = open_study(name, storage, inputs, progress.event)
        run = _Run(study, space, inputs, job, limits, progress, folder, place)
        if not run.over():
            # The workers take seconds to start, in which the parent prepares what they are given.
            with pools.pool(workers, run.task, folder / "workers.log") as pool:
                run.prepare(networks)
                run.loop(pool)
        elif run.too_late():
            progress.event(
                "the time is too short for a usual trial of this study: none was started"
            )
        run.time_front()
    return load_study(name, storage)


class Candidate(NamedTuple):
    """What makes a trial: two with the same are the same trial."""

    architecture: str
    training: Training

    def result(self, state: State, reason: str) -> TrialResult:
        """One that says that, and why, nothing was measured."""
        return TrialResult(self.architecture, state, reason, training=self.training)


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
        place: str,
    ) -> None:
        self.study, self.space, self.inputs, self.job = study, space, inputs, job
        self.limits, self.progress, self.folder, self.place = limits, progress, folder, place
        self.begin: set[str] = set()
        self.untried: list[dict[str, Any]] = []
        self.put_off: list[tuple[int, dict[str, Any]]] = []
        self.task = pools.Task(
            inputs.data,
            inputs.data_fingerprint,
            inputs.profile,
            inputs.proxy,
            job.max_latency_ms,
        )
        self.start = time.monotonic()
        self.results: dict[int, TrialResult] = {}
        self.running: dict[int, tuple[Trial, Candidate]] = {}
        self.answered: dict[int, TrialResult] = {}
        self.elsewhere: dict[int, Candidate | None] = {}
        self.refused_in_a_row = self.failed_in_a_row = self.slow_in_a_row = 0
        self.pulse = Pulse(study, inputs)
        self._look()

    def prepare(self, networks: Sequence[Architecture]) -> None:
        """Finds what is to be tried before the sampler proposes: what the search begins with, and
        other formats of what an earlier process had trained."""
        clip_s, most = self.job.dataset.clip_s, self.inputs.budget.size_bytes
        steps = ladder(self.space, clip_s, self._size_if_fits, most, self.inputs.seed)
        within = partial(fits, self.inputs)
        found = beginnings([*networks, *steps], self.space, clip_s, within)
        self.begin = set(found)
        # What lost its worker is tried again; what int8 broke, or what is too slow, is not.
        known = {r.architecture for r in self.results.values() if r.settled}
        self.untried = [choices for text, choices in found.items() if text not in known]
        if not self.elsewhere:
            for result in front(self.results.values(), self.inputs.size_kind, self.inputs.budget):
                self._add_format(result)

    def _size_if_fits(self, architecture: Architecture) -> int | None:
        """Predicted size in bytes; None for what is over a limit."""
        cost = cost_of(architecture, self.inputs)
        over = excesses(architecture, cost, self.inputs)
        return None if over else int(getattr(cost, self.inputs.size_kind))

    def _add_format(self, result: TrialResult) -> None:
        """Has the network of `result` measured in another number format next, if one promises."""
        results, clip_s = self.results.values(), self.job.dataset.clip_s
        other = next_format(result, results, self.space, self.inputs, clip_s)
        if other and other not in self.untried:
            self.untried.insert(0, other)

    def over(self) -> bool:
        """Whether the search has ended for this process, but for what it runs."""
        if self.too_late() or self._exhausted():
            return True
        return self.limits.trials is not None and len(self._finished()) >= self.limits.trials

    def _exhausted(self) -> bool:
        """Whether the space holds nothing more to try, or so little that proposals miss it."""
        if self.refused_in_a_row < PROPOSALS_PER_TURN:
            return False
        ended = [r for r in self.results.values() if r.state == "infeasible" or r.settled]
        running = [*self._running_here().values(), *self.elsewhere.values()]
        tried = {
            (c.architecture, *sorted(c.training.items()))
            for c in (*ended, *running)
            if c is not None
        }
        known = len(tried) >= self.space.count() * self.space.count_training()
        return known or self.refused_in_a_row >= MOST_REFUSED_IN_A_ROW

    def left(self) -> int | None:
        """Trials that no process has started yet; None if only time limits the search."""
        if self.over():
            return 0
        if self.limits.trials is None:
            return None
        running = len(self.running) + len(self.elsewhere)
        return max(0, self.limits.trials - len(self._finished()) - running)

    def _look(self) -> None:
        """Takes note of what all processes have finished and what the others are running."""
        self.pulse.beat(trial for trial, _ in self.running.values())
        ended, running = look(self.study, self.results)
        self.results |= {result.trial: result for result in ended}
        self.elsewhere = {
            number: Candidate(r.architecture, r.training) if r else None
            for number, r in running.items()
            if number not in self.running
        }
        busy = self.running.keys() | self.elsewhere.keys()
        for number, begin in self.put_off:
            came = self.results.get(number)
            if number not in busy and not (came and came.settled):
                self.untried.append(begin)
        self.put_off = [(number, begin) for number, begin in self.put_off if number in busy]

    def loop(self, pool: list[pools.Worker]) -> None:
        """Until nothing is left to start and nothing runs. What runs when it is interrupted is
        recorded as failed."""
        try:
            while self.running or not self.over():
                for worker in pool:
                    if worker.order is None and self.left() != 0:
                        self._give(worker)
                if not self.running and self.left() == 0:
                    time.sleep(IDLE_S)
                idle = self.left() != 0 and not all(worker.order for worker in pool)
                for worker in pools.ready(pool, 0.0 if idle else 1.0) if self.running else []:
                    with uninterrupted():
                        self._take(worker, pool)
                self._look()
                self.progress.standing(self._standing())
                if self._seconds_to_go() < -OVERTIME_S:
                    break
        finally:
            with uninterrupted():
                self._record_all(pool)
        if self._exhausted():
            self.progress.event(
                f"the last {self.refused_in_a_row} proposals were over the budget or known: the "
                "space seems exhausted; a larger --budget-kb or a wider --space holds more"
            )

    def _give(self, worker: pools.Worker) -> None:
        """An architecture that fits and has not been measured goes to the worker, if one of the
        next few proposals is one."""
        for _ in range(PROPOSALS_PER_TURN):
            # another process takes a trial for dead if this one stood still at choosing
            with contextlib.suppress(GivenUp):
                if self._propose(worker):
                    return

    def _propose(self, worker: pools.Worker) -> bool:
        """Whether the worker needs no other proposal: it has this one, or there is none left."""
        begin = self.untried.pop(0) if self.untried else None
        trial = ask(self.study, self.inputs.seed, begin)
        architecture = self.space.sample(trial, self.job.dataset.clip_s)
        candidate = Candidate(str(architecture), self.space.sample_training(trial))
        running = self._running_here() | self.elsewhere
        if self._refused(trial, architecture, candidate) or self._repeated(
            trial, candidate, running, begin
        ):
            self.refused_in_a_row += 1
            return False
        self.refused_in_a_row = 0
        if self._covered(trial):
            withdraw(self.study, trial)
            self.untried[:0] = [begin] if begin else []
            return True
        start(trial, *candidate)
        if self._repeated(trial, candidate, self._started_before(trial), begin):
            return False
        self.running[trial.number] = trial, candidate
        stem, seed = f"{self.place}/{trial.number:05d}", self.inputs.seed_of(trial.number)
        before = trained_before(*candidate, self.results.values())
        bars = self._bars(architecture)
        worker.give(Order(trial.number, *candidate, seed, stem, bars, before))
        return True

    def _covered(self, trial: Trial) -> bool:
        """Whether other processes have come first and run all that is left.

        Trials are numbered in the order in which they are asked for, so that of processes that
        ask at the same moment only the first ones go on.
        """
        if self.limits.trials is None:
            return False
        self._look()
        before = [n for n in (*self.running, *self.elsewhere) if n < trial.number]
        return len(self._finished()) + len(before) >= self.limits.trials

    def _bars(self, architecture: Architecture) -> dict[int, float]:
        """What it must reach at each rung, by the trials that have ended when it starts. What the
        search begins with is trained in full."""
        epochs = rung_epochs(self.inputs.proxy.epochs)
        if str(architecture) in self.begin:
            return dict.fromkeys(epochs, 0.0)
        parameters = cost_of(architecture, self.inputs).parameters
        return bars(parameters, epochs, ran(self.results.values()))

    def _refused(self, trial: Trial, architecture: Architecture, candidate: Candidate) -> bool:
        cost = cost_of(architecture, self.inputs)
        over = excesses(architecture, cost, self.inputs)
        if not over:
            return False
        for limit, share in over.items():
            trial.set_constraint(limit, share)
        reason = ", ".join(why(limit, share, architecture, cost) for limit, share in over.items())
        result = candidate.result("infeasible", f"estimated {reason}")
        self._record(trial, msgspec.structs.replace(result, cost=cost))
        return True

    def _repeated(
        self,
        trial: Trial,
        candidate: Candidate,
        running: Mapping[int, Candidate | None],
        begin: dict[str, Any] | None,
    ) -> bool:
        """A known candidate is not trained again; the sampler learns its result once more. Nor is
        one that is among the `running`, but what a search should `begin` with waits for the end of
        that: its machine may die."""
        known = [r for r in self.results.values() if (r.architecture, r.training) == candidate]
        settled = [r for r in known if r.settled and r.state != "repeated"]
        twins = [number for number, other in running.items() if other == candidate]
        if settled and settled[0].state == "infeasible":
            result = settled[0]
        elif settled:
            reason = f"same architecture as trial {settled[0].trial}"
            result = msgspec.structs.replace(settled[0], state="repeated", reason=reason)
        elif twins:
            result = candidate.result("repeated", f"trial {twins[0]} is running it")
            if begin:
                self.put_off.append((twins[0], begin))
        else:
            return False
        self._record(trial, msgspec.structs.replace(result, seconds=0.0, finished_at=0.0))
        return True

    def _running_here(self) -> dict[int, Candidate | None]:
        return {number: candidate for number, (_, candidate) in self.running.items()}

    def _started_before(self, trial: Trial) -> dict[int, Candidate | None]:
        """What other processes that asked before this one have started. Those that have not chosen
        yet are waited for: of two that start the same at the same moment the first one goes on."""
        until = time.monotonic() + MOST_CHOOSING_S
        while True:
            self._look()
            before = {n: other for n, other in self.elsewhere.items() if n < trial.number}
            if None not in before.values() or time.monotonic() > until:
                return before
            time.sleep(CHOOSING_S)

    def _record_all(self, pool: list[pools.Worker]) -> None:
        """What has been answered, and that nothing came of what still runs."""
        for worker in pools.ready(pool, timeout_s=0.0):
            self._hear(worker)
        for result in list(self.answered.values()):
            self._record_answer(result)
        for trial, candidate in list(self.running.values()):
            self._record(trial, candidate.result("failed", "the search was ended"))

    def _hear(self, worker: pools.Worker) -> pools.Answer:
        """The worker's answer, kept until it is recorded: a database that is away may be waited
        for, and that be broken off."""
        number = worker.order.trial if worker.order else -1
        answer = worker.take()
        _, candidate = self.running[number]
        result = msgspec.structs.replace(answer.result, trial=number, training=candidate.training)
        self.answered[number] = result
        return msgspec.structs.replace(answer, result=result)

    def _record_answer(self, result: TrialResult) -> None:
        trial, _ = self.running[result.trial]
        self._record(trial, result)
        del self.answered[result.trial]
        self.progress.event(event_of(result, self.inputs))
        self._add_format(result)

    def _take(self, worker: pools.Worker, pool: list[pools.Worker]) -> None:
        answer = self._hear(worker)
        result = answer.result
        self._record_answer(result)
        if answer.trouble:
            raise UserError(answer.trouble)
        self._refuse_failing(result)
        self._refuse_slow(result)
        if not worker.alive():
            pool[pool.index(worker)] = pools.start(self.task, self.folder / "workers.log")

    def _refuse_failing(self, result: TrialResult) -> None:
        self.failed_in_a_row = self.failed_in_a_row + 1 if result.state == "failed" else 0
        if self.failed_in_a_row >= MOST_FAILED_IN_A_ROW:
            raise UserError(
                f"the last {MOST_FAILED_IN_A_ROW} trials failed, the last one because: "
                f"{result.reason}; see {self.folder / 'workers.log'}; the same command goes on"
            )

    def _refuse_slow(self, result: TrialResult) -> None:
        self.slow_in_a_row = self.slow_in_a_row + 1 if result.state == "infeasible" else 0
        if self.slow_in_a_row >= MOST_SLOW_IN_A_ROW:
            timed = [r.latency.latency_ms for r in self.results.values() if r.latency]
            raise UserError(
                f"the last {MOST_SLOW_IN_A_ROW} networks are all slower than --max-latency-ms "
                f"{self.inputs.budget.latency_ms:g}, the fastest of the study takes "
                f"{min(timed):.3g} ms: raise the limit, or give a --space of smaller networks"
            )

    def time_front(self) -> None:
        """Times the networks of the front again, together and at length, so that they compare;
        one that then is over the limit makes room for others, which are timed as well."""
        remote = self.inputs.profile.remote
        if self.inputs.profile.mcu or (remote and not remote.ssh):
            return
        for _ in range(MOST_FRONTS_TIMED):
            points = front(self.results.values(), self.inputs.size_kind, self.inputs.budget)
            if {r.trial for r in points} <= front_times(self.study).keys():
                return
            self.progress.event(f"timing the {len(points)} networks of the front together")
            try:
                files = [fetch(r.artifact or "") for r in points]
                found, away = latencies_if_there(files, self.inputs.profile, TOGETHER)
            except (UserError, OSError) as error:
                found, away = [], str(error)
            if away:
                self.progress.event(f"the front keeps its first times: {away}")
                return
            for result, latency in zip(points, found, strict=True):
                if latency:
                    self.results[result.trial] = time_again(self.study, result, latency)

    def _record(self, trial: Trial, result: TrialResult) -> None:
        self.results[trial.number] = record(self.study, trial, result, self.inputs)
        self.running.pop(trial.number, None)

    def _finished(self) -> list[TrialResult]:
        return [r for r in self.results.values() if r.state in ("complete", "stopped")]

    def _seconds_of_training(self) -> list[float]:
        """Of each trial that trained its network to the end."""
        complete = [r for r in self.results.values() if r.state == "complete"]
        return [r.seconds for r in complete if r.weights_of is None]

    def too_late(self) -> bool:
        """Whether a trial that is started now would usually end too late."""
        seconds = self._seconds_of_training()
        usual = median(seconds) if seconds else 0.0
        return self._seconds_to_go() <= max(0.0, usual - OVERTIME_S)

    def _seconds_to_go(self) -> float:
        """Until the search is to end, below 0 afterwards; endless without --minutes."""
        if self.limits.minutes is None:
            return math.inf
        return 60 * self.limits.minutes - (time.monotonic() - self.start)

    def _standing(self) -> Standing:
        finished, left = self._finished(), self.left()
        states = [r.state for r in self.results.values()]
        return Standing(
            done=len(finished),
            running=len(self.running),
            left=left,
            infeasible=states.count("infeasible"),
            failed=states.count("failed"),
            best=best_of(finished, self.inputs),
            seconds_left=self._seconds_left(left),
        )

    def _seconds_left(self, left: int | None) -> float | None:
        seconds = self._seconds_of_training()
        by_time = self._seconds_to_go() if self.limits.minutes else None
        if left is None or not seconds or not self.running:
            return None if by_time is None else max(0.0, by_time)
        to_do = left + len(self.running) / 2
        by_trials = to_do * sum(seconds) / len(seconds) / len(self.running)
        return by_trials if by_time is None else max(0.0, min(by_time, by_trials))
