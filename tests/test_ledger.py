"""The predicted length of the file against real ones, over all block kinds and number formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from choosing import RandomTrial
from test_network import BLOCKS, awake, example

from nas.arch import Architecture, parse
from nas.cost import estimate
from nas.network import build, to_onnx
from nas.quantize import quantize
from nas.shipped import names
from nas.space import load_space

SCHEMES = ["float32", "float16", "int8_channel_none", "int8_tensor_both"]


def real_length(architecture: Architecture) -> int:
    network = awake(build(architecture, classes=10))
    shape = architecture.front_end.shape
    clips = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
    model = quantize(to_onnx(network, shape), architecture.quantization, clips)
    return len(model.SerializeToString())


def assert_predicted(architecture: Architecture) -> None:
    real = real_length(architecture)
    predicted = estimate(architecture, classes=10).file_bytes
    assert abs(predicted - real) <= max(100, 0.01 * real), str(architecture)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("block", BLOCKS)
def test_the_file_of_every_block_kind_is_predicted(block, scheme):
    torch.manual_seed(0)
    assert_predicted(parse(example(block, scheme=scheme)))


@pytest.mark.parametrize("head", ["gap_c16_p0", "map_c0_p0", "bc_c24_p10"])
def test_the_file_of_every_head_is_predicted(head):
    assert_predicted(parse(example(BLOCKS[0], head, "int8_channel_none")))


@pytest.mark.parametrize("samples", [3, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", names("spaces"))
def test_the_files_of_sampled_architectures_are_predicted(name, samples):
    space = load_space(name)
    for seed in range(samples):
        torch.manual_seed(seed)
        assert_predicted(space.sample(RandomTrial(seed), clip_s=0.5))
