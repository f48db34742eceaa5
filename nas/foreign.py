"""A user's ONNX file -> the same operations as those of an architecture, to say what it costs.

Float networks and networks in the QDQ form are understood; weights must be constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto, NodeProto
from onnx.shape_inference import infer_shapes

from nas.errors import UserError
from nas.mcu import Work, work
from nas.plain import DEQUANTIZE, QUANTIZE, Array, arrays, attribute, plain
from nas.trace import Operation, Shape

# Names of these operators in nas.trace, and of those that run in place of their input.
_KINDS = {
    "GlobalAveragePool": "adaptiveavgpool2d",
    "BatchNormalization": "batchnorm2d",
    "Clip": "relu6",
    QUANTIZE: "identity",
    DEQUANTIZE: "identity",
    "Reshape": "flatten",
    "Squeeze": "flatten",
    "Cast": "identity",
}
_IN_PLACE = {*_KINDS, "Relu", "Flatten", "Identity", "Dropout"} - {"GlobalAveragePool"}


@dataclass(frozen=True)
class _Weights:
    dims: tuple[int, ...]
    width: int


def work_of_file(model: ModelProto, origin: str) -> tuple[Work, bool]:
    """The work of the network, and whether it is int8.

    Raises UserError naming `origin` if it has no convolution or dense layer that can be counted.
    """
    graph = plain(model).graph
    shapes = _shapes(model)
    weights = _weights(graph.node, arrays(graph))
    value = next(v.name for v in graph.input if v.name not in weights)
    index, found, widths = {value: -1}, list[Operation](), list[int]()
    for node in graph.node:
        inputs = tuple(index[name] for name in node.input if name in index)
        if inputs:
            operation = _operation(node, inputs, shapes, weights)
            index |= dict.fromkeys(node.output, len(found))
            found.append(operation)
            widths.append(next((weights[n].width for n in node.input[1:] if n in weights), 4))
    if not any(operation.macs for operation in found):
        raise UserError(
            f"{origin} has no convolution or dense layer with constant weights: give a float "
            "network, or one quantised with QuantizeLinear and DequantizeLinear"
        )
    int8 = all(w == 1 for w, o in zip(widths, found, strict=True) if o.macs)
    return work(found, widths, shapes[value], 1 if int8 else 4), int8


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """(C, F, T) of every value of fixed shape; a vector is (C, 1, 1)."""
    graph = infer_shapes(plain(model)).graph
    known = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        known[value.name] = (*dims, *[1] * (3 - len(dims)))
    return known


def _weights(nodes: Iterable[NodeProto], constants: dict[str, Array]) -> dict[str, _Weights]:
    """Constants of the network, those behind a DequantizeLinear among them."""
    known = {name: _Weights(a.shape, a.dtype.itemsize) for name, a in constants.items()}
    for node in nodes:
        if node.op_type == DEQUANTIZE and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
    return known


def _operation(
    node: NodeProto,
    inputs: tuple[int, ...],
    shapes: dict[str, Shape],
    weights: dict[str, _Weights],
) -> Operation:
    output = shapes.get(node.output[0], (1, 1, 1))
    own = [weights[name] for name in node.input[1:2] if name in weights]
    kind, macs, window, parameters = node.op_type.lower(), 0, 1, 0
    if node.op_type == "Conv" and own:
        window = math.prod(own[0].dims[2:])
        macs = math.prod(output) * math.prod(own[0].dims[1:])
        kind = "depthwise" if own[0].dims[1] == 1 < attribute(node, "group", 1) else "conv"
    elif node.op_type in ("Gemm", "MatMul") and own:
        kind, macs = "conv", math.prod(own[0].dims)
    elif node.op_type not in _KINDS:
        parameters = sum(math.prod(weights[n].dims) for n in node.input if n in weights)
    return Operation(
        name=node.name,
        kind=_KINDS.get(node.op_type, kind),
        inputs=inputs,
        output=output,
        parameters=parameters,
        macs=macs,
        in_place=node.op_type in _IN_PLACE,
        module=None,
        window=window,
    )
