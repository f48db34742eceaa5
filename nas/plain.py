"""ONNX graphs without what exporters leave in them: constants to compute, Identity, Pad before
Conv. Nothing here changes a result; also the few graph helpers that this takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_shapes

Array = NDArray[Any]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def plain(model: ModelProto) -> ModelProto:
    """A copy without constant subgraphs, Identity and Pad before Conv: what quantisers expect."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _fold_constants(copy)
    _drop_identities(copy.graph)
    _fold_pads(copy.graph)
    _fold_shapes(copy)
    drop_dead(copy.graph)
    return copy


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
            node.output, computed(node, inputs, model.opset_import), strict=True
        ):
            known[name] = value
            graph.initializer.append(from_array(value, name))
    set_nodes(graph, kept)


def computed(
    node: NodeProto, inputs: dict[str, Array], opsets: Sequence[OperatorSetIdProto]
) -> list[Array]:
    """Outputs of one node, by ONNX's reference implementation."""
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
    redirect(graph, gone)
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


def _zero_padding(pad: NodeProto, known: dict[str, Array]) -> list[int]:
    """[top, left, bottom, right] if `pad` adds known numbers of zeros to those sides, else []."""
    amounts = known.get(pad.input[1], np.zeros(0)).tolist()
    filling = [known.get(name, np.ones(1)) for name in pad.input[2:3] if name]
    constant = attribute(pad, "mode", b"constant") == b"constant"
    if not constant or any(map(np.any, filling)) or len(amounts) != 8 or len(pad.input) > 3:
        return []
    untouched, spatial = amounts[:2] + amounts[4:6], amounts[2:4] + amounts[6:]
    return spatial if not any(untouched) and min(spatial) >= 0 else []


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


def drop_dead(graph: GraphProto) -> None:
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


def not_fused(nodes: Iterable[tuple[str, Sequence[str], str]]) -> set[str]:
    """Of nodes (operator, inputs, output): the outputs of DequantizeLinear that other nodes read
    than convolutions with a quantiser right behind them, which ONNX Runtime makes one operator."""
    nodes = list(nodes)
    readers: dict[str, list[tuple[str, str]]] = {}
    for operator, inputs, output in nodes:
        for name in inputs:
            readers.setdefault(name, []).append((operator, output))
    rounded = {
        name for name, found in readers.items() if [operator for operator, _ in found] == [QUANTIZE]
    }
    return {
        output
        for operator, _, output in nodes
        if operator == DEQUANTIZE
        and any(op != "Conv" or result not in rounded for op, result in readers.get(output, []))
    }


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


def redirect(graph: GraphProto, names: dict[str, str]) -> None:
    """Readers of a value read another one, which may itself have been replaced."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            while name in names:
                name = names[name]
            node.input[place] = name
