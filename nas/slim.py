"""The same ONNX network in fewer bytes. Every pass keeps every output bit for bit."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array, to_array

from nas.plain import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    arrays,
    drop_dead,
    not_fused,
    plain,
    redirect,
    rename,
)


def slim(model: ModelProto) -> ModelProto:
    """The same function in fewer bytes: every output is bit for bit what `model` gives.

    Input and output keep names, shapes and types. Gone are documentation, metadata, shapes of
    intermediate tensors, long names, attributes equal to ONNX's defaults, most zero points of zero,
    duplicates, Identity, Pad before Conv, and Relu or Clip that the next quantiser saturates.
    """
    model = plain(model)
    graph = model.graph
    _drop_idle_quantizers(graph)
    _drop_saturated_activations(graph)
    drop_dead(graph)
    _drop_zero_points_of_zero(graph)
    _share_initializers(graph)
    drop_dead(graph)
    for node in graph.node:
        _drop_default_attributes(node)
    _shorten_names(graph)
    return _bare(model)


def _drop_zero_points_of_zero(graph: GraphProto) -> None:
    """ONNX's default zero point is 0, of type uint8 when quantising.

    What `not_fused` names keeps it: without one, ONNX Runtime's exact sums on CPUs that have no
    VNNI end in an error.
    """
    known = arrays(graph)
    kept = not_fused((node.op_type, node.input, node.output[0]) for node in graph.node)
    for node in graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) or len(node.input) < 3:
            continue
        if node.output[0] in kept and known[node.input[1]].ndim:
            continue
        zero = known.get(node.input[2])
        implied = zero is not None and (node.op_type == DEQUANTIZE or zero.dtype == np.uint8)
        if zero is not None and implied and not zero.any():
            del node.input[2]


def _drop_saturated_activations(graph: GraphProto) -> None:
    """A Relu or Clip is idle when every quantiser behind it maps its bounds to its own ends."""
    known = arrays(graph)
    idle = {}
    for node in graph.node:
        if node.op_type == "Relu" or (node.op_type == "Clip" and len(node.input) == 3):
            bounds = [known[name].item() for name in node.input[1:]] or [0.0, np.inf]
            readers = [other for other in graph.node if node.output[0] in other.input]
            if readers and all(_saturates(reader, known, bounds) for reader in readers):
                idle[node.output[0]] = node.input[0]
    redirect(graph, idle)


def _saturates(reader: NodeProto, known: dict[str, Array], bounds: list[float]) -> bool:
    """Whether quantiser `reader` maps the bounds [low, high] to the ends of its range."""
    if reader.op_type != QUANTIZE or known[reader.input[1]].size != 1:
        return False
    zero = known[reader.input[2]] if len(reader.input) > 2 else np.uint8(0)
    ends = np.iinfo(zero.dtype)
    low, high = np.rint(np.array(bounds, np.float32) / known[reader.input[1]]) + zero.item()
    return bool(low <= ends.min and high >= ends.max)


def _drop_idle_quantizers(graph: GraphProto) -> None:
    """Quantising what was just dequantised with the same parameters gives the same integers."""
    known = arrays(graph)
    makers = {node.output[0]: node for node in graph.node if node.op_type == DEQUANTIZE}
    idle = {}
    for node in graph.node:
        maker = makers.get(node.input[0])
        if node.op_type == QUANTIZE and maker is not None:
            own, others = ([known[name] for name in n.input[1:]] for n in (node, maker))
            if [(a.dtype, a.tobytes()) for a in own] == [(a.dtype, a.tobytes()) for a in others]:
                idle[node.output[0]] = maker.input[0]
    redirect(graph, idle)


def _share_initializers(graph: GraphProto) -> None:
    """All but zero points of weights: ONNX Runtime's exact sums replace each by its name."""
    zeros = {name for node in graph.node if node.op_type == DEQUANTIZE for name in node.input[2:]}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {}
    for tensor in graph.initializer:
        if tensor.name in zeros and tensor.dims:
            continue
        key = tensor.data_type, tuple(tensor.dims), to_array(tensor).tobytes()
        name = first.setdefault(key, tensor.name)
        if name != tensor.name:
            same[tensor.name] = name
    redirect(graph, same)


_ONES, _ZEROS = [1, 1], [0, 0, 0, 0]
_WINDOW: dict[str, Any] = {"strides": _ONES, "pads": _ZEROS, "auto_pad": b"NOTSET"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {**_WINDOW, "dilations": _ONES, "group": 1},
    "MaxPool": {**_WINDOW, "dilations": _ONES, "ceil_mode": 0, "storage_order": 0},
    "AveragePool": {**_WINDOW, "ceil_mode": 0, "count_include_pad": 0},
    "BatchNormalization": {"epsilon": float(np.float32(1e-5)), "training_mode": 0},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "Flatten": {"axis": 1},
    "Softmax": {"axis": -1},
    "ReduceMean": {"keepdims": 1},
    "Reshape": {"allowzero": 0},
    QUANTIZE: {"axis": 1},
    DEQUANTIZE: {"axis": 1},
}
# Convolutions take their kernel's shape from the weights; only training reads a momentum.
_IDLE = {"Conv": "kernel_shape", "BatchNormalization": "momentum"}


def _drop_default_attributes(node: NodeProto) -> None:
    defaults = _DEFAULTS.get(node.op_type, {})
    kept = [
        attribute
        for attribute in node.attribute
        if attribute.name != _IDLE.get(node.op_type)
        and helper.get_attribute_value(attribute) != defaults.get(attribute.name)
    ]
    del node.attribute[:]
    node.attribute.extend(kept)


def _shorten_names(graph: GraphProto) -> None:
    """The shortest C identifiers go to the values that are written most often."""
    fixed = {value.name for value in [*graph.input, *graph.output]}
    written = Counter(tensor.name for tensor in graph.initializer)
    for node in graph.node:
        written.update(name for name in [*node.input, *node.output] if name)
    short = (name for name in _identifiers() if name not in fixed)
    names = {name: next(short) for name, _ in written.most_common() if name not in fixed}
    rename(graph, names)


def _identifiers() -> Iterator[str]:
    first = string.ascii_letters + "_"
    for extra in itertools.count():
        for letters in itertools.product(first, *[first + string.digits] * extra):
            yield "".join(letters)


def _bare(model: ModelProto) -> ModelProto:
    """Only what a runtime reads."""
    domains = {"", *(node.domain for node in model.graph.node)}
    bare = ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(o for o in model.opset_import if o.domain in domains)
    bare.graph.name = "g"
    for node in model.graph.node:
        fields = {"input": node.input, "output": node.output, "attribute": node.attribute}
        bare.graph.node.add(op_type=node.op_type, domain=node.domain or None, **fields)
    bare.graph.initializer.extend(_compact(tensor) for tensor in model.graph.initializer)
    bare.graph.input.extend(_undocumented(value) for value in model.graph.input)
    bare.graph.output.extend(_undocumented(value) for value in model.graph.output)
    return bare


def _compact(tensor: TensorProto) -> TensorProto:
    """Shapes as variable-length integers, all else as raw bytes."""
    array = to_array(tensor)
    compact = from_array(array, tensor.name)
    if array.dtype == np.int64:
        compact.ClearField("raw_data")
        compact.int64_data.extend(array.ravel().tolist())
    return compact


def _undocumented(value: ValueInfoProto) -> ValueInfoProto:
    bare = ValueInfoProto(name=value.name, type=value.type)
    for dimension in bare.type.tensor_type.shape.dim:
        dimension.ClearField("denotation")
    return bare
