"""Lim & Kwak 2021, rebuilt and searched

ESC-10 by its five official folds: each fold is the test split once, trained on three others (the
fourth is left for validation), and the accuracy is that of the exported file over all 400
recordings, with its 95 % interval. All networks are trained by one recipe (40 epochs, one seed).
The paper's own recordings are those of DCASE 2020 Task 1B (3 classes, 10 s), and its table gives
503 KB in float32 and 42.76 KB quantised; only its abstract is at hand, so the three networks are
reconstructions. The last rows are what a search of the space `lim2021` found in as much time as
the training of the three rows above took: 20-epoch proxies, budget 42.76 KB, fold 5 for test and
fold 4 for validation, so fold 4 has been seen by the choice and the other folds have not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import nas
from nas.arch import Architecture, parse, parse_quantization
from nas.dataset import load
from nas.features import compute
from nas.folds import Answers, pooled
from nas.measure import logits
from nas.pareto import recommended
from nas.pipeline import Job, artifact_of, trained
from nas.published import architecture_named
from nas.record import KB, Proxy, Score
from nas.shipped import load_target

Row = dict[str, Any]
ROWS = Path(__file__).parent / "rows" / "lim2021.jsonl"
FORMATS = ("float32", "int8_channel_none")
PAPER_KB = {"lim2021-base": "503", "lim2021-ds": "", "lim2021-ir": "42.76"}
RECIPE = Proxy(epochs=40, batch=16, learning_rate=0.008, gain=0.0)
STUDY = "bench-lim2021"


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """The three networks of the paper, then what a search of equal training time found."""
    if "NAS_DATA" in os.environ:
        for name in PAPER_KB:
            yield name, partial(published, name)
        yield "search of equal time", search
        yield "found: recommended", partial(found, best=False)
        yield "found: most accurate", partial(found, best=True)


def published(name: str) -> Row:
    return {"paper, KB": PAPER_KB[name], **folded(architecture_named(name)[0])}


def search() -> Row:
    """Its study stays in studies/. A search that is cut off must be deleted and begun again: its
    time counts from the start of the command."""
    seconds = sum(row["figures"]["training, s"] for row in rows_of_the_paper())
    study = nas.search(
        "lim2021",
        name=STUDY,
        data=esc10(),
        proxy=Proxy(epochs=20, batch=16, learning_rate=0.008, gain=0.0),
        minutes=seconds / 60 / (os.cpu_count() or 1),
    )
    return {"trials": len(study.trials)}


def found(best: bool) -> Row:
    """A network of the search's front, trained and tested as those of the paper."""
    front = nas.front(STUDY)
    chosen = front[-1] if best else recommended(front)
    return folded(parse(chosen.architecture))


def rows_of_the_paper() -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ROWS.read_text().splitlines()]
    return [row for row in lines if row["key"] in PAPER_KB]


def folded(architecture: Architecture) -> Row:
    """One training per fold, each exported in every number format."""
    tested: dict[str, list[Answers]] = {name: [] for name in FORMATS}
    sizes, start_s = {}, process_time()
    for fold in load(esc10()).folds:
        data = load(esc10(), test_fold=fold)
        architecture = replace(
            architecture, front_end=replace(architecture.front_end, clip_s=data.clip_s)
        )
        features = compute(data, architecture.front_end, splits=("train", "test"))
        training, test = features.split("train"), features.split("test")
        network = trained(architecture, Job(data, load_target("host"), RECIPE), training, 0)
        for name in FORMATS:
            variant = replace(architecture, quantization=parse_quantization(name))
            artifact = artifact_of(network, variant, training, 0).content
            sizes[name] = len(artifact)
            tested[name].append(Answers(logits(artifact, test.features), test))
    row: Row = {}
    for name in FORMATS:
        row[f"{name}, KB"] = round(sizes[name] / KB, 2)
        row[f"{name}, %"] = interval(pooled(tested[name], data.classes))
    return row | {"training, s": round(process_time() - start_s)}


def interval(figures: Score) -> str:
    low, high = 100 * figures.accuracy_low, 100 * figures.accuracy_high
    return f"{100 * figures.accuracy:.1f} ({low:.1f}-{high:.1f})"


def esc10() -> str:
    return str(Path(os.environ["NAS_DATA"]) / "ESC-10")
