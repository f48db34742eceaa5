"""The predicted length of the file against real ones, over all block kinds and number formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from choosing import RandomTrial
from onnx import ModelProto
from test_network import BLOCKS, awake, example

from nas.arch import Architecture, parse
from nas.cost import estimate, layers
from nas.network import build, to_onnx
from nas.quantize import quantize
from nas.shipped import names
from nas.space import load_space

SCHEMES = ["float32", "float16", "int8_channel_none", "int8_tensor_both"]


def real_file(architecture: Architecture) -> ModelProto:
    network = awake(build(architecture, classes=10))
    shape = architecture.front_end.shape
    clips = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
    return quantize(to_onnx(network, shape), architecture.quantization, clips)


def assert_predicted(architecture: Architecture) -> None:
    real = len(real_file(architecture).SerializeToString())
    predicted = estimate(architecture, classes=10).file_bytes
    assert abs(predicted - real) <= max(100, 0.01 * real), str(architecture)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("block", BLOCKS[::3])
def test_the_ledger_adds_up_and_its_weights_are_those_of_the_file(block, scheme):
    torch.manual_seed(0)
    architecture = parse(example(block, scheme=scheme))
    cost, rows = estimate(architecture, 10), layers(architecture, 10)
    ledger = cost.ledger
    parts = ("weight_bytes", "scale_bytes", "graph_bytes")
    sums = [sum(getattr(row, part) for row in rows) for part in parts]
    assert sums == [getattr(ledger, part) for part in parts]
    assert sum(sums) + ledger.container_bytes == cost.file_bytes
    stored = [(len(t.dims), len(t.raw_data)) for t in real_file(architecture).graph.initializer]
    assert ledger.weight_bytes == sum(size for rank, size in stored if rank == 4)
    # Scales and zero points that happen to be equal are stored once.
    assert 0 <= ledger.scale_bytes - sum(size for rank, size in stored if rank != 4) <= 100


def test_parameter_bytes_are_the_parameters_at_their_stored_width():
    def sizes(scheme):
        cost = estimate(parse(example("ds_n2_k3x3_s2x1_c24_relu_q0_g1_p0", scheme=scheme)), 10)
        return cost.parameters, cost.parameter_bytes

    assert [sizes(s)[1] / sizes(s)[0] for s in SCHEMES[:3]] == [4, 2, 1]
    stem, norm, head = 16 * 9, 2 * 16, 24 * 10 + 10
    assert sizes("int8_tensor_both")[1] == sizes(SCHEMES[2])[1] + 3 * (stem + norm + head)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("block", BLOCKS)
def test_the_file_of_every_block_kind_is_predicted(block, scheme):
    torch.manual_seed(0)
    assert_predicted(parse(example(block, scheme=scheme)))


@pytest.mark.parametrize("parts", ["none", "stem", "head", "both"])
@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_the_file_of_every_int8_format_is_predicted(weights, parts):
    assert_predicted(
        parse(example("ir_n2_k3x3_s2x2_e3_c24_relu6_q4_p0", scheme=f"int8_{weights}_{parts}"))
    )


@pytest.mark.parametrize("head", ["gap_c16_p0", "map_c0_p0", "bc_c24_p10"])
def test_the_file_of_every_head_is_predicted(head):
    assert_predicted(parse(example(BLOCKS[0], head, "int8_channel_none")))


@pytest.mark.parametrize("block", ["cpm_n2_k5x5_s1x1_e3_c16_relu_o1_p0"])
@pytest.mark.parametrize("scheme", ["int8_tensor_none", "int8_channel_stem"])
def test_the_file_of_a_small_network_of_response_norms_is_predicted(block, scheme):
    torch.manual_seed(0)
    assert_predicted(parse(example(block, "map_c0_p0", scheme)))


@pytest.mark.parametrize("samples", [3, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", names("spaces"))
def test_the_files_of_sampled_architectures_are_predicted(name, samples):
    space = load_space(name)
    for seed in range(samples):
        torch.manual_seed(seed)
        assert_predicted(space.sample(RandomTrial(seed), clip_s=0.5))
