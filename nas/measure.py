"""What an artefact does when it runs: its logits, and its time on a target.

Everything is measured on the shipped bytes in ONNX Runtime; nothing here estimates.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array

from nas.errors import UserError, nearest
from nas.record import Latency
from nas.target import TargetProfile

Floats = NDArray[np.floating[Any]]

ONE_THREAD = TargetProfile("host", "this machine, one thread", "", "onnxruntime")
MOMENTS = 3
SECONDS_PER_MOMENT, SECONDS_BETWEEN_MOMENTS = 0.2, 0.08
RUNS_PER_BURST = 4
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_LEVELS = {"all": "ALL", "extended": "EXTENDED", "basic": "BASIC", "disabled": "DISABLE_ALL"}


def check(model_bytes: bytes, origin: str = "the network") -> None:
    """Raises UserError naming `origin` unless the bytes are an ONNX network that can be timed:
    one float32 input of fixed shape and no custom operators."""
    model = _decode(model_bytes)
    if model is None:
        raise UserError(f"{origin} is not an ONNX file: give the .onnx file of one network")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"{origin} has {len(inputs)} inputs ({names}), it must have exactly one")
    tensor = inputs[0].type.tensor_type
    dims = [
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
    ]
    if not dims or not all(isinstance(dim, int) and dim > 0 for dim in dims):
        shape = " x ".join(map(str, dims)) or "unknown"
        raise UserError(f"{origin} has dynamic input shape {shape}: export it with a fixed shape")
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise UserError(f"{origin} takes {kind} input, it must take FLOAT (float32)")
    known = _DOMAINS | {function.domain for function in model.functions}
    custom = sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in known})
    if custom:
        raise UserError(f"{origin} has custom operators that cannot run here: {', '.join(custom)}")


def _decode(model_bytes: bytes) -> ModelProto | None:
    try:
        model = onnx.load_from_string(model_bytes)
    except DecodeError:
        return None
    return model if model.graph.node else None


def _session(model_bytes: bytes, target: TargetProfile) -> Any:
    check(model_bytes)
    available = ort.get_available_providers()
    if target.provider not in available:
        hint = nearest(target.provider, available)
        raise UserError(f"target '{target.name}': no provider '{target.provider}' here: {hint}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = f"ORT_{'ENABLE_' * (target.graph_optimization != 'disabled')}"
    level += _LEVELS[target.graph_optimization]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    # Threads that spin between runs disturb each other and the neighbours: times do not repeat.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model_bytes, options, providers=[target.provider])
    except Exception as error:
        # ONNX Runtime's exceptions share no base class of their own.
        raise UserError(f"ONNX Runtime refuses the network: {_first_line(error)}") from None


def _run(session: Any, feed: dict[str, Floats]) -> NDArray[np.float32]:
    try:
        output: NDArray[np.float32] = session.run(None, feed)[0]
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run the network: {_first_line(error)}") from None
    return output


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def logits(model_bytes: bytes, features: Floats) -> NDArray[np.float32]:
    """Output of the network for `features` [N, C, F, T], one clip at a time: [N, classes].

    Raises UserError if ONNX Runtime cannot load or run the network.
    """
    session = _session(model_bytes, ONE_THREAD)
    name = session.get_inputs()[0].name
    clips = (np.ascontiguousarray(clip[None], np.float32) for clip in features)
    return np.concatenate([_run(session, {name: clip}) for clip in clips])


@dataclass(frozen=True)
class Times:
    """Single runs of a network, of the reference network and, if given, of the network's float
    parent, taken alternately at one moment."""

    network_ms: NDArray[np.float64]
    reference_ms: NDArray[np.float64]
    parent_ms: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def take_times(model_bytes: bytes, target: TargetProfile, parent: bytes | None = None) -> Times:
    """Times of a fraction of a second now; give those of other moments to `latency`.

    `parent` is the same network in float32, to be timed in the same bursts. Weights do not change
    the time, so a network can be timed before it is trained. Waits while another process of this
    machine measures. Raises UserError as `check` does, and for a provider that this ONNX Runtime
    lacks.
    """
    files = [model_bytes, reference_network(), *([parent] if parent else [])]
    runs = [_runner(file, target) for file in files]
    taken: list[list[float]] = [[] for _ in runs]
    with _measuring_alone(pin=target.threads == 1):
        for run in runs:
            _burst(run, 2 * RUNS_PER_BURST)
        end = time.perf_counter() + SECONDS_PER_MOMENT
        while time.perf_counter() < end:
            for run, times in zip(runs, taken, strict=True):
                times += _burst(run, RUNS_PER_BURST)
    return Times(*(np.array(times) * 1e3 for times in taken))


def latency(
    model_bytes: bytes,
    target: TargetProfile,
    earlier: Sequence[Times] = (),
    parent: bytes | None = None,
) -> Latency:
    """Time of one inference, from `earlier` moments and now, at least MOMENTS of them together.

    `parent` is the same network in float32, whose time is then told as well.

    The figure is the minimum: a busy neighbour and a slow phase of the machine only ever add
    time, and the minimum over bursts at several moments repeats within about 1 % where the
    median moves by 10 %.
    """
    moments = [*earlier, take_times(model_bytes, target, parent)]
    while len(moments) < MOMENTS:
        time.sleep(SECONDS_BETWEEN_MOMENTS)
        moments.append(take_times(model_bytes, target, parent))
    network = np.concatenate([times.network_ms for times in moments])
    reference = np.concatenate([times.reference_ms for times in moments])
    parents = np.concatenate([times.parent_ms for times in moments])
    return Latency(
        latency_ms=float(network.min()),
        latency_median_ms=float(np.median(network)),
        latency_p95_ms=float(np.percentile(network, 95)),
        reference_ratio=float(network.min() / reference.min()),
        latency_kind="measured",
        device=_device(target),
        float_latency_ms=float(parents.min()) if len(parents) else None,
    )


def device_facts() -> dict[str, str | int]:
    """CPU model, number of cores that this process may use, operating system, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if _CAN_PIN else os.cpu_count() or 1,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "onnxruntime": ort.__version__,
    }


