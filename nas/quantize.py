"""From a float32 ONNX network to the bytes that ship: float32, float16 or int8, slimmed.

The int8 graph is NNCF's post-training quantisation with the settings that ONNX Runtime can fuse;
slimming never changes a result. Nothing here runs a network or measures one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import string
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array, to_array

from nas.arch import Quantization
from nas.errors import UserError

Array = NDArray[Any]
CALIBRATION_CLIPS = 32
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def quantize(model: ModelProto, quantization: Quantization, calibration: Array) -> ModelProto:
    """`model` in the number format asked for, slimmed; `model` itself stays as it is.

    `model`: float32, opset 17, input "input" [1, C, F, T], output "output" [1, classes].
    `calibration`: float32 [N, C, F, T] from the training split; int8 reads the first
    CALIBRATION_CLIPS of it, the other formats none. float16 keeps float32 input and output.
    Raises UserError if int8 is asked for and there is no calibration clip.
    """
    model = _plain(model)
    if quantization.scheme == "float16":
        model = _to_float16(model)
    elif quantization.scheme == "int8":
        model = _to_int8(model, quantization, calibration)
    return slim(model)


def slim(model: ModelProto) -> ModelProto:
    """The same function in fewer bytes: every output is bit for bit what `model` gives.

    Input and output keep names, shapes and types. Gone are documentation, metadata, shapes of
    intermediate tensors, long names, attributes equal to ONNX's defaults, zero points of zero,
    duplicates, Identity, Pad before Conv, and Relu or Clip that the next quantiser saturates.
    """
    model = _plain(model)
    graph = model.graph
    _drop_zero_points_of_zero(graph)
    _drop_saturated_activations(graph)
    _share_initializers(graph)
    _drop_dead(graph)
    for node in graph.node:
        _drop_default_attributes(node)
    _shorten_names(graph)
    return _bare(model)


def _plain(model: ModelProto) -> ModelProto:
    """A copy without Constant, Identity and foldable Pad nodes: what quantisers expect."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _constants_to_initializers(copy.graph)
    _drop_identities(copy.graph)
    _fold_pads(copy.graph)
    _drop_dead(copy.graph)
    return copy


def _to_float16(model: ModelProto) -> ModelProto:
    """Weights and arithmetic in float16 between two Casts."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            limit = np.finfo(np.float16).max
            half = to_array(tensor).clip(-limit, limit).astype(np.float16)
            tensor.CopyFrom(from_array(half, tensor.name))
    first, last = graph.input[0].name, graph.output[0].name
    _rename_values(graph, {first: "half_input", last: "half_output"})
    before = helper.make_node("Cast", [first], ["half_input"], to=TensorProto.FLOAT16)
    after = helper.make_node("Cast", ["half_output"], [last], to=TensorProto.FLOAT)
    _set_nodes(graph, [before, *graph.node, after])
    return model


def _to_int8(model: ModelProto, quantization: Quantization, calibration: Array) -> ModelProto:
    if not len(calibration):
        raise UserError("int8 needs at least one calibration clip, the training split gave none")
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    clips = [{model.graph.input[0].name: clip[None]} for clip in calibration[:CALIBRATION_CLIPS]]
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import QuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        quantized = nncf.quantize(
            model,
            nncf.Dataset(clips),
            subset_size=len(clips),
            ignored_scope=nncf.IgnoredScope(names=_kept_in_float(model.graph, quantization)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # ONNX Runtime cannot fuse activations that are quantised per channel.
                activations_quantization_params=QuantizationParameters(per_channel=False),
                weights_quantization_params=QuantizationParameters(
                    per_channel=quantization.weights == "channel"
                ),
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,
            ),
        )
    return _unify_uint8(quantized)


def _kept_in_float(graph: GraphProto, quantization: Quantization) -> list[str]:
    convolutions = [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")]
    stem = convolutions[:1] if quantization.keep_float in ("stem", "both") else []
    head = convolutions[-1:] if quantization.keep_float in ("head", "both") else []
    return [*stem, *head]


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without telemetry (network, files in the home folder), log lines or progress bars,
    and with squeeze-and-excite blocks quantised like the rest. Put back afterwards."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import nncf
    from nncf.common.graph.patterns.patterns import IgnoredPatternNames
    from nncf.common.logging import nncf_logger
    from nncf.common.logging.track_progress import track
    from nncf.onnx.quantization.ignored_patterns import ONNX_IGNORED_PATTERNS

    level, loud = nncf_logger.level, track.__init__
    patterns = ONNX_IGNORED_PATTERNS.registry_dict
    squeeze_excite = patterns.pop(IgnoredPatternNames.SE_BLOCK)
    nncf_logger.setLevel(logging.ERROR)
    track.__init__ = lambda *args, **kwargs: loud(*args, **{**kwargs, "disable": True})
    try:
        yield nncf
    finally:
        nncf_logger.setLevel(level)
        track.__init__ = loud
        patterns[IgnoredPatternNames.SE_BLOCK] = squeeze_excite


def _unify_uint8(model: ModelProto) -> ModelProto:
    """Signed activations as uint8 with a zero point 128 higher: the same numbers, but ONNX
    Runtime fuses a convolution, addition or pool only when all its types agree."""
    graph, arrays = model.graph, _arrays(model.graph)
    signed = {
        name
        for node in graph.node
        if node.op_type == QUANTIZE
        for name in node.input[2:]
        if arrays[name].dtype == np.int8
    }
    for tensor in graph.initializer:
        if tensor.name in signed:
            shifted = (arrays[tensor.name].astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(from_array(shifted, tensor.name))
    del graph.value_info[:]
    return model


def _constants_to_initializers(graph: GraphProto) -> None:
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _set_nodes(graph, kept)


def _drop_identities(graph: GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    gone = [n for n in graph.node if n.op_type == "Identity" and n.output[0] not in outputs]
    for node in gone:
        _redirect(graph, node.output[0], node.input[0])
    _set_nodes(graph, [node for node in graph.node if node not in gone])


def _fold_pads(graph: GraphProto) -> None:
    """Zero padding of the two spatial axes becomes part of the convolution that follows."""
    arrays = _arrays(graph)
    producers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        pad = producers.get(node.input[0])
        if node.op_type != "Conv" or pad is None or pad.op_type != "Pad":
            continue
        mode = _attribute(pad, "mode", b"constant")
        amounts = arrays.get(pad.input[1])
        value = arrays[pad.input[2]].item() if len(pad.input) > 2 and pad.input[2] else 0.0
        if mode != b"constant" or value != 0 or amounts is None:
            continue
        before, after = amounts.reshape(2, -1).tolist()
        if any(before[:2] + after[:2]) or min(before + after) < 0:
            continue
        own = _attribute(node, "pads", [0, 0, 0, 0])
        pads = [a + b for a, b in zip(own, before[2:] + after[2:], strict=True)]
        _set_attribute(node, "pads", pads)
        node.input[0] = pad.input[0]


def _drop_zero_points_of_zero(graph: GraphProto) -> None:
    """ONNX's default zero point is 0, of type uint8 when quantising."""
    arrays = _arrays(graph)
    for node in graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) or len(node.input) < 3:
            continue
        zero = arrays.get(node.input[2])
        typed = node.op_type == QUANTIZE and zero is not None and zero.dtype != np.uint8
        if zero is not None and not zero.any() and not typed:
            del node.input[2]


