"""Waveform to probabilities as one ONNX graph: the front end, the artefact's own nodes, softmax.

Only standard operators of opset 17. The Fourier, window and mel matrices are computed by the graph
from a few numbers, which ONNX Runtime does once on loading: the file stays as small as the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, load_from_string
from onnx.numpy_helper import from_array

from nas.arch import Architecture, FrontEnd
from nas.features import FLOOR

_DELTA_SLOPE = np.array([-0.2, -0.1, 0.0, 0.1, 0.2], np.float32)


def classifier(
    artifact: bytes,
    architecture: Architecture,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    labels: Sequence[str],
    batch: int | None = None,
) -> bytes:
    """ONNX bytes: `waveform` [batch, samples] float32 -> `probabilities` [batch, classes].

    `artifact` is the network from features [1, C, F, T] to logits; `mean` and `std` are the
    features' normalisation [C, F]. The batch is free unless given. Metadata: sample_rate_hz,
    samples, clip_s, labels (JSON), architecture.
    """
    network = load_from_string(artifact)
    front_end = architecture.front_end
    build = _Nodes()
    features = _log_mel(build, front_end)
    features = build("Sub", features, build.constant(mean[:, :, None]))
    build("Div", features, build.constant(std[:, :, None]), out=network.graph.input[0].name)
    softmax = helper.make_node("Softmax", [network.graph.output[0].name], ["probabilities"], axis=1)
    size = batch or "batch"
    graph = helper.make_graph(
        [*build.nodes, *network.graph.node, softmax],
        "classifier",
        [_value("waveform", [size, front_end.samples])],
        [_value("probabilities", [size, len(labels)])],
        [*build.tensors, *network.graph.initializer],
    )
    model = helper.make_model(
        graph, opset_imports=network.opset_import, ir_version=network.ir_version
    )
    facts = {
        "sample_rate_hz": str(front_end.sample_rate_hz),
        "samples": str(front_end.samples),
        "clip_s": repr(front_end.clip_s),
        "labels": json.dumps(list(labels), ensure_ascii=False),
        "architecture": str(architecture),
    }
    helper.set_model_props(model, facts)
    return bytes(model.SerializeToString())


class _Nodes:
    """Nodes and constants as they are made. Dotted names never meet those of the artefact."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"front.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"front.c{len(self.tensors)}"
        self.tensors.append(from_array(np.asarray(value, dtype), name))
        return name

    def count(self, stop: int, shape: list[int]) -> str:
        """0, 1, ... stop - 1 as int64 of this shape."""
        limits = [self.constant(n, np.int64) for n in (0, stop, 1)]
        return self("Reshape", self("Range", *limits), self.constant(shape, np.int64))


def _log_mel(build: _Nodes, settings: FrontEnd) -> str:
    """`features.front_end` as nodes: waveform [N, samples] -> [N, 1 + deltas, mels, frames]."""
    edge = settings.fft // 2 if settings.center else 0
    channel = build("Unsqueeze", "waveform", build.constant([1], np.int64))
    spectrum = build(
        "Conv", channel, _fourier(build, settings), pads=[edge, edge], strides=[settings.hop]
    )
    # real and imaginary parts are rows of one matrix, so the mel sum adds their squares, too
    power = build("MatMul", _mel_bands(build, settings), build("Mul", spectrum, spectrum))
    power = build("Max", power, build.constant(FLOOR))
    mel = build("Log", power)
    if settings.level:
        mel = build("Sub", mel, build("Log", build("ReduceMean", power, axes=[1, 2])))
    channels = [build("Unsqueeze", mel, build.constant([1], np.int64))]
    for _ in range(settings.deltas):
        channels.append(_slope(build, channels[-1]))
    return build("Concat", *channels, axis=1) if settings.deltas else channels[0]


def _fourier(build: _Nodes, settings: FrontEnd) -> str:
    """[2 x bins, 1, fft]: windowed cosines, then sines. The product of the two counts is taken
    modulo the length in integers, as float32 angles of thousands of turns would be wrong."""
    fft, bins = settings.fft, settings.fft // 2 + 1
    turns = build("Mul", build.count(bins, [-1, 1, 1]), build.count(fft, [1, 1, -1]))
    part = build("Cast", build("Mod", turns, build.constant(fft, np.int64)), to=TensorProto.FLOAT)
    angle = build("Mul", part, build.constant(2 * np.pi / fft))
    waves = build("Concat", build("Cos", angle), build("Sin", angle), axis=0)
    window = build("HannWindow", build.constant(settings.window, np.int64), periodic=1)
    before = (fft - settings.window) // 2
    sides = build.constant([before, fft - settings.window - before], np.int64)
    return build("Mul", waves, build("Pad", window, sides))


def mel_points_hz(settings: FrontEnd) -> NDArray[np.float64]:
    """[mels + 2]: where the bands' triangles begin, peak and end, on the HTK mel scale."""
    top = 2595 * np.log10(1 + settings.sample_rate_hz / 2 / 700)
    points: NDArray[np.float64] = 700 * (10 ** (np.linspace(0, top, settings.mels + 2) / 2595) - 1)
    return points


def _mel_bands(build: _Nodes, settings: FrontEnd) -> str:
    """[mels, 2 x bins]: triangles on the HTK mel scale, once for each half of the spectrum."""
    hz = mel_points_hz(settings)
    low, middle, high = (hz[i : i + settings.mels, None] for i in range(3))
    bins = settings.fft // 2 + 1
    step = (settings.sample_rate_hz // 2) / (bins - 1)
    count = build("Cast", build.count(bins, [1, -1]), to=TensorProto.FLOAT)

    def line(slope: NDArray[np.float64], offset: NDArray[np.float64]) -> str:
        scaled = build("Mul", count, build.constant(slope * step))
        return build("Add", scaled, build.constant(offset))

    rising = line(1 / (middle - low), -low / (middle - low))
    falling = line(-1 / (high - middle), high / (high - middle))
    bands = build("Relu", build("Min", rising, falling))
    return build("Concat", bands, bands, axis=1)


def _slope(build: _Nodes, features: str) -> str:
    """Least-squares slope over five frames, the ends repeated: torchaudio's `compute_deltas`."""
    pads = build.constant([0, 0, 0, 2, 0, 0, 0, 2], np.int64)
    padded = build("Pad", features, pads, mode="edge")
    return build("Conv", padded, build.constant(_DELTA_SLOPE.reshape(1, 1, 1, 5)))


def _value(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
