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
from nas.plain import DEQUANTIZE, QUANTIZE, Array, arrays, attribute, plain, rename, set_nodes
from nas.slim import slim

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
        model = _fusable(_to_int8(plain(model), quantization, calibration))
    return slim(model)


def _to_float16(model: ModelProto) -> ModelProto:
    """Weights and arithmetic in float16 between two Casts.

    Clip stays in float32: ONNX Runtime computes both in float32 on most CPUs, and fuses a Clip
    with its convolution only if it is written so; a network of them is up to a third faster.
    """
    graph = model.graph
    bounds = {name for node in graph.node if node.op_type == "Clip" for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in bounds:
            limit = np.finfo(np.float16).max
            half = to_array(tensor).clip(-limit, limit).astype(np.float16)
            tensor.CopyFrom(from_array(half, tensor.name))
    first, last = graph.input[0].name, graph.output[0].name
    rename(graph, {first: "half_input", last: "half_output"})
    nodes = [_cast(first, "half_input", TensorProto.FLOAT16)]
    for node in graph.node:
        if node.op_type == "Clip":
            source, target = node.input[0], node.output[0]
            node.input[0], node.output[0] = f"{target}/wide", f"{target}/clipped"
            nodes += [_cast(source, node.input[0], TensorProto.FLOAT), node]
            nodes.append(_cast(node.output[0], target, TensorProto.FLOAT16))
        else:
            nodes.append(node)
    nodes.append(_cast("half_output", last, TensorProto.FLOAT))
    set_nodes(graph, nodes)
    return model


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], to=kind)


def _to_int8(model: ModelProto, quantization: Quantization, calibration: Array) -> ModelProto:
    """Activations per tensor, weights per channel or tensor, ranges from minima and maxima.

    Bias correction would gain nothing that can be measured here, and costs time.
    """
    if not len(calibration):
        raise UserError("int8 needs at least one calibration clip, the training split gave none")
    _guide(model.graph)
    clips = [
        {model.graph.input[0].name: np.ascontiguousarray(clip[None], np.float32)}
        for clip in calibration[:CALIBRATION_CLIPS]
    ]
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import QuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        weights = QuantizationParameters(per_channel=quantization.weights == "channel")
        parameters = nncf.AdvancedQuantizationParameters(
            # By default NNCF takes a depthwise convolution's input per channel: slow or refused.
            activations_quantization_params=QuantizationParameters(per_channel=False),
            weights_quantization_params=weights,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            # The fix halves the stem's weights for CPUs with neither VNNI nor Arm's dot product;
            # without it the logits' error is up to halved.
            overflow_fix=nncf.OverflowFix.DISABLE,
            disable_bias_correction=True,
        )
        quantized: ModelProto = nncf.quantize(
            model,
            nncf.Dataset(clips),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(clips),
            ignored_scope=nncf.IgnoredScope(names=_float_parts(model.graph, quantization)),
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
        before, after = f"before{number}", f"after{number}"
        if node.op_type in ("HardSwish", "Sigmoid"):
            pool = helper.make_node("AveragePool", [node.input[0]], [before], before)
            pool.attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
            nodes.append(pool)
            node.input[0] = before
        nodes.append(node)
        if node.op_type in ("GlobalAveragePool", "Sigmoid"):
            nodes.append(helper.make_node("Identity", [after], [node.output[0]], after))
            node.output[0] = after
    set_nodes(graph, nodes)


def _float_parts(graph: GraphProto, quantization: Quantization) -> list[str]:
    """Names of the nodes that stay in float: stem and head if asked for, and always what is
    smaller, faster and closer in float: global response norms, and the 1x1 depthwise
    convolutions that sub-spectral norms fold into."""
    known = arrays(graph)
    dense = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    parts = dense[:1] if quantization.keep_float in ("stem", "both") else []
    parts += dense[-1:] if quantization.keep_float in ("head", "both") else []
    norms: set[str] = set()
    gates = {node.output[0] for node in graph.node if node.op_type == "Identity"}
    for node in graph.node:
        square = node.op_type == "Mul" and node.input[0] == node.input[1]
        follows = node.op_type in _RESPONSE_NORM and norms.intersection(node.input)
        if square or (follows and not gates.intersection(node.input)):
            norms.update(node.output)
            parts.append(node)
        if node.op_type == "Conv" and attribute(node, "group", 1) > 1:
            parts += [node] if known[node.input[1]].shape[1:] == (1, 1, 1) else []
    return [node.name for node in parts]


_RESPONSE_NORM = ("ReduceMean", "Sqrt", "Add", "Div", "Mul")


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without telemetry (network, files in the home folder), log lines or progress bars."""
    compiler = logging.getLogger("torch.utils.cpp_extension")
    compiler_level = compiler.level
    compiler.setLevel(logging.ERROR)  # it would report the lack of CUDA
    nncf = _import_nncf()
    from nncf.common.logging import nncf_logger
    from nncf.common.logging.track_progress import track

    level, loud = nncf_logger.level, track.__init__
    nncf_logger.setLevel(logging.ERROR)
    track.__init__ = lambda *args, **kwargs: loud(*args, **{**kwargs, "disable": True})
    try:
        yield nncf
    finally:
        track.__init__ = loud
        nncf_logger.setLevel(level)
        compiler.setLevel(compiler_level)


def _import_nncf() -> Any:
    """NNCF does without its telemetry package where that cannot be imported."""
    if "nncf" in sys.modules:
        return sys.modules["nncf"]
    hidden = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("nncf")
    finally:
        del sys.modules["openvino_telemetry"]
        if hidden is not None:
            sys.modules["openvino_telemetry"] = hidden


def _fusable(model: ModelProto) -> ModelProto:
    """The same integers in the form that ONNX Runtime fuses.

    Signed activations become uint8 with a zero point 128 higher: a convolution, addition or pool
    is fused only when all its types agree. Maxima are taken of integers, before dequantising.
    """
    graph, known = model.graph, arrays(model.graph)
    zeros = {name for node in graph.node if node.op_type == QUANTIZE for name in node.input[2:]}
    for tensor in graph.initializer:
        if tensor.name in zeros and known[tensor.name].dtype == np.int8:
            shifted = (known[tensor.name].astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(from_array(shifted, tensor.name))
    set_nodes(graph, _maxima_first(graph))
    del graph.value_info[:]
    return model


def _maxima_first(graph: GraphProto) -> Iterator[NodeProto]:
    makers = {node.output[0]: node for node in graph.node if node.op_type == DEQUANTIZE}
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "MaxPool" else None
        if maker is None:
            yield node
            continue
        target, integers = node.output[0], f"{node.output[0]}/integers"
        yield helper.make_node("MaxPool", [maker.input[0]], [integers], **_attributes(node))
        yield helper.make_node(DEQUANTIZE, [integers, *maker.input[1:]], [target])


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
