"""One trial: the artefact beside the float network that it was made from, and when that fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import from_array, to_array
from tones import write_tones

from nas.arch import parse
from nas.dataset import load
from nas.features import compute
from nas.measure import logits
from nas.pareto import row
from nas.pipeline import (
    Artifact,
    Job,
    artifact_of,
    evaluate_architecture,
    measured,
    tensor,
    trained,
    untrained,
)
from nas.record import Proxy, TrialResult
from nas.shipped import load_target
from nas.train import predict, train

NETWORK = (
    "logmel_r8000_t0.5_f256_w256_h128_m20_d0_c1/conv_n1_k19x3_s8x2_c8_relu_q0_g0_p0"
    "/ds_n1_k3x3_s2x2_c16_relu_q0_g0_p0/gap_c0_p0/"
)
INT8 = parse(NETWORK + "int8_channel_none")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    data = load(write_tones(tmp_path_factory.mktemp("pipeline") / "tones", clips_per_class=40))
    return Job(data, load_target("host"), Proxy(epochs=10, batch=8, frequency_mask=2, gain=0))


@pytest.fixture(scope="module")
def made(job):
    """The trained network's file, its float logits on validation, and both splits."""
    features = compute(job.dataset, INT8.front_end)
    training, validation = features.split("train"), features.split("validation")
    artifact = artifact_of(trained(INT8, job, training, 0), INT8, training, 0)
    return artifact, logits(artifact.parent, validation.features), validation


def measure(content, made, job):
    artifact, float_outputs, validation = made
    result = TrialResult(str(INT8), "complete")
    return measured(result, Artifact(content, artifact.parent), float_outputs, validation, job)


@pytest.mark.parametrize("scheme", ["int8_channel_none", "float16", "float32"])
def test_a_trial_says_how_far_its_file_is_from_its_float_network(scheme, job, tmp_path):
    result = evaluate_architecture(parse(NETWORK + scheme), job, 0, tmp_path / "trial")
    assert result.state == "complete"
    most = {"int8_channel_none": 0.1, "float16": 0.01, "float32": 1e-5}[scheme]
    assert 0 <= result.logit_error < most
    assert abs(result.score.accuracy - result.float_accuracy) < 0.2
    figures = row(result, "file_bytes")
    assert figures["logit_error"] == result.logit_error
    assert (figures["float_latency_ms"] is None) == (scheme == "float32")


def test_the_float_network_is_timed_beside_its_file(made, job):
    result = measure(made[0].content, made, job)
    assert result.state == "complete" and result.reason == ""
    assert 0 < result.latency.float_latency_ms
    assert len(made[0].parent) > len(made[0].content)


def with_weights(content: bytes, change, inputs: int = 2) -> bytes:
    """The file with other numbers in its int8 weights' scales; with 3 `inputs`, in those of the
    weights that are multiplied in float."""
    model = onnx.load_from_string(content)
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    scales = {n.input[1] for n in nodes if len(n.input) >= inputs}
    for held in model.graph.initializer:
        if held.name in scales and held.dims:
            held.CopyFrom(from_array(change(to_array(held)), held.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda file: file[:-9], "not an ONNX file"),
        (lambda file: file.replace(b"GlobalAveragePool", b"GlobalAverageFool"), "ONNX Runtime"),
        (lambda file: with_weights(file, lambda s: s * np.float32(np.nan), 3), "NaN"),
        (lambda file: with_weights(file, lambda s: s[::-1] ** 3 * 1e3), "in float"),
    ],
    ids=["truncated", "refused", "NaN", "wrong answers"],
)
def test_a_quantisation_that_broke_is_a_failed_result_with_its_reason(spoil, said, made, job):
    result = measure(spoil(made[0].content), made, job)
    assert result.state == "failed" and result.score is None
    assert result.reason.startswith("int8_channel_none broke it: ") and said in result.reason
    assert result.float_accuracy > 0.8


def test_a_network_that_was_never_trained_is_bad_but_not_broken(job, tmp_path):
    """Chance stays chance in int8: the fall is judged against the float network, beyond noise."""
    torch.manual_seed(0)
    idle = replace(job, proxy=Proxy(epochs=1, learning_rate=1e-9))
    result = evaluate_architecture(INT8, idle, 0, tmp_path / "trial")
    assert result.state == "complete" and result.float_accuracy < 0.7


def test_a_trial_below_the_bar_of_a_rung_is_stopped_there_and_leaves_no_file(job, tmp_path):
    bars = {3: 0.0, 5: 1.1, 8: 0.0}
    result = evaluate_architecture(INT8, job, 0, f"{tmp_path}/trial", bars)
    assert result.state == "stopped" and "weak for its size after 5 epochs" in result.reason
    assert [epoch for epoch, _ in result.rungs] == [3, 5]
    assert result.score is None and result.artifact is None and not list(tmp_path.iterdir())
    assert result.cost.file_bytes > 0


def test_rungs_change_nothing_of_a_trial_that_passes_them(job, tmp_path):
    last = job.proxy.epochs
    passed = evaluate_architecture(INT8, job, 0, f"{tmp_path}/a", {2: 0.0, 5: 0.0, last: 0.0})
    plain = evaluate_architecture(INT8, job, 0, f"{tmp_path}/b")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert passed.score == plain.score
    assert passed.rungs[-1] == (last, plain.float_accuracy) and plain.rungs == []


def test_a_teacher_is_half_of_what_a_network_learns(job):
    class Always(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[20.0, 0.0, 0.0]]).expand(len(x), 3)

    training = compute(job.dataset, INT8.front_end).split("train")
    labels, shares = torch.from_numpy(training.labels), []
    for teachers in ([], [Always()]):
        network = untrained(INT8, 3, 0)
        for _ in train(network, tensor(training), labels, 3, job.proxy, 0, teachers):
            pass
        outputs = torch.from_numpy(predict(network, tensor(training)))
        shares.append(outputs.softmax(1)[labels != 0, 0].mean().item())
    assert shares[0] < 0.2 and 0.4 < shares[1] < 0.6
