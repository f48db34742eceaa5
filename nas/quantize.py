"""From a float32 ONNX network to the bytes that ship: float32, float16 or int8, slimmed.

The int8 graph is NNCF's post-training quantisation, arranged so that ONNX Runtime fuses it.
Nothing here runs a network or measures one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from nas.arch import Quantization
from nas.errors import UserError
from nas.slim import QUANTIZE, Array, arrays, plain, rename, set_nodes, slim

CALIBRATION_CLIPS = 32


def quantize(model: ModelProto, quantization: Quantization, calibration: Array) -> ModelProto:
    """`model` in the number format asked for, slimmed; `model` itself stays as it is.

    `model`: float32, opset 17, input "input" [1, C, F, T], output "output" [1, classes].
    `calibration`: float32 [N, C, F, T] from the training split; int8 reads the first
    CALIBRATION_CLIPS of it, the other formats none. float16 keeps float32 input and output.
    Raises UserError if int8 is asked for and there is no calibration clip.
    """
    if quantization.scheme == "float16":
        model = _to_float16(plain(model))
    elif quantization.scheme == "int8":
        model = _unify_uint8(_to_int8(plain(model), quantization, calibration))
    return slim(model)


def _to_float16(model: ModelProto) -> ModelProto:
    """Weights and arithmetic in float16 between two Casts."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            limit = np.finfo(np.float16).max
            half = to_array(tensor).clip(-limit, limit).astype(np.float16)
            tensor.CopyFrom(from_array(half, tensor.name))
    first, last = graph.input[0].name, graph.output[0].name
    rename(graph, {first: "half_input", last: "half_output"})
    before = helper.make_node("Cast", [first], ["half_input"], to=TensorProto.FLOAT16)
    after = helper.make_node("Cast", ["half_output"], [last], to=TensorProto.FLOAT)
    set_nodes(graph, [before, *graph.node, after])
    return model


def _to_int8(model: ModelProto, quantization: Quantization, calibration: Array) -> ModelProto:
    """Activations per tensor, weights per channel or tensor, ranges from minima and maxima.

    Bias correction would gain nothing that can be measured here, and costs time.
    """
    if not len(calibration):
        raise UserError("int8 needs at least one calibration clip, the training split gave none")
    _guide(model.graph)
    clips = [{model.graph.input[0].name: clip[None]} for clip in calibration[:CALIBRATION_CLIPS]]
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import QuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        weights = QuantizationParameters(per_channel=quantization.weights == "channel")
        parameters = nncf.AdvancedQuantizationParameters(
            # By default NNCF takes a depthwise convolution's input per channel: slow or refused.
            activations_quantization_params=QuantizationParameters(per_channel=False),
            weights_quantization_params=weights,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            disable_bias_correction=True,
        )
        quantized: ModelProto = nncf.quantize(
            model,
            nncf.Dataset(clips),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(clips),
            ignored_scope=nncf.IgnoredScope(names=_kept_in_float(model.graph, quantization)),
            advanced_parameters=parameters,
        )
    return quantized


def _guide(graph: GraphProto) -> None:
    """Idle nodes that make NNCF place quantisers where ONNX Runtime can use them.

    NNCF would leave squeeze-and-excite convolutions in float, and would run a convolution before
    HardSwish or SiLU in float because it takes the two for one operation. An Identity breaks the
    patterns that it looks for; it quantises the input of a pool, even of a 1x1 one.
    """
    nodes: list[NodeProto] = []
    for number, node in enumerate(graph.node):
        node.name = f"node{number}"
        guide = f"guide{number}"
        if node.op_type in ("HardSwish", "Sigmoid"):
            source, node.input[0] = node.input[0], f"{guide}in"
            nodes.append(
                helper.make_node(
                    "AveragePool", [source], [f"{guide}in"], f"{guide}in", kernel_shape=[1, 1]
                )
            )
        nodes.append(node)
        if node.op_type in ("GlobalAveragePool", "Sigmoid"):
            target, node.output[0] = node.output[0], f"{guide}out"
            nodes.append(helper.make_node("Identity", [f"{guide}out"], [target], f"{guide}out"))
    set_nodes(graph, nodes)


def _kept_in_float(graph: GraphProto, quantization: Quantization) -> list[str]:
    convolutions = [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")]
    stem = convolutions[:1] if quantization.keep_float in ("stem", "both") else []
    head = convolutions[-1:] if quantization.keep_float in ("head", "both") else []
    return [*stem, *head]


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without telemetry (network, files in the home folder), log lines or progress bars."""
    nncf = _import_nncf()
    from nncf.common.logging import nncf_logger
    from nncf.common.logging.track_progress import track

    level, loud = nncf_logger.level, track.__init__
    nncf_logger.setLevel(logging.ERROR)
    track.__init__ = lambda *args, **kwargs: loud(*args, **{**kwargs, "disable": True})
    try:
        yield nncf
    finally:
        nncf_logger.setLevel(level)
        track.__init__ = loud


def _import_nncf() -> Any:
    """NNCF does without its telemetry package where that cannot be imported."""
    if "nncf" in sys.modules:
        return sys.modules["nncf"]
    compiler = logging.getLogger("torch.utils.cpp_extension")
    hidden, level = sys.modules.get("openvino_telemetry"), compiler.level
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    compiler.setLevel(logging.ERROR)  # "No CUDA runtime is found"
    try:
        return importlib.import_module("nncf")
    finally:
        compiler.setLevel(level)
        del sys.modules["openvino_telemetry"]
        if hidden is not None:
            sys.modules["openvino_telemetry"] = hidden


def _unify_uint8(model: ModelProto) -> ModelProto:
    """Signed activations as uint8 with a zero point 128 higher: the same numbers, but ONNX
    Runtime fuses a convolution, addition or pool only when all its types agree."""
    graph, known = model.graph, arrays(model.graph)
    zeros = {name for n in graph.node if n.op_type == QUANTIZE for name in n.input[2:]}
    for tensor in graph.initializer:
        if tensor.name in zeros and known[tensor.name].dtype == np.int8:
            shifted = (known[tensor.name].astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(from_array(shifted, tensor.name))
    del graph.value_info[:]
    return model
