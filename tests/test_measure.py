"""Measuring: logits, times and scores, of networks built by hand."""

import fcntl
import math
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from nas.errors import UserError
from nas.measure import (
    Times,
    check,
    device_facts,
    latency,
    logits,
    reference_network,
    score,
    take_times,
)
from nas.target import TargetProfile

HOST = TargetProfile("host", "this machine", "", "onnxruntime")
RANDOM = np.random.default_rng(0)


def network(
    inputs=1, shape=(1, 1, 4, 5), op="GlobalAveragePool", domain="", kind=TensorProto.FLOAT
):
    """`op` on the first of the inputs, then flattened."""
    values = [helper.make_tensor_value_info(f"input{i}", kind, shape) for i in range(inputs)]
    output = helper.make_tensor_value_info("output", kind, None)
    nodes = [
        helper.make_node(op, ["input0"], ["y"], domain=domain),
        helper.make_node("Flatten", ["y"], ["output"]),
    ]
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "graph", values, [output])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def linear(weights):
    """logits = flattened clip x weights."""
    size, classes = weights.shape
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("input", TensorProto.FLOAT, [1, 1, 1, size])],
        [value("output", TensorProto.FLOAT, [1, classes])],
        [from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_logits_are_those_of_every_clip_in_order(kind):
    weights = RANDOM.standard_normal((6, 3), np.float32)
    features = RANDOM.standard_normal((20, 1, 1, 6)).astype(kind)
    expected = features.reshape(20, 6).astype(np.float32) @ weights
    found = logits(linear(weights), features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "my.onnx is not an ONNX file"),
        (b"RIFF and other bytes of a sound", "my.onnx is not an ONNX file"),
        (reference_network()[:-7], "my.onnx is not an ONNX file"),
        (network(inputs=2), "has 2 inputs (input0, input1), it must have exactly one"),
        (network(shape=("N", 1, 4, 5)), "dynamic input shape N x 1 x 4 x 5"),
        (network(shape=(None, 1, 4, 5)), "dynamic input shape ? x 1 x 4 x 5"),
        (network(shape=None), "dynamic input shape unknown"),
        (network(op="Fancy", domain="my.company"), "custom operators .* my.company.Fancy"),
        (network(kind=TensorProto.FLOAT16), "takes FLOAT16 input, it must take FLOAT"),
    ],
)
def test_a_file_that_cannot_be_measured_is_refused_in_one_sentence(content, complaint):
    pattern = complaint if ".*" in complaint else None
    with pytest.raises(UserError, match=pattern) as refusal:
        check(content, "my.onnx")
    assert "\n" not in str(refusal.value)
    assert pattern or complaint in str(refusal.value)
    with pytest.raises(UserError):
        take_times(content, HOST)


def test_what_onnxruntime_refuses_or_cannot_run_is_a_sentence_too():
    with pytest.raises(UserError, match="^ONNX Runtime refuses the network: .*NoSuchOperator"):
        logits(network(op="NoSuchOperator"), np.zeros((1, 1, 4, 5), np.float32))
    with pytest.raises(UserError, match="^ONNX Runtime cannot run the network: "):
        logits(network(), np.zeros((1, 1, 9, 9), np.float32))


def test_an_unknown_provider_names_the_target_and_the_known_ones():
    target = TargetProfile("mine", "", "", "onnxruntime", provider="CPUExecutionProvder")
    with pytest.raises(UserError, match="target 'mine'.*did you mean 'CPUExecutionProvider'"):
        take_times(network(), target)