def _device(target: TargetProfile) -> str:
    facts = device_facts()
    threads = target.threads or facts["cores"]
    plural = "s" if threads != 1 else ""
    return f"{facts['cpu']}, {threads} thread{plural}, ONNX Runtime {facts['onnxruntime']}"


_CAN_PIN = hasattr(os, "sched_setaffinity")


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _runner(model_bytes: bytes, target: TargetProfile) -> Callable[[], Any]:
    """A function of no arguments that runs the network once on fixed noise."""
    session = _session(model_bytes, target)
    value = session.get_inputs()[0]
    noise = np.random.default_rng(0).standard_normal(value.shape, np.float32)
    return lambda: _run(session, {value.name: noise})


def _burst(run: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each of `runs` runs."""
    clock = time.perf_counter
    seconds = []
    for _ in range(runs):
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds


@contextlib.contextmanager
def _measuring_alone(pin: bool) -> Iterator[None]:
    """One measuring process per machine at a time, on one CPU if `pin`; both undone after."""
    path = Path(tempfile.gettempdir()) / "nas-measure.lock"
    if not path.exists():
        with contextlib.suppress(OSError):
            path.touch(mode=0o666)
    # Read-only, so that every user of the machine can take the lock that one of them created.
    with open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        allowed = os.sched_getaffinity(0) if pin and _CAN_PIN else None
        try:
            if allowed:
                os.sched_setaffinity(0, {max(allowed)})
            yield
        finally:
            if allowed:
                os.sched_setaffinity(0, allowed)


# (output channels, kernel, stride, depthwise) of the reference network's convolutions.
_REFERENCE = (
    (16, 3, 2, False),
    (16, 3, 1, True),
    (32, 1, 1, False),
    (32, 3, 2, True),
    (48, 1, 1, False),
)


@cache
def reference_network() -> bytes:
    """The yardstick of every latency: a fixed float32 depthwise separable network, 5 MMAC."""
    random = np.random.default_rng(2020)
    nodes, tensors, last, width = [], [], "input", 1
    for number, (channels, kernel, stride, depthwise) in enumerate(_REFERENCE):
        fan_in = 1 if depthwise else width
        weights = random.standard_normal((channels, fan_in, kernel, kernel), np.float32)
        tensors.append(from_array(weights / np.float32(kernel * fan_in**0.5), f"weights{number}"))
        conv = helper.make_node(
            "Conv",
            [last, f"weights{number}"],
            [f"conv{number}"],
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=channels if depthwise else 1,
        )
        nodes += [conv, helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"])]
        last, width = f"relu{number}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["output"]))
    value, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    ends = [value("input", float32, [1, 1, 64, 251])], [value("output", float32, [1, width, 1, 1])]
    graph = helper.make_graph(nodes, "reference", *ends, tensors)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())
