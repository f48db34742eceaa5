"""Published networks against what a search found

On ESC-10 (official folds) and Free Spoken Digit (one speaker left out), each published network of
at most 128 KB in int8, and the most accurate network of at most its size that a search found: all
trained in full by one recipe (one seed), and the accuracy in % of the exported file on two folds,
pooled, with its 95 % interval over recordings. Published networks keep their front end and take the
data set's clip length. The search (space `small`, budget 128 KB, 60 trials of 20 epochs) validates
on the fold before the last; the two folds here are the last, which it never saw, and the first,
which it trained on, so the choice of the architecture has seen part of the second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import nas
from nas.arch import parse
from nas.cost import estimate
from nas.dataset import Dataset, load
from nas.folds import cross_validated
from nas.pareto import best_within
from nas.pipeline import Job
from nas.published import architecture_named, published
from nas.record import KB, Proxy
from nas.shipped import load_target

Row = dict[str, Any]
DATA = ("ESC-10", "free-spoken-digit-dataset")
MOST_KB = 128
PROXY, FULL = Proxy(epochs=20), Proxy(epochs=60)
TRIALS = 60


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """For each data set the search, then a row for each published network, smallest first."""
    if "NAS_DATA" not in os.environ:
        return
    for name in DATA:
        yield f"{name}: the search", partial(searched, name)
        data = load(path(name))
        for network in sorted(published(), key=lambda n: predicted_kb(n, data)):
            if predicted_kb(network, data) <= MOST_KB:
                yield f"{name}: {network}", partial(compared, name, network)


def searched(name: str) -> Row:
    """Its study stays in studies/, and goes on where it was cut off."""
    study = nas.search(
        name=study_of(name),
        data=path(name),
        space="small",
        budget_kb=MOST_KB,
        trials=TRIALS,
        proxy=PROXY,
    )
    return {"trials": len(study.trials)}


def compared(name: str, network: str) -> Row:
    """The published network, and the best that the search found at no more than its size."""
    text = str(int8(network, load(path(name)).clip_s))
    kb, accuracy = in_full(name, text)
    row: Row = {"KB": kb, "accuracy": accuracy}
    best = best_within(nas.front(study_of(name)), "file_bytes", kb)
    if best is None:
        return row | {"found": "nothing so small"}
    found_kb, found = in_full(name, best.architecture)
    return row | {"found": f"trial {best.trial}", "found, KB": found_kb, "found accuracy": found}


@cache
def in_full(name: str, text: str) -> tuple[float, str]:
    """(predicted KB, "accuracy (low-high)" in %) over the first and the last fold."""
    data = load(path(name))
    job = Job(data, load_target("host"), FULL)
    score = cross_validated(parse(text), job, 0, (data.folds[0], data.folds[-1])).pooled
    figures = (100 * v for v in (score.accuracy, score.accuracy_low, score.accuracy_high))
    accuracy = "{:.1f} ({:.1f}-{:.1f})".format(*figures)
    return round(estimate(parse(text), len(data.classes)).file_bytes / KB, 2), accuracy


def int8(network: str, clip_s: float) -> Any:
    return architecture_named(network, "int8_channel_none", clip_s)[0]


def predicted_kb(network: str, data: Dataset) -> float:
    return estimate(int8(network, data.clip_s), len(data.classes)).file_bytes / KB


def study_of(name: str) -> str:
    return f"bench-published-{name}"


def path(name: str) -> str:
    return str(Path(os.environ["NAS_DATA"]) / name)
