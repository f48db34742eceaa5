"""Published networks against what a search found

On ESC-10 (official folds) and Free Spoken Digit (one speaker left out), each published network of
at most 128 KB in int8, and the most accurate network that a search found at no more than its size
and at no more than a third of it: all trained in full as `nas export` does (60 and 20 epochs, one
seed), and the accuracy in % of the exported file on two folds, pooled, with its 95 % interval over
recordings. Published networks keep their front end and take the data set's clip length. The search
(the space of the data set by default, budget 128 KB, 20 epochs, 120 trials) validates on the fold
before the last; the two folds here are the last, which it never saw, and the first, which it
trained on, so the choice of the architecture has seen part of the second. One training is noisy:
eight networks of ESC-10, trained by the same seed on a CPU without VNNI as well, differ by 0.7 to
7.5 points, 2.5 in the median.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nas
from nas.arch import parse
from nas.cost import estimate
from nas.dataset import Dataset, load, on_fold
from nas.folds import answers, pooled
from nas.pipeline import Job
from nas.published import architecture_named, published
from nas.record import KB, Proxy, in_full
from nas.shipped import load_target

Row = dict[str, Any]
# Free Spoken Digit has nine times as many recordings to train on.
FULL = {
    "ESC-10": in_full(Proxy(), 60),
    "free-spoken-digit-dataset": in_full(Proxy(), 20),
}
FOUND = Path(__file__).with_name("found.jsonl")
MOST_KB = 128
TRIALS = 120


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """For each data set the search, then a row for each published network, smallest first."""
    if "NAS_DATA" not in os.environ:
        return
    for name in FULL:
        yield f"{name}: the search", partial(searched, name)
        data = load(path(name))
        for network in sorted(published(), key=lambda n: predicted_kb(n, data)):
            if predicted_kb(network, data) <= MOST_KB:
                yield f"{name}: {network}", partial(compared, name, network)


def searched(name: str) -> Row:
    """Its study stays in studies/, and goes on where it was cut off; its front is kept in FOUND."""
    study = f"bench-published-{name}"
    record = nas.search(name=study, data=path(name), budget_kb=MOST_KB, trials=TRIALS)
    with FOUND.open("a") as file:
        for point in nas.front(study):
            row = {"data": name, "architecture": point.architecture, "bytes": point.file_bytes}
            file.write(json.dumps(row) + "\n")
    return {"trials": len(record.trials)}


def best_within(name: str, most_kb: float) -> str | None:
    """The front goes from small to large, and from less to more accurate."""
    rows = [row for row in map(json.loads, FOUND.read_text().splitlines()) if row["data"] == name]
    within = [row["architecture"] for row in rows if row["bytes"] <= most_kb * KB]
    return within[-1] if within else None


def compared(name: str, network: str) -> Row:
    """The published network, and the best that the search found at its size and at a third."""
    text = str(int8(network, load(path(name)).clip_s))
    kb, accuracy = tested(name, text)
    row: Row = {"KB": kb, "%": accuracy}
    for words, most_kb in {"found": kb, "at a third": kb / 3}.items():
        best = best_within(name, most_kb)
        if best:
            found_kb, found = tested(name, best)
            row |= {f"{words}, KB": found_kb, f"{words}, %": found}
    return row


@cache
def tested(name: str, text: str) -> tuple[float, str]:
    """(predicted KB, "accuracy (low-high)" in %) over the first and the last fold."""
    data = load(path(name))
    parts = [on_fold(data, fold) for fold in (data.folds[0], data.folds[-1])]
    jobs = [Job(part, load_target("host"), FULL[name]) for part in parts]
    with ProcessPoolExecutor(len(jobs), get_context("spawn")) as processes:
        said = list(processes.map(answers, repeat(parse(text)), jobs))
    score = pooled(said, data.classes)
    figures = (100 * v for v in (score.accuracy, score.accuracy_low, score.accuracy_high))
    accuracy = "{:.1f} ({:.1f}-{:.1f})".format(*figures)
    return round(estimate(parse(text), len(data.classes)).file_bytes / KB, 2), accuracy


def int8(network: str, clip_s: float) -> Any:
    return architecture_named(network, "int8_channel_none", clip_s)[0]


def predicted_kb(network: str, data: Dataset) -> float:
    return estimate(int8(network, data.clip_s), len(data.classes)).file_bytes / KB


def path(name: str) -> str:
    return str(Path(os.environ["NAS_DATA"]) / name)
