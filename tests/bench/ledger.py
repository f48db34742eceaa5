"""Predicted bytes against real files

200 random architectures of all built-in search spaces, which hold every block kind between them, in
each number format in turn: the length that `nas show` predicts from the structure alone against the
file that was exported, quantised and slimmed (norms set at random, as training would leave them:
untrained ones are equal, and equal tensors are stored once).
Aim: within 1 % or 100 bytes. The largest misses are of any one file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import optuna
import torch
from torch import nn

from nas.arch import Architecture, Quantization
from nas.blocks import GlobalResponseNorm
from nas.cost import estimate
from nas.network import build, to_onnx
from nas.quantize import quantize
from nas.shipped import names
from nas.space import load_space

Row = dict[str, Any]
INT8 = itertools.product(("channel", "tensor"), ("none", "stem", "head", "both"))
FORMATS = [Quantization("float32"), Quantization("float16")] + [
    Quantization("int8", weights, parts) for weights, parts in INT8
]
optuna.logging.set_verbosity(optuna.logging.WARNING)
SAMPLES, CLASSES = 20, 10


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """One row per number format."""
    for number, quantization in enumerate(FORMATS):
        yield str(quantization), partial(row, number, quantization)


def row(number: int, quantization: Quantization) -> Row:
    spaces = names("spaces")
    kinds, misses, shares, outside = set(), [], [], 0
    for sample in range(SAMPLES):
        seed = number * SAMPLES + sample
        space = load_space(spaces[seed % len(spaces)])
        sampler = optuna.samplers.RandomSampler(seed)
        trial = optuna.create_study(sampler=sampler).ask()
        architecture = replace(space.sample(trial, clip_s=1.0), quantization=quantization)
        real, predicted = real_bytes(architecture, seed), estimate(architecture, CLASSES).file_bytes
        kinds |= {stage.kind for stage in architecture.stages}
        misses.append(abs(predicted - real))
        shares.append(100 * misses[-1] / real)
        outside += misses[-1] > max(100, 0.01 * real)
    return {
        "architectures": SAMPLES,
        "block kinds": len(kinds),
        "exact": misses.count(0),
        "outside the aim": int(outside),
        "largest miss, bytes": max(misses),
        "largest miss, %": round(max(shares), 2),
    }


def real_bytes(architecture: Architecture, seed: int) -> int:
    torch.manual_seed(seed)
    network = build(architecture, CLASSES)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.normal_(layer.bias, 0, 0.3)
        if isinstance(layer, GlobalResponseNorm):
            nn.init.normal_(layer.gamma, 0, 0.3)
            nn.init.normal_(layer.beta, 0, 0.3)
    shape = architecture.front_end.shape
    clips = np.random.default_rng(seed).standard_normal((8, *shape), np.float32)
    return int(quantize(to_onnx(network, shape), architecture.quantization, clips).ByteSize())