def _drop_saturated_activations(graph: GraphProto) -> None:
    """A Relu or Clip is idle when every quantiser behind it maps its bounds to its own ends."""
    arrays = _arrays(graph)
    for node in graph.node:
        if node.op_type not in ("Relu", "Clip"):
            continue
        readers = [other for other in graph.node if node.output[0] in other.input]
        bounds = [arrays[name].item() for name in node.input[1:]] if node.op_type == "Clip" else [0]
        if readers and all(_saturates(reader, arrays, bounds) for reader in readers):
            _redirect(graph, node.output[0], node.input[0])


def _saturates(reader: NodeProto, arrays: dict[str, Array], bounds: list[float]) -> bool:
    """Whether quantiser `reader` maps the bounds (low[, high]) to the ends of its range."""
    if reader.op_type != QUANTIZE or arrays[reader.input[1]].size != 1:
        return False
    zero = arrays[reader.input[2]] if len(reader.input) > 2 else np.uint8(0)
    ends = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    steps = np.rint(np.float32(bounds) / arrays[reader.input[1]].item()) + zero.item()
    return bool(steps[0] <= ends[0] and (len(bounds) == 1 or steps[1] >= ends[1]))


def _share_initializers(graph: GraphProto) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for tensor in graph.initializer:
        key = tensor.data_type, tuple(tensor.dims), to_array(tensor).tobytes()
        name = first.setdefault(key, tensor.name)
        if name != tensor.name:
            _redirect(graph, tensor.name, name)


def _drop_dead(graph: GraphProto) -> None:
    """Nodes and initialisers that no output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    _set_nodes(graph, kept[::-1])
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
    _rename_values(graph, names)


def _identifiers() -> Iterator[str]:
    first = string.ascii_letters + "_"
    for extra in itertools.count():
        for letters in itertools.product(first, *[first + string.digits] * extra):
            yield "".join(letters)


def _bare(model: ModelProto) -> ModelProto:
    """Only what a runtime reads; `axis=0`-like integers of shapes packed as varints."""
    bare = ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(o for o in model.opset_import if o.domain in _domains(model.graph))
    graph = bare.graph
    graph.name = "g"
    for node in model.graph.node:
        graph.node.add(
            op_type=node.op_type,
            input=node.input,
            output=node.output,
            attribute=node.attribute,
            domain=node.domain or None,
        )
    graph.initializer.extend(_compact(tensor) for tensor in model.graph.initializer)
    graph.input.extend(_undocumented(value) for value in model.graph.input)
    graph.output.extend(_undocumented(value) for value in model.graph.output)
    return bare


def _domains(graph: GraphProto) -> set[str]:
    return {"", *(node.domain for node in graph.node)}


def _compact(tensor: TensorProto) -> TensorProto:
    array = to_array(tensor)
    if array.dtype == np.int64:
        return TensorProto(
            name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, int64_data=array.ravel()
        )
    return from_array(array, tensor.name)


def _undocumented(value: ValueInfoProto) -> ValueInfoProto:
    bare = ValueInfoProto(name=value.name, type=value.type)
    for dimension in bare.type.tensor_type.shape.dim:
        dimension.ClearField("denotation")
    return bare


def _arrays(graph: GraphProto) -> dict[str, Array]:
    return {tensor.name: to_array(tensor) for tensor in graph.initializer}


def _redirect(graph: GraphProto, old: str, new: str) -> None:
    """Readers of `old` read `new`."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def _rename_values(graph: GraphProto, names: dict[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    copies = [NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    values = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return values[0] if values else default


def _set_attribute(node: NodeProto, name: str, value: Any) -> None:
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute(name, value)])
