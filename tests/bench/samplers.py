"""Samplers on replayed trials

Which of Optuna's samplers should propose? All search the space `small` within 64 KB for 20 minutes
of one process, from the same ladder, behind the same gate, without early stopping and other
formats. The clock is a replay's: a proposal costs the processor time that it takes here, and a
trial costs the time, and reaches the accuracy, that extremely randomised trees (Geurts, Ernst &
Wehenkel 2006) learnt from real ones: those that the bench `engine` trained in full in its runs
without early stopping (tests/bench/trials.jsonl; on a CPU without VNNI, before int8 sums were exact
there). To each accuracy a random one of the trees' out-of-bag errors is added, a bound on the noise
of one training. "R2" is that of the out-of-bag accuracies. The figures are medians over five seeds
of the hypervolume (as in the bench `engine`), with their quartiles, and of the trials in the whole
time. TPE is as in nas/sampler.py, the others are as Optuna has them; NSGA-II's first generation, of
50 networks by default, is random; GP leaves choices that not every network has to chance. All real
trials were proposed by TPE or the ladder, so the trees know best what TPE likes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState
from sklearn.ensemble import ExtraTreesRegressor

from nas.arch import Architecture, parse
from nas.cost import Cost, estimate
from nas.pareto import hypervolume
from nas.record import KB, Budget
from nas.sampler import sampler
from nas.space import load_space
from nas.warm import beginnings, ladder

Row = dict[str, Any]
TRIALS = Path(__file__).with_name("trials.jsonl")
BUDGET = Budget(size_bytes=64 * KB)
SPACE = load_space("small")
CLASSES = 10
DATA = ("free-spoken-digit-dataset", "ESC-10")
SHARES = {"at 1/4": 0.25, "at the end": 1.0}
SECONDS = 1200.0
SEEDS = range(5)
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "TPE": sampler,
    "NSGA-II": lambda seed: NSGAIISampler(seed=seed),
    "NSGA-II, 12 in a generation": lambda seed: NSGAIISampler(population_size=12, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "GP": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
}


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """How good the replay is, then the samplers, the slowest last."""
    if not TRIALS.exists():
        return
    for data in DATA:
        yield f"{data}, real trials", partial(quality, data)
    for name in SAMPLERS:
        for data in DATA:
            yield f"{data}, {name}", partial(compared, data, name)


class Learnt(NamedTuple):
    """What the trials of one data set teach."""

    accuracy: ExtraTreesRegressor
    log_seconds: ExtraTreesRegressor
    real: NDArray[np.float64]
    clip_s: float

    @property
    def errors(self) -> NDArray[np.float64]:
        return self.real - np.asarray(self.accuracy.oob_prediction_)


@cache
def learnt(data: str) -> Learnt:
    rows = [row for row in map(json.loads, TRIALS.read_text().splitlines()) if row["data"] == data]
    networks = [parse(row["architecture"]) for row in rows]
    known = [features(network) for network in networks]
    real = np.array([row["accuracy"] for row in rows])
    seconds = np.log([row["seconds"] for row in rows])
    trees = [
        ExtraTreesRegressor(200, min_samples_leaf=2, bootstrap=True, oob_score=True, random_state=0)
        for _ in range(2)
    ]
    accuracy, log_seconds = trees[0].fit(known, real), trees[1].fit(known, seconds)
    return Learnt(accuracy, log_seconds, real, networks[0].front_end.clip_s)


def quality(data: str) -> Row:
    found = learnt(data)
    return {
        "real trials": len(found.real),
        "R2": round(found.accuracy.oob_score_, 2),
        "R2 of log seconds": round(found.log_seconds.oob_score_, 2),
        "error, points": round(100 * float(np.abs(found.errors).mean()), 1),
    }


def features(architecture: Architecture) -> list[float]:
    """Its choices in the space, -1 for what was not asked, and the logarithms of its costs."""
    choices = SPACE.choices_of(architecture) or {}
    cost = cost_of(architecture)
    costs = [math.log2(n) for n in (cost.file_bytes, cost.parameters, cost.macs)]
    return [float(number(name, choices.get(name, -1))) for name in questions()] + costs


def number(name: str, choice: int | str) -> int:
    """A word is its place among all words that were ever chosen for the question."""
    return choice if isinstance(choice, int) else questions()[name].index(choice)


@cache
def questions() -> dict[str, list[str]]:
    """All that the space asks, and the words that answer it, in a thousand random networks."""
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    found: dict[str, set[str]] = {}
    for _ in range(1000):
        trial = study.ask()
        SPACE.sample(trial, clip_s=1.0)
        for name, choice in trial.params.items():
            found.setdefault(name, set()).update([choice] if isinstance(choice, str) else [])
    return {name: sorted(words) for name, words in sorted(found.items())}


@cache
def cost_of(architecture: Architecture) -> Cost:
    return estimate(architecture, CLASSES)


def compared(data: str, name: str) -> Row:
    runs = [replay(data, SAMPLERS[name](seed), seed) for seed in SEEDS]
    row: Row = {}
    for when in SHARES:
        low, middle, high = quantiles([run[when] for run in runs], n=4, method="inclusive")
        row[when] = f"{middle:.3f} ({low:.3f}-{high:.3f})"
    return row | {"trials": round(float(np.median([run["trials"] for run in runs])))}


def replay(data: str, proposer: BaseSampler, seed: int) -> dict[str, float]:
    """Hypervolume after each share of the time, and the number of trials."""
    random, clip_s, clock = np.random.default_rng(seed), learnt(data).clip_s, 0.0
    study = optuna.create_study(sampler=proposer, directions=["maximize", "minimize"])
    for choices in begin(clip_s, seed):
        study.enqueue_trial(choices)
    known: dict[Architecture, float] = {}
    finished: list[tuple[float, float, float]] = []
    while clock < SECONDS:
        start = time.process_time()
        trial = study.ask()
        architecture = SPACE.sample(trial, clip_s)
        clock += time.process_time() - start
        size = cost_of(architecture).file_bytes
        if size > BUDGET.size_bytes:
            trial.set_constraint("file_bytes", size / BUDGET.size_bytes - 1)
            study.tell(trial, state=TrialState.PRUNED)
            continue
        if architecture not in known:
            known[architecture], seconds = outcome(data, architecture, random)
            clock += seconds
            finished.append((clock, size, known[architecture]))
        study.tell(trial, [known[architecture], math.log2(size / KB)])
    reached = {when: volume(finished, share * SECONDS) for when, share in SHARES.items()}
    return reached | {"trials": len(finished)}


def begin(clip_s: float, seed: int) -> list[dict[str, Any]]:
    """The choices of the ladder."""

    def size(architecture: Architecture) -> int | None:
        found = cost_of(architecture).file_bytes
        return found if found <= BUDGET.size_bytes else None

    steps = ladder(SPACE, clip_s, size, BUDGET.size_bytes, seed)
    return list(beginnings(steps, SPACE, clip_s, lambda network: True).values())


def outcome(
    data: str, architecture: Architecture, random: np.random.Generator
) -> tuple[float, float]:
    """(accuracy, seconds) of its trial."""
    found, asked = learnt(data), [features(architecture)]
    accuracy = found.accuracy.predict(asked)[0] + random.choice(found.errors)
    return float(np.clip(accuracy, 0.0, 1.0)), math.exp(found.log_seconds.predict(asked)[0])


def volume(finished: list[tuple[float, float, float]], seconds: float) -> float:
    return hypervolume([(size, acc) for at, size, acc in finished if at <= seconds], BUDGET)
