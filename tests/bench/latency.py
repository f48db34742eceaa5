"""Latency: how far ten measurements of one file lie apart

Untrained networks by name, measured ten times on one thread while another process keeps a CPU
busy. The spread is the largest ratio to the reference network less the smallest, as a share of
their median. `quick` is what every trial takes, `thorough` what `nas measure` and `nas export`
take; a search's front is timed together in the end, for at least twice as long as `quick`. Seconds
are those of one measurement. This virtual machine's host was busy: one fixed loop of Python took 15
or 28 microseconds, by the moment. On a quieter one the lowest times of all, the figure of then,
spread by 1.6 to 2.9 % (thorough) and 1.7 to 6.5 % (quick).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch

from nas.measure import QUICK, THOROUGH, Protocol, latency
from nas.network import build, to_onnx
from nas.published import architecture_named
from nas.quantize import quantize
from nas.record import KB
from nas.shipped import load_target

Row = dict[str, object]
NETWORKS = ("bcresnet-1", "bcresnet-8", "lim2021-base", "lim2021-ir")
REPEATS = 10


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    for name in NETWORKS:
        yield name, partial(spread, name)


def spread(name: str) -> Row:
    model = untrained(name)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        quick, thorough = repeated(model, QUICK), repeated(model, THOROUGH)
    finally:
        busy.kill()
        busy.wait()
    return {
        "KB": len(model) / KB,
        "ms": thorough.pop("ms"),
        **{f"thorough, {key}": value for key, value in thorough.items()},
        **{f"quick, {key}": value for key, value in quick.items() if key != "ms"},
    }


def repeated(model: bytes, protocol: Protocol) -> dict[str, float]:
    start = perf_counter()
    found = [latency(model, load_target("host"), protocol) for _ in range(REPEATS)]
    seconds = (perf_counter() - start) / REPEATS
    ratios = [one.reference_ratio for one in found]
    apart = 100 * (max(ratios) - min(ratios)) / median(ratios)
    return {"ms": median(one.latency_ms for one in found), "spread, %": apart, "s": seconds}


def untrained(name: str) -> bytes:
    architecture, classes = architecture_named(name)
    torch.manual_seed(0)
    model = to_onnx(build(architecture, classes or 10), architecture.front_end.shape)
    noise = np.random.default_rng(0).standard_normal((32, *architecture.front_end.shape))
    quantized = quantize(model, architecture.quantization, noise.astype(np.float32))
    return bytes(quantized.SerializeToString())
