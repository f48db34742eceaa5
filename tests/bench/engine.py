"""The search engine against plain searches

Each run searches the space `small` within 64 KB for five minutes with two single-threaded
processes, from features that are in the cache. The engine is compared with itself without early
stopping; with random proposals behind the same gate, trained by the same loop, without early
stopping, the ladder to begin with, and other formats of what was trained; and with the script
tests/bench/peers/nsga2.py, which trains whatever is proposed, without changes of level. The figures
are the hypervolume (accuracy on the validation recordings against log2 KB from 1 to 64 KB, as a
share of the whole) of what was finished after a twentieth, a quarter, half and all of the time; the
trials that were finished, other formats of trained networks among them; and the share of the
processes' time that went into training.
Free Spoken Digit leaves one speaker out, ESC-10 has its official folds. The medians are those of
three seeds.

The last rows: trials an hour of the engine with one process, beside its median with two, and the
processor time that it takes to propose trial number 10,000.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import optuna

import nas
import nas.engine
from nas import rungs, study
from nas.cost import estimate
from nas.dataset import load
from nas.features import compute
from nas.pareto import hypervolume
from nas.record import KB, Budget, Proxy, StudyInputs
from nas.shipped import load_target
from nas.space import load_space

Row = dict[str, Any]
Finished = list[tuple[float, int, float]]  # seconds since the start, bytes, accuracy
FOLDER = Path(__file__).parent
ROWS = FOLDER / "rows" / "engine.jsonl"
TRIALS = FOLDER / "trials.jsonl"
MINUTES = float(os.environ.get("BENCH_MINUTES", "5"))
BUDGET = Budget(size_bytes=64 * KB)
SPACE = "small"
DATA = {"Free Spoken Digit": "free-spoken-digit-dataset", "ESC-10": "ESC-10"}
SHARES = {"at 1/20": 0.05, "at 1/4": 0.25, "at 1/2": 0.5, "at the end": 1.0}
SEEDS = range(3)


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """The most telling first: a row for each run, then the medians, then the speed."""
    if "NAS_DATA" in os.environ:
        for seed, how, data in product(SEEDS, RUNS, DATA):
            yield f"{data}, {how}, seed {seed}", partial(run, data, how, seed)
        for data, how in product(DATA, RUNS):
            yield f"{data}, {how}, median", partial(medians, data, how)
        yield "Free Spoken Digit, trials an hour", trials_an_hour
    yield "proposal of trial 10,000", proposal


def run(data: str, how: str, seed: int, workers: int = 2) -> Row:
    """One search in a folder of its own."""
    path = str(Path(os.environ["NAS_DATA"]) / DATA[data])
    fill_cache(path)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        finished, figures = RUNS[how](path, seed, workers)
    row: Row = {when: reached(finished, share) for when, share in SHARES.items()}
    within = [size for at, size, _ in finished if at <= 60 * MINUTES and size <= BUDGET.size_bytes]
    return row | {"within 64 KB": len(within)} | figures


def reached(finished: Finished, share: float) -> float:
    """Hypervolume of what was finished after this share of the time."""
    seconds = share * 60 * MINUTES
    return round(hypervolume([(kb, acc) for at, kb, acc in finished if at <= seconds], BUDGET), 4)


def fill_cache(path: str) -> None:
    data, space = load(path), load_space(SPACE)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    fronts = {space.sample(trial.ask(), data.clip_s).front_end for _ in range(20)}
    for front_end in sorted(fronts, key=str):
        compute(data, front_end)


def engine(path: str, seed: int, workers: int) -> tuple[Finished, Row]:
    start = time.time()
    found = nas.search(
        name="bench",
        data=path,
        space=SPACE,
        budget_kb=BUDGET.size_bytes / KB,
        minutes=MINUTES,
        workers=workers,
        seed=seed,
    )
    seconds = time.time() - start
    finished = [
        (trial.finished_at - start, trial.file_bytes or 0, trial.score.accuracy)
        for trial in found.trials
        if trial.state == "complete" and trial.score
    ]
    stopped = sum(trial.state == "stopped" for trial in found.trials)
    training = sum(trial.seconds_training for trial in found.trials)
    figures = {"trials": len(finished) + stopped, "stopped": stopped}
    return finished, figures | {"training, %": round(100 * training / seconds / workers)}


def without_stopping(path: str, seed: int, workers: int) -> tuple[Finished, Row]:
    with replaced(rungs, "SHARES", ()):
        found = engine(path, seed, workers)
    keep(path)
    return found


def keep(path: str) -> None:
    """Adds what was trained in full to the trials that the bench `samplers` replays."""
    with TRIALS.open("a") as file:
        for trial in study.load_study("bench").trials:
            if trial.state == "complete" and trial.score and trial.weights_of is None:
                row = {"data": Path(path).name, "architecture": trial.architecture}
                row |= {"accuracy": trial.score.accuracy, "seconds": round(trial.seconds, 2)}
                file.write(json.dumps(row) + "\n")


def random_proposals(path: str, seed: int, workers: int) -> tuple[Finished, Row]:
    def sampler(seed: int) -> optuna.samplers.BaseSampler:
        # In a wrapper, as a bare one is what a study has before its sampler is chosen.
        return optuna.samplers.PartialFixedSampler({}, optuna.samplers.RandomSampler(seed))

    with (
        replaced(study, "sampler", sampler),
        replaced(nas.engine, "ladder", lambda *_: []),
        replaced(nas.engine, "next_format", lambda *_: None),
        replaced(nas.engine, "trained_before", lambda *_: None),
        replaced(rungs, "SHARES", ()),
    ):
        return engine(path, seed, workers)


def script(path: str, seed: int, workers: int) -> tuple[Finished, Row]:
    start, storage = time.time(), f"sqlite:///{Path.cwd()}/study.db"
    optuna.create_study(storage=storage, study_name="plain", directions=["maximize", "minimize"])
    command = [sys.executable, str(FOLDER / "peers" / "nsga2.py"), path, SPACE, str(MINUTES)]
    with open("log", "w") as log:
        processes = [
            subprocess.Popen([*command, str(10 * seed + i), storage], stdout=log, stderr=log)
            for i in range(workers)
        ]
        time.sleep(60 * MINUTES)
        for process in processes:
            process.kill()
            process.wait()
    trials = optuna.load_study(study_name="plain", storage=storage).trials
    finished = [
        (t.datetime_complete.timestamp() - start, round(t.values[1] * KB), t.values[0])
        for t in trials
        if t.state == optuna.trial.TrialState.COMPLETE and t.datetime_complete
    ]
    return finished, {"trials": len(finished)}


RUNS = {
    "engine": engine,
    "NSGA-II script": script,
    "random behind the gate": random_proposals,
    "engine without early stopping": without_stopping,
}


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def medians(data: str, how: str) -> Row:
    """Of the runs of all seeds. Raises KeyError if one is missing."""
    rows = {row["key"]: row["figures"] for row in map(json.loads, ROWS.read_text().splitlines())}
    found = [rows[f"{data}, {how}, seed {seed}"] for seed in SEEDS]
    return {column: median(row[column] for row in found) for column in found[0]}


def trials_an_hour() -> Row:
    """One process, beside the median with two."""
    alone = run("Free Spoken Digit", "engine", 0, workers=1)["trials"]
    both = medians("Free Spoken Digit", "engine")["trials"]
    one, two = (round(count * 60 / MINUTES) for count in (alone, both))
    return {"1 process, trials/h": one, "2 processes, trials/h": two}


def proposal() -> Row:
    """The next of a study, kept in a file, of 9,999 trials with made-up accuracies."""
    space = load_space(SPACE)
    sampler = optuna.samplers.RandomSampler(seed=0)
    made = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    for number in range(9_999):
        trial = made.ask()
        cost = estimate(space.sample(trial, clip_s=1.0), classes=10)
        size = math.log2(cost.file_bytes / KB)
        made.tell(trial, (1 - math.exp(-size / 4) + 1e-6 * number, size))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        kept = study.open_study("many", None, no_inputs(), print)
        kept.add_trials(made.trials)
        seconds = []
        for _ in range(11):
            start = time.process_time()
            space.sample(study.ask(kept, seed=0), clip_s=1.0)
            seconds.append(time.process_time() - start)
    return {"seconds": round(median(seconds), 3), "longest, s": round(max(seconds), 3)}


def no_inputs() -> StudyInputs:
    """Of a study that is never run."""
    target = load_target("host")
    return StudyInputs(
        data="",
        data_fingerprint="",
        data_note="",
        classes=[],
        space_name=SPACE,
        space="",
        target=target.name,
        profile=target,
        size_kind=target.size_kind,
        budget=BUDGET,
        proxy=Proxy(),
        seed=0,
    )
