"""What an artefact does when it runs: its logits, and its time on a target.

Everything is measured on the shipped bytes in ONNX Runtime; nothing here estimates. Times are
taken by assets/timing.py in a process of its own, on this machine or on a device.
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array

from nas.device import Away, run
from nas.errors import UserError
from nas.estimates import validity
from nas.foreign import work_of_file
from nas.mcu import latency_ms
from nas.record import Latency
from nas.target import TargetProfile

Floats = NDArray[np.floating[Any]]

TIMING = Path(__file__).parent / "assets" / "timing.py"
SECONDS_BETWEEN_VISITS = 30.0
# Else sums of int8 products overflow on x86 CPUs without VNNI, and a file answers there otherwise
# than on all other CPUs and in C.
EXACT = "session.x64quantprecision", "1"
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}


class Protocol(msgspec.Struct, frozen=True):
    """How long to look: moments (fewest, most), and seconds of a moment for each network."""

    moments: tuple[int, int]
    seconds: float


# A trial's figure ranks it among others; what is shown in the end is taken again at length.
QUICK = Protocol(moments=(2, 3), seconds=0.04)
THOROUGH = Protocol(moments=(6, 24), seconds=0.2)
TOGETHER = Protocol(moments=(4, 8), seconds=0.1)  # a front of 30 networks: 25 s at most


class _Spoken(msgspec.Struct, frozen=True):
    """What assets/timing.py says: figures of each network and facts, or why there are none."""

    times: list[dict[str, float]] = []
    facts: dict[str, str | int | float] = {}
    missing: str = ""
    refused: str = ""


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


def logits(model_bytes: bytes, features: Floats) -> NDArray[np.float32]:
    """Output of the network for `features` [N, C, F, T], one clip at a time: [N, classes].

    Raises UserError if ONNX Runtime cannot load or run the network.
    """
    check(model_bytes)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT)
    try:
        session = ort.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        clips = (np.ascontiguousarray(clip[None], np.float32) for clip in features)
        return np.concatenate([session.run(None, {name: clip})[0] for clip in clips])
    except Exception as error:
        # ONNX Runtime's exceptions share no base class of their own.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"ONNX Runtime cannot run the network: {first}") from None


def latencies(
    networks: Sequence[bytes],
    target: TargetProfile,
    protocol: Protocol = THOROUGH,
    parent: bytes | None = None,
) -> list[Latency]:
    """Times of one inference of each network on the target, measured together.

    Bursts of the networks and of a fixed reference network alternate at several moments, until none
    gets faster any more. The figure is the fastest of a thousand runs: a busy neighbour and a slow
    phase of the machine add time. Weights do not change it, so a network can be timed before it is
    trained. Waits while another process of that machine measures. `parent` is the first network in
    float32, whose time is then told with it.

    Raises UserError as `check` does and for a provider that the ONNX Runtime there lacks, and
    Away if the target is a device that cannot be reached.
    """
    files = [*networks, *([parent] if parent else [])]
    for file in files:
        check(file)
    *times, reference = (spoken := _spoken(files, target, protocol)).times
    found = [
        Latency(
            **figures,
            reference_ratio=figures["latency_ms"] / reference["latency_ms"],
            latency_kind="measured",
            device=_device(target, spoken.facts),
            facts=spoken.facts,
        )
        for figures in times
    ]
    if parent:
        in_float = found.pop().latency_ms
        found[0] = msgspec.structs.replace(found[0], float_latency_ms=in_float)
    return found


def latency(network: bytes, target: TargetProfile, protocol: Protocol = THOROUGH) -> Latency:
    """That of one network; see `latencies`, and for a microcontroller `estimated`."""
    if not target.mcu:
        return latencies([network], target, protocol)[0]
    found = estimated(network, target)
    if not found:
        raise UserError(_NOT_INT8.format(target.name))
    return found


_NOT_INT8 = "target '{}' knows the time of int8 networks only"


def estimated(network: bytes, target: TargetProfile) -> Latency | None:
    """The time of an int8 network on a microcontroller, from the operations in the file; None for
    another, whose cycles are not known."""
    if target.mcu is None:
        raise ValueError(f"target '{target.name}' is no microcontroller")
    asked, int8 = work_of_file(onnx.load_from_string(network), "the network")
    if not int8:
        return None
    time_ms = latency_ms(asked, target.mcu)
    return Latency(
        latency_ms=time_ms,
        latency_median_ms=time_ms,
        latency_p95_ms=time_ms,
        reference_ratio=0.0,
        latency_kind="estimated",
        device=f"{target.description}; {validity(target.mcu.latency_error, asked.unmodelled)}",
    )


def latencies_if_there(
    networks: Sequence[bytes],
    target: TargetProfile,
    protocol: Protocol = THOROUGH,
    parent: bytes | None = None,
) -> tuple[list[Latency | None], str]:
    """`latencies`, or Nones and the reason if the device is away; waits if the target says so.
    For a microcontroller, `estimated`."""
    if target.mcu:
        found = [estimated(network, target) for network in networks]
        return found, "" if found[0] else f"no latency: {_NOT_INT8.format(target.name)}"
    while True:
        try:
            return [*latencies(networks, target, protocol, parent)], ""
        except Away as away:
            remote = target.remote
            if remote is None or not remote.ssh or remote.when_away != "wait":
                return [None] * len(networks), f"no latency: {away}"
            print(f"waiting: {away}", file=sys.stderr, flush=True)
            time.sleep(SECONDS_BETWEEN_VISITS)


def _spoken(networks: Sequence[bytes], target: TargetProfile, protocol: Protocol) -> _Spoken:
    order = {
        "networks": [base64.b64encode(n).decode() for n in (*networks, reference_network())],
        "provider": target.provider,
        "threads": target.threads,
        "level": _LEVELS[target.graph_optimization],
        "moments": protocol.moments,
        "seconds": protocol.seconds,
    }
    said = run(TIMING.read_bytes() + f"\nanswer({order!r})\n".encode(), target)
    try:
        spoken = msgspec.json.decode(said.strip().splitlines()[-1], type=_Spoken)
    except (IndexError, msgspec.DecodeError):
        raise Away(
            f"{_where(target)} answered with something else than times: {said[:80]!r}"
        ) from None
    if spoken.missing:
        raise Away(
            f"{_where(target)} has no Python package '{spoken.missing}': install it there with "
            "`python3 -m pip install onnxruntime numpy`, or name the Python that has it with "
            'python = "..." under [remote] in the profile'
        )
    if spoken.refused:
        raise UserError(f"target '{target.name}': ONNX Runtime: {spoken.refused}")
    return spoken


def _where(target: TargetProfile) -> str:
    return target.remote.ssh if target.remote else "this machine"


def _device(target: TargetProfile, facts: dict[str, str | int | float]) -> str:
    threads = target.threads or facts["cores"]
    plural = "s" if threads != 1 else ""
    return f"{facts['cpu']}, {threads} thread{plural}, ONNX Runtime {facts['onnxruntime']}"


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
