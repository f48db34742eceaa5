"""Fine-tuning under int8's rounding: what it changes, what it leaves, and when it is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_network import BLOCKS, awake, example
from test_pipeline import NETWORK, job  # noqa: F401  (a fixture)
from torch import nn

from nas.arch import Quantization, parse
from nas.features import compute
from nas.finetune import fine_tuned
from nas.measure import logits
from nas.network import build, to_onnx
from nas.pipeline import evaluate_architecture, shipped, trained
from nas.quantize import quantize
from nas.train import predict

SEPARABLE = "ds_n1_k3x3_s2x1_c24_relu_q0_g0_p0"


def made(block, quantization, spread=0.0):
    """A float network, features with a spectrogram's correlations, and the fine-tuned copy."""
    torch.manual_seed(0)
    architecture = parse(example(block))
    network, shape = awake(build(architecture, classes=6)), architecture.front_end.shape
    make_uneven(network, spread)
    random = np.random.default_rng(0)
    parts = (64, *shape), (64, *shape[:2], 1), (64, shape[0], 1, shape[2])
    features = torch.from_numpy(sum(random.standard_normal(part, np.float32) for part in parts))
    return network, features, fine_tuned(network, quantization, features, 0), shape


@torch.no_grad()
def make_uneven(network, spread):
    """Scales channels by up to 10 ** -spread and undoes it behind the activation: the same function
    with weights that one step for all of a layer rounds badly."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for norm, following in itertools.pairwise(layers):
        if isinstance(norm, nn.BatchNorm2d) and getattr(following, "groups", 0) == 1:
            scale = 10 ** torch.empty(norm.num_features).uniform_(-spread, 0)
            norm.weight *= scale
            norm.bias *= scale
            following.weight /= scale[None, :, None, None]


def int8_file(network, shape, quantization, features):
    model = quantize(to_onnx(network, shape), quantization, features[:16].numpy())
    return model.SerializeToString()


@pytest.mark.parametrize("block", BLOCKS[1::3])
def test_the_copy_is_plain_float_with_a_file_of_the_same_length(block):
    quantization = Quantization("int8")
    network, features, student, shape = made(block, quantization)
    before = predict(network, features)
    assert np.abs(predict(student, features) - before).max() < 0.3 * before.std()
    files = [int8_file(n, shape, quantization, features) for n in (network, student)]
    assert abs(len(files[0]) - len(files[1])) <= 32  # equal zero points are stored once
    assert (
        not any(isinstance(layer, nn.BatchNorm2d) for layer in student.modules()) or "bc" in block
    )


def error(file, features, wanted):
    return np.sqrt(np.square(logits(file, features.numpy()) - wanted).mean()) / wanted.std()


def test_it_brings_coarsely_rounded_weights_closer_to_the_float_network():
    coarse = Quantization("int8", "tensor")
    network, features, student, shape = made(SEPARABLE, coarse, spread=1.7)
    wanted = predict(network, features)
    plain, tuned = (
        error(int8_file(n, shape, coarse, features), features, wanted) for n in (network, student)
    )
    assert tuned < 0.7 * plain


def test_the_network_itself_stays_and_the_same_seed_gives_the_same_copy():
    runs = [made(SEPARABLE, Quantization("int8")) for _ in range(2)]
    (network, features, first, _), (other, _, second, _) = runs
    assert np.array_equal(predict(network, features), predict(other, features))
    assert np.array_equal(predict(first, features), predict(second, features))


def test_a_trial_that_asks_for_it_is_never_worse_on_validation(job, tmp_path):  # noqa: F811
    plain, asked = (
        evaluate_architecture(parse(NETWORK + text), job, 0, tmp_path / text)
        for text in ("int8_tensor_none", "int8_tensor_none_qat")
    )
    assert not plain.fine_tuned
    assert asked.score.accuracy >= plain.score.accuracy
    assert asked.float_accuracy == plain.float_accuracy
    assert abs(asked.file_bytes - plain.file_bytes) <= 32


def test_it_is_tried_only_where_int8_costs_more_than_is_tolerated(job):  # noqa: F811
    architecture = parse(NETWORK + "int8_tensor_none")
    features = compute(job.dataset, architecture.front_end)
    network = trained(architecture, job, features.split("train"), 0)
    asked = replace(architecture, quantization=replace(architecture.quantization, qat=1))
    best = shipped(network, asked, features, job.dataset, 0)
    plain, never, always = (
        shipped(network, architecture, features, job.dataset, 0, tolerance)
        for tolerance in (np.inf, 1.0, -2.0)
    )
    assert never == plain and always == best
