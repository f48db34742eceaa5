"""Bundles of real studies, from the search to a simulated board

ESC-10 and Free Spoken Digit, each by one search of the space that it has by default for an
STM32F746ZG (Cortex-M7) within 128 KB of flash, 37 KB of them its runtime (60 trials, 20 epochs).
The most accurate network whose file has at most 16 KB, and at most 64 KB, is exported, beside
published networks in int8 by the same full training (60 and 30 epochs, one seed). "Promised" is the
accuracy on the validation fold after the short training of the search, "validation" and "test"
(with its 95 % interval) are those of the file that ships; the test fold was heard once. "hear.py"
runs classifier.onnx on the raw test recordings with onnxruntime (tests/bench/peers/hear.py;
soundfile reads, soxr resamples): the share that get the same label as from the features and
model.onnx.
Instructions, flash and RAM are those of the bundle's C on QEMU's Cortex-M7, front end included;
"equal" says on how many of the golden clips its labels and logits are those of ONNX Runtime, and
its features within 0.001 of those that the network was trained on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import nas
from nas.arch import parse
from nas.cost import estimate
from nas.dataset import load
from nas.features import compute
from nas.firmware import simulate
from nas.folds import answers
from nas.measure import logits
from nas.pareto import best_within
from nas.pipeline import Job, score_of
from nas.published import architecture_named
from nas.record import KB, Proxy, Score, in_full
from nas.shipped import load_target

Row = dict[str, Any]
EPOCHS = {"ESC-10": 60, "free-spoken-digit-dataset": 30}
SIZES_KB = (16, 64)
PUBLISHED = ("lim2021-ds", "bcresnet-2")
TRIALS = 60
HEAR = Path(__file__).parent / "peers" / "hear.py"


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """For each data set its bundles, then the published networks."""
    if "NAS_DATA" not in os.environ:
        return
    for name in EPOCHS:
        for most_kb in SIZES_KB:
            yield f"{name}: {most_kb} KB", partial(bundled, name, most_kb)
        for network in PUBLISHED:
            yield f"{name}: {network}", partial(published, name, network)


def bundled(name: str, most_kb: int) -> Row:
    """Study and bundle stay in studies/: the first goes on where it was cut off."""
    study, out = f"bench-bundles-{name}", f"studies/bench-bundles-{name}/{most_kb}-kb"
    found = nas.search(
        name=study,
        data=path(name),
        target="stm32f746zg",
        budget_kb=128,
        trials=TRIALS,
    )
    chosen = best_within(found.trials, "file_bytes", most_kb)
    assert chosen
    made = nas.export(study, trial=chosen.trial, out=out, epochs=EPOCHS[name])
    return {
        "KB": made.file_bytes / KB,
        "promised, %": 100 * made.promised_accuracy,
        "validation, %": 100 * made.validation_accuracy,
        "test, %": interval(made.test_accuracy, made.test_accuracy_low, made.test_accuracy_high),
        "hear.py, same label, %": 100 * heard_alike(Path(out), name),
        **simulated(Path(out) / "c"),
    }


def heard_alike(bundle: Path, name: str) -> float:
    """On the test recordings of one window."""
    data = load(path(name))
    architecture = parse((bundle / "architecture.txt").read_text().strip())
    test = compute(data, architecture.front_end, splits=("test",)).split("test")
    said = logits((bundle / "model.onnx").read_bytes(), test.features).argmax(axis=1)
    windows = np.bincount(test.recordings)
    single = windows[test.recordings] == 1
    files = [str(data.root / test.clips[i].path) for i in test.recordings[single]]
    command = [sys.executable, str(HEAR), str(bundle / "classifier.onnx"), *files]
    heard = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return float(
        np.mean([data.classes[i] == word for i, word in zip(said[single], heard, strict=True)])
    )


def simulated(folder: Path) -> Row:
    with tempfile.TemporaryDirectory() as copy:
        board = simulate(Path(shutil.copytree(folder, Path(copy) / "c")), "m7")
    equal = min(board.equal_labels, board.equal_logits, board.equal_features)
    equal = min(equal, board.equal_waveform_labels)
    return {
        "network, M instructions": board.network_instructions / 1e6,
        "front end, M instructions": board.front_end_instructions / 1e6,
        "flash, KB": board.flash_bytes / KB,
        "RAM, KB": board.ram_bytes / KB,
        "equal": f"{equal} of {board.clips}",
    }


def published(name: str, network: str) -> Row:
    """On the same test fold."""
    data = load(path(name))
    architecture, _ = architecture_named(network, "int8_channel_none", data.clip_s)
    job = Job(data, load_target("host"), in_full(Proxy(), EPOCHS[name]))
    score: Score = score_of(*answers(architecture, job), data)
    return {
        "KB": estimate(architecture, len(data.classes)).file_bytes / KB,
        "test, %": interval(score.accuracy, score.accuracy_low, score.accuracy_high),
    }


def interval(*shares: float | None) -> str:
    return "{:.1f} ({:.1f}-{:.1f})".format(*(100 * (share or 0.0) for share in shares))


def path(name: str) -> str:
    return str(Path(os.environ["NAS_DATA"]) / name)