def test_the_reference_network_has_the_size_that_it_states_and_never_changes():
    model = onnx.load_from_string(reference_network())
    onnx.checker.check_model(model, full_check=True)
    shapes = {t.name: to_array(t).shape for t in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    macs = sum(
        math.prod(sizes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        for node in model.graph.node
        if node.op_type == "Conv"
    )
    assert macs == 5_072_256
    assert len(reference_network()) == 11_553
    total = sum(float(np.abs(to_array(t)).sum()) for t in model.graph.initializer)
    assert total == pytest.approx(583.15, abs=0.01)


@pytest.mark.parametrize("optimization", ["all", "extended", "basic", "disabled"])
def test_a_latency_is_ordered_and_says_where_it_was_measured(optimization):
    target = TargetProfile("h", "", "", "onnxruntime", graph_optimization=optimization)
    found = latency(network(), target, [take_times(network(), target)] * 2)
    assert 0 < found.latency_ms <= found.latency_median_ms <= found.latency_p95_ms
    assert found.latency_kind == "measured"
    assert str(device_facts()["cpu"]) in found.device
    assert "1 thread," in found.device


def test_latency_is_the_minimum_over_all_moments_and_its_ratio_to_the_reference():
    slow, fast = np.full(50, 1e6), np.array([3e-9, 5e-9])
    moments = [Times(slow, slow), Times(fast, fast / 2), Times(slow, slow)]
    found = latency(network(), HOST, moments)
    assert found.latency_ms == 3e-9
    assert found.reference_ratio == pytest.approx(2)
    assert found.latency_p95_ms == 1e6


def test_moments_alternate_between_network_and_reference():
    times = take_times(network(), HOST)
    assert len(times.network_ms) == len(times.reference_ms) >= 4


def test_timing_leaves_the_process_on_the_cpus_that_it_had():
    before = os.sched_getaffinity(0)
    take_times(network(), HOST)
    with pytest.raises(UserError):
        take_times(network(inputs=2), HOST)
    assert os.sched_getaffinity(0) == before


def test_timing_waits_for_another_process_that_measures():
    take_times(network(), HOST)
    with open(Path(tempfile.gettempdir()) / "nas-measure.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=take_times, args=(network(), HOST))
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive()
        fcntl.flock(lock, fcntl.LOCK_UN)
    waiting.join(60)
    assert not waiting.is_alive()


def test_all_threads_are_taken_where_the_target_says_so():
    cores = device_facts()["cores"]
    found = latency(network(), TargetProfile("h", "", "", "onnxruntime", threads=0))
    assert f"{cores} thread" in found.device


def sure(labels, classes, sharpness=8.0):
    """Logits that are sure of the given class indices."""
    return sharpness * np.eye(classes)[np.asarray(labels)]


def one_window(truth, predicted, groups=None, classes=2):
    """Score of recordings of one window each."""
    groups = groups or [None] * len(truth)
    names = [f"class{i}" for i in range(classes)]
    logits = sure(predicted, classes)
    return score(logits, np.array(truth), np.arange(len(truth)), groups, names)


def test_windows_of_a_recording_are_judged_by_their_mean_probability():
    # Recording 7: two windows weakly for class 0, one strongly for class 1.
    window_logits = np.log([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]])
    groups = [None] * 7 + ["a", "b"]
    found = score(
        window_logits, np.array([1, 1, 1, 0]), np.array([7, 7, 7, 8]), groups, ["no", "yes"]
    )
    assert found.confusion == [[0, 1], [0, 1]]
    assert found.class_accuracy == {"no": 0.0, "yes": 1.0}
    assert found.group_accuracy == {"a": 1.0, "b": 0.0}
    mean = (0.4 + 0.4 + 0.9) / 3
    assert found.log_loss == pytest.approx(-(math.log(mean) + math.log(0.3)) / 2)


def test_accuracy_is_the_mean_over_classes_and_plain_accuracy_the_share_of_recordings():
    found = one_window([0] * 8 + [1] * 2, [0] * 8 + [1, 0])
    assert found.accuracy == pytest.approx((1 + 0.5) / 2)
    assert found.plain_accuracy == pytest.approx(0.9)
    assert found.accuracy_low <= found.accuracy <= found.accuracy_high


def test_a_class_without_recordings_does_not_count():
    found = one_window([0, 0, 2, 2], [0, 0, 2, 1], classes=3)
    assert found.accuracy == pytest.approx(0.75)
    assert list(found.class_accuracy) == ["class0", "class2"]
    assert np.sum(found.confusion) == 4


def test_the_interval_is_the_same_every_time_and_shrinks_with_more_recordings():
    truth, predicted = [0, 1] * 20, [0, 1] * 15 + [1, 0] * 5
    few, again = one_window(truth, predicted), one_window(truth, predicted)
    many = one_window(truth * 16, predicted * 16)
    assert few == again
    shrunk = (many.accuracy_high - many.accuracy_low) / (few.accuracy_high - few.accuracy_low)
    assert shrunk == pytest.approx(1 / 4, rel=0.15)


@pytest.mark.parametrize("grouped", [False, True])
def test_about_95_of_100_intervals_hold_the_true_accuracy(grouped):
    random, hits = np.random.default_rng(1), 0
    groups = [f"group{i % 60}" for i in range(240)] if grouped else None
    for _ in range(200):
        truth = random.integers(0, 2, 240)
        predicted = np.where(random.random(240) < 0.8, truth, 1 - truth)
        found = one_window(truth, predicted, groups)
        hits += found.accuracy_low <= 0.8 <= found.accuracy_high
    assert 0.91 <= hits / 200 <= 0.99


def test_recordings_that_fall_together_widen_the_interval_if_their_groups_are_known():
    truth = [0, 1] * 120
    predicted = [label if i // 12 % 4 else 1 - label for i, label in enumerate(truth)]
    groups = [f"speaker{i // 12}" for i in range(240)]
    alone, together = one_window(truth, predicted), one_window(truth, predicted, groups)
    assert alone.accuracy == together.accuracy == pytest.approx(0.75)
    widths = [s.accuracy_high - s.accuracy_low for s in (alone, together)]
    assert widths[1] > 2 * widths[0]


def test_two_groups_are_too_few_to_resample():
    truth, predicted = [0, 1] * 30, [0, 1] * 24 + [1, 0] * 6
    paired = one_window(truth, predicted, ["north", "south"] * 30)
    alone = one_window(truth, predicted)
    assert (paired.accuracy_low, paired.accuracy_high) == (alone.accuracy_low, alone.accuracy_high)
    assert set(paired.group_accuracy) == {"north", "south"}


def test_everything_right_is_not_taken_for_certainty():
    found = one_window([0, 1] * 40, [0, 1] * 40)
    assert found.accuracy == found.accuracy_high == 1
    # Wilson's interval for 80 of 80.
    assert found.accuracy_low == pytest.approx(80 / (80 + 1.96**2), abs=1e-6)
    nothing = one_window([0, 1] * 40, [1, 0] * 40)
    assert nothing.accuracy_high == pytest.approx(1.96**2 / (80 + 1.96**2), abs=1e-6)


def test_a_broken_network_is_said_to_be_broken():
    broken = sure([0, 1], 2)
    broken[1, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        score(broken, np.array([0, 1]), np.arange(2), [None, None], ["a", "b"])
