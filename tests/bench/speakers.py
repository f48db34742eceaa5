"""New speakers, official folds

Free Spoken Digit (3,000 recordings of ten digits by six speakers) with one speaker left out, and
ESC-10 by its five official folds: each fold is the test split once, the fold before it is left for
validation, and all others train. One network for each data set and one recipe (one seed), of which
only the treatment of level differs: features relative to each clip's level (relmel), or plain
log-mel with random changes of level in training, or without. The figures are the accuracy in % of
the int8 file on the recordings of the fold, with its 95 % interval: over recordings of the same
speakers on Free Spoken Digit, over source recordings on ESC-10.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from nas.arch import parse
from nas.dataset import Dataset, load
from nas.features import compute
from nas.folds import Answers, answers, pooled
from nas.pipeline import Job
from nas.record import Proxy, Score
from nas.shipped import load_target

Row = dict[str, Any]
KEPT = Path("studies") / "bench-speakers"


class Case(NamedTuple):
    """A data set's folder and the network and recipe for it."""

    folder: str
    network: str
    recipe: Proxy


DIGITS = Case(
    "free-spoken-digit-dataset",
    "mel_r8000_t{clip_s:g}_f256_w256_h128_m40_d0_c1/conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0/"
    "ds_n1_k3x3_s1x1_c24_relu_q0_g0_p0/ds_n1_k3x3_s2x2_c32_relu_q0_g0_p0/"
    "ds_n2_k3x3_s2x2_c48_relu_q0_g0_p0/gap_c0_p0/int8_channel_none",
    Proxy(epochs=10, batch=32, learning_rate=0.008),
)
ESC10 = Case(
    "ESC-10",
    "mel_r16000_t{clip_s:g}_f1024_w1024_h512_m64_d0_c1/conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0/"
    "ds_n1_k3x3_s2x2_c32_relu_q0_g0_p0/ds_n2_k3x3_s2x2_c48_relu_q0_g0_p0/gap_c0_p0/"
    "int8_channel_none",
    Proxy(epochs=40, batch=16, learning_rate=0.008),
)
GAIN = 1.5
WAYS = {"relmel": ("rel", 0.0), f"logmel, gain {GAIN:g}": ("log", GAIN), "logmel": ("log", 0.0)}


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """A row for each fold, then one over all of them."""
    if "NAS_DATA" in os.environ:
        for case in (DIGITS, ESC10):
            folds = load(path(case)).folds
            for fold in folds:
                yield f"{case.folder}, {fold}", partial(row, case, (fold,))
            yield f"{case.folder}, all", partial(row, case, folds)


def row(case: Case, folds: tuple[str, ...]) -> Row:
    figures: Row = {}
    for way in WAYS:
        done = [tested(case, fold, way) for fold in folds]
        score = pooled([said for _, said in done], done[0][0].classes)
        figures["recordings"] = int(np.sum(score.confusion))
        figures[way] = interval(score)
    return figures


def tested(case: Case, fold: str, way: str) -> tuple[Dataset, Answers]:
    """The data set with this fold as its test split, and the answers, kept on disk."""
    kind, gain = WAYS[way]
    data = load(path(case), test_fold=fold)
    architecture = parse(kind + case.network.format(clip_s=data.clip_s))
    kept = KEPT / f"{case.folder}-{fold}-{kind}-{gain:g}.npy"
    if kept.exists():
        test = compute(data, architecture.front_end, splits=("test",)).split("test")
        return data, Answers(np.load(kept), test)
    recipe = msgspec.structs.replace(case.recipe, gain=gain)
    said = answers(architecture, Job(data, load_target("host"), recipe))
    KEPT.mkdir(parents=True, exist_ok=True)
    np.save(kept, said.outputs)
    return data, said


def interval(score: Score) -> str:
    low, high = 100 * score.accuracy_low, 100 * score.accuracy_high
    return f"{100 * score.accuracy:.1f} ({low:.1f}-{high:.1f})"


def path(case: Case) -> str:
    return str(Path(os.environ["NAS_DATA"]) / case.folder)
