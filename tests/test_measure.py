"""Measuring: logits and times of networks built by hand."""

import ast
import fcntl
import math
import os
import runpy
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from nas.errors import UserError
from nas.measure import (
    TIMING,
    Protocol,
    check,
    latencies,
    latency,
    logits,
    reference_network,
)
from nas.target import TargetProfile

HOST = TargetProfile("host", "this machine", "", "onnxruntime")
GLANCE = Protocol(moments=(1, 1), seconds=0.01)
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
        latency(content, HOST)


def test_what_onnxruntime_refuses_or_cannot_run_is_a_sentence_too():
    with pytest.raises(UserError, match="^ONNX Runtime cannot run the network: .*NoSuchOperator"):
        logits(network(op="NoSuchOperator"), np.zeros((1, 1, 4, 5), np.float32))
    with pytest.raises(UserError, match="^ONNX Runtime cannot run the network: "):
        logits(network(), np.zeros((1, 1, 9, 9), np.float32))
    with pytest.raises(UserError, match="^target 'host': ONNX Runtime: .*NoSuchOperator"):
        latency(network(op="NoSuchOperator"), HOST)


def test_an_unknown_provider_names_the_target_and_the_known_ones():
    target = TargetProfile("mine", "", "", "onnxruntime", provider="CPUExecutionProvder")
    with pytest.raises(
        UserError, match="target 'mine'.*'CPUExecutionProvder'.*CPUExecutionProvider"
    ):
        latency(network(), target)


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
    assert macs == 5_064_192
    assert len(reference_network()) == 11_277
    total = sum(float(np.abs(to_array(t)).sum()) for t in model.graph.initializer)
    assert total == pytest.approx(468.606, abs=0.001)


@pytest.mark.parametrize("optimization", ["all", "extended", "basic", "disabled"])
def test_a_latency_is_ordered_and_says_where_it_was_measured(optimization):
    target = TargetProfile("h", "", "", "onnxruntime", graph_optimization=optimization)
    found = latency(network(), target, GLANCE)
    assert 0 < found.latency_ms <= found.latency_median_ms <= found.latency_p95_ms
    assert found.latency_kind == "measured"
    assert {"cpu", "cores", "onnxruntime", "system"} <= set(found.facts)
    assert str(found.facts["cpu"]) in found.device
    assert "1 thread," in found.device


def test_networks_measured_together_keep_their_order_and_share_the_reference():
    small, large = latencies([network(), network(shape=(1, 64, 100, 100))], HOST, GLANCE)
    assert small.latency_ms < large.latency_ms
    references = [found.latency_ms / found.reference_ratio for found in (small, large)]
    assert references[0] == pytest.approx(references[1])


def test_the_script_that_goes_to_devices_needs_an_old_python_and_two_libraries_only():
    tree = ast.parse(TIMING.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
    }
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}


@given(st.integers(200, 3000), st.integers(0, 1), st.floats(1e-5, 1e-2))
def test_runs_that_a_virtual_machine_s_clock_takes_for_nothing_change_no_figure(runs, lost, took):
    timing = runpy.run_path(str(TIMING))
    figures = timing["_figures"]([0.0] * lost + [took] * runs, np)
    assert list(figures.values()) == pytest.approx([1e3 * took] * 3)


def test_timing_waits_for_another_process_that_measures():
    latency(network(), HOST, GLANCE)
    with open(Path(tempfile.gettempdir()) / "nas-measure.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=latency, args=(network(), HOST, GLANCE))
        waiting.start()
        waiting.join(2.0)
        assert waiting.is_alive()
        fcntl.flock(lock, fcntl.LOCK_UN)
    waiting.join(60)
    assert not waiting.is_alive()


def test_all_threads_are_taken_where_the_target_says_so():
    found = latency(network(), TargetProfile("h", "", "", "onnxruntime", threads=0), GLANCE)
    assert f"{found.facts['cores']} thread" in found.device


def test_a_file_in_the_user_s_folder_does_not_stand_in_for_a_library(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not numpy')")
    monkeypatch.chdir(tmp_path)
    assert latency(network(), HOST, GLANCE).latency_ms > 0


def test_measuring_says_nothing_and_writes_nothing_at_home(tmp_path):
    program = """
        from nas.measure import QUICK, latency, reference_network
        from nas.target import TargetProfile
        latency(reference_network(), TargetProfile("host", "", "", "onnxruntime"), QUICK)
        """
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
