"""The same ONNX network in fewer bytes. Every pass keeps every output bit for bit."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    ValueInfoProto,
    helper,
)
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_shapes

Array = NDArray[Any]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def slim(model: ModelProto) -> ModelProto:
    """The same function in fewer bytes: every output is bit for bit what `model` gives.

    Input and output keep names, shapes and types. Gone are documentation, metadata, shapes of
    intermediate tensors, long names, attributes equal to ONNX's defaults, zero points of zero,
    duplicates, Identity, Pad before Conv, and Relu or Clip that the next quantiser saturates.
    """
    model = plain(model)
    graph = model.graph
    _drop_idle_quantizers(graph)
    _drop_zero_points_of_zero(graph)
    _drop_saturated_activations(graph)
    _share_initializers(graph)
    _drop_dead(graph)
    for node in graph.node:
        _drop_default_attributes(node)
    _shorten_names(graph)
    return _bare(model)


def plain(model: ModelProto) -> ModelProto:
    """A copy without constant subgraphs, Identity and Pad before Conv: what quantisers expect."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _fold_constants(copy)
    _drop_identities(copy.graph)
    _fold_pads(copy.graph)
    _fold_shapes(copy)
    _drop_dead(copy.graph)
    return copy


def arrays(graph: GraphProto) -> dict[str, Array]:
    """The initialisers by name."""
    return {tensor.name: to_array(tensor) for tensor in graph.initializer}


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The attribute's value, or `default` if the node does not have it."""
    values = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return values[0] if values else default


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Replaces the nodes of `graph`, some of which may be among `nodes`."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Renames values wherever nodes and initialisers mention them."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _redirect(graph: GraphProto, names: dict[str, str]) -> None:
    """Readers of a value read another one, which may itself have been replaced."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            while name in names:
                name = names[name]
            node.input[place] = name


def _fold_constants(model: ModelProto) -> None:
    """Constant nodes, and what is computed from initialisers alone, become initialisers."""
    graph = model.graph
    known, kept = arrays(graph), []
    for node in graph.node:
        if node.op_type == DEQUANTIZE or not all(name in known for name in node.input):
            kept.append(node)
            continue
        inputs = {name: known[name] for name in node.input}
        for name, value in zip(
            node.output, _compute(node, inputs, model.opset_import), strict=True
        ):
            known[name] = value
            graph.initializer.append(from_array(value, name))
    set_nodes(graph, kept)


def _compute(
    node: NodeProto, inputs: dict[str, Array], opsets: Sequence[OperatorSetIdProto]
) -> list[Array]:
    unknown = helper.make_tensor_type_proto(TensorProto.UNDEFINED, None)
    graph = GraphProto(name="constant", node=[node])
    graph.input.extend(helper.make_value_info(name, unknown) for name in inputs)
    graph.output.extend(helper.make_value_info(name, unknown) for name in node.output)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
    return [np.asarray(value) for value in evaluator.run(None, inputs)]


def _drop_identities(graph: GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    gone = {
        node.output[0]: node.input[0]
        for node in graph.node
        if _is_identity(node) and node.output[0] not in outputs
    }
    _redirect(graph, gone)
    set_nodes(graph, [node for node in graph.node if node.output[0] not in gone])


def _is_identity(node: NodeProto) -> bool:
    if node.op_type == "AveragePool":
        window = attribute(node, "kernel_shape", []) + attribute(node, "strides", [1])
        return set(window) == {1} and not any(attribute(node, "pads", []))
    return node.op_type == "Identity"


def _fold_pads(graph: GraphProto) -> None:
    """Zero padding of the two spatial axes becomes part of the convolution that follows."""
    known = arrays(graph)
    pads = {
        node.output[0]: (node, spatial)
        for node in graph.node
        if node.op_type == "Pad" and (spatial := _zero_padding(node, known))
    }
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] in pads:
            pad, more = pads[node.input[0]]
            own = attribute(node, "pads", [0, 0, 0, 0])
            node.input[0] = pad.input[0]
            others = [a for a in node.attribute if a.name != "pads"]
            total = helper.make_attribute("pads", [a + b for a, b in zip(own, more, strict=True)])
            del node.attribute[:]
            node.attribute.extend([*others, total])


def _fold_shapes(model: ModelProto) -> None:
    """Shapes that are computed although they are fixed, as exporters do behind a Pad."""
    if not any(node.op_type == "Shape" for node in model.graph.node):
        return
    inferred = infer_shapes(model, data_prop=True).graph.value_info
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred}
    for node in model.graph.node:
        sizes = [dim.dim_value for dim in shapes.get(node.input[0], [])] if node.input else []
        if node.op_type == "Shape" and sizes and all(sizes) and not node.attribute:
            value = from_array(np.array(sizes, np.int64))
            node.CopyFrom(helper.make_node("Constant", [], node.output, value=value))
    _fold_constants(model)


def _zero_padding(pad: NodeProto, known: dict[str, Array]) -> list[int]:
    """[top, left, bottom, right] if `pad` adds known numbers of zeros to those sides, else []."""
    amounts = known.get(pad.input[1], np.zeros(0)).tolist()
    filling = [known.get(name, np.ones(1)) for name in pad.input[2:3] if name]
    constant = attribute(pad, "mode", b"constant") == b"constant"
    if not constant or any(map(np.any, filling)) or len(amounts) != 8 or len(pad.input) > 3:
        return []
    untouched, spatial = amounts[:2] + amounts[4:6], amounts[2:4] + amounts[6:]
    return spatial if not any(untouched) and min(spatial) >= 0 else []


def _drop_zero_points_of_zero(graph: GraphProto) -> None:
    """ONNX's default zero point is 0, of type uint8 when quantising."""
    known = arrays(graph)
    for node in graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) or len(node.input) < 3:
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
    _redirect(graph, idle)


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
    _redirect(graph, idle)


def _share_initializers(graph: GraphProto) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {}
    for tensor in graph.initializer:
        key = tensor.data_type, tuple(tensor.dims), to_array(tensor).tobytes()
        name = first.setdefault(key, tensor.name)
        if name != tensor.name:
            same[tensor.name] = name
    _redirect(graph, same)


def _drop_dead(graph: GraphProto) -> None:
    """Nodes and initialisers that no output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    set_nodes(graph, kept[::-1])
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


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
