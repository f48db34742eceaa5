"""Sampled architectures of every space export, quantise and run, close to their float parents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from choosing import RandomTrial
from test_network import awake

from nas.arch import Architecture, Quantization
from nas.measure import logits
from nas.network import build, to_onnx
from nas.quantize import quantize
from nas.shipped import names
from nas.space import load_space

# Root mean square error of the logits as a share of their spread. Seen: at most 0.01.
TOLERANCE = 0.05


@pytest.mark.parametrize("samples", [2, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", names("spaces"))
def test_samples_quantise_and_run_close_to_their_float_parents(name, samples):
    space = load_space(name)
    for seed in range(samples):
        torch.manual_seed(seed)
        architecture = space.sample(RandomTrial(seed), clip_s=0.3)
        int8 = replace(architecture, quantization=Quantization("int8"))
        assert relative_error(int8) <= TOLERANCE, str(int8)


def relative_error(architecture: Architecture) -> float:
    network = awake(build(architecture, classes=10))
    shape = architecture.front_end.shape
    clips = np.random.default_rng(0).standard_normal((16, *shape), np.float32)
    model = quantize(to_onnx(network, shape), architecture.quantization, clips)
    with torch.no_grad():
        expected = network(torch.from_numpy(clips)).numpy()
    found = logits(model.SerializeToString(), clips)
    assert np.isfinite(found).all()
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())
