"""The bytes of the ONNX file of an architecture, predicted from its structure.

A sketch of the graph is laid out as the exporter, NNCF and slimming would leave it, with empty
weights, and its length taken. The rules of where NNCF puts quantisers are those that its ONNX
backend was seen to follow with the settings of quantize.py; tests hold them against real files.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from onnx import ModelProto, TensorProto, helper
from torch import nn

from nas.arch import Quantization
from nas.blocks import SubSpectralNorm
from nas.network import OPSET
from nas.plain import not_fused
from nas.trace import Operation, Shape, both

WIDTH = {"float32": 4, "float16": 2, "int8": 1}
_ONE_LETTER_NAMES = 53
# quantize.py leaves these in float inside an int8 file.
_FLOAT_NORMS = ("subspectralnorm", "globalresponsenorm")
# Operations whose inputs NNCF quantises.
_ASKING = (
    "conv",
    "depthwise",
    "adaptiveavgpool2d",
    "avgpool2d",
    "hardswish",
    "silu",
    "add",
    "mul",
)
# A quantised value stays quantised behind these.
_PASSING = ("maxpool2d", "flatten")
_NOTHING = ("batchnorm2d", "dropout", "dropout2d", "identity", "zeropad2d")
# Their outputs cannot be negative, so that their zero point of 0 takes no bytes.
_UNSIGNED = ("relu", "relu6", "hardsigmoid")
_PLAIN = {
    "adaptiveavgpool2d": "GlobalAveragePool",
    "hardswish": "HardSwish",
    "relu": "Relu",
    "flatten": "Flatten",
}


def weight_widths(found: list[Operation], quantization: Quantization) -> list[int]:
    """Bytes per parameter of every operation; stem and head may be kept in float by int8."""
    widths = [WIDTH[quantization.scheme]] * len(found)
    convs = [i for i, operation in enumerate(found) if operation.macs]
    for i, operation in enumerate(found):
        if operation.kind in _FLOAT_NORMS or _is_scale(operation):
            widths[i] = max(2, widths[i]) if quantization.scheme == "float16" else 4
    if quantization.keep_float in ("stem", "both"):
        widths[convs[0]] = 4
    if quantization.keep_float in ("head", "both"):
        widths[convs[-1]] = 4
    for i, operation in enumerate(found):
        if operation.kind == "batchnorm2d":  # folded into what it follows
            widths[i] = widths[operation.inputs[0]]
    return widths


def _is_scale(operation: Operation) -> bool:
    """A 1x1 depthwise convolution, which only scales: int8 leaves it in float."""
    layer = operation.module
    return operation.kind == "depthwise" and getattr(layer, "kernel_size", ()) == (1, 1)


class Share(NamedTuple):
    """What one operation takes of the file, in bytes."""

    weights: int
    scales: int
    graph: int


def file_shares(
    found: list[Operation], shape: Shape, quantization: Quantization
) -> tuple[list[Share], int]:
    """Bytes of the slimmed ONNX file for each operation, and those of the container around them;
    their sum is the file's length. `shape` is the features' (C, F, T)."""
    sketch = _Sketch(found, quantization).draw()
    model = sketch.model(shape)
    shares = [Share(0, 0, 0)] * len(found)
    for node, i in zip(model.graph.node, sketch.node_owners, strict=True):
        shares[i] = _plus(shares[i], Share(0, 0, _embedded(node)))
    for tensor, i in zip(model.graph.initializer, sketch.tensor_owners, strict=True):
        data, weights = len(tensor.raw_data), len(tensor.dims) == 4
        header = _embedded(tensor) - data
        shares[i] = _plus(shares[i], Share(data * weights, data * (not weights), header))
    return shares, int(model.ByteSize()) - sum(map(sum, shares))


def _plus(first: Share, second: Share) -> Share:
    return Share(*map(sum, zip(first, second, strict=True)))


def _embedded(part: Any) -> int:
    """Bytes of a message inside another: a tag, the length as a varint, the content."""
    size = int(part.ByteSize())
    return 1 + max(1, math.ceil(size.bit_length() / 7)) + size


@dataclass
class _Sketch:
    """The graph so far. `value[i]` is the name under which operation i's output is read."""

    found: list[Operation]
    quantization: Quantization
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = field(default_factory=list)
    tensors: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    value: dict[int, str] = field(default_factory=lambda: {-1: "input"})
    signed: dict[int, bool] = field(default_factory=lambda: {-1: True})
    quantised: set[str] = field(default_factory=set)
    # The operation that each node and tensor is counted with.
    node_owners: list[int] = field(default_factory=list)
    tensor_owners: list[int] = field(default_factory=list)
    at: int = 0

    def draw(self) -> _Sketch:
        self.int8 = self.quantization.scheme == "int8"
        self.widths = weight_widths(self.found, self.quantization)
        self.readers: dict[int, list[int]] = {}
        for i, operation in enumerate(self.found):
            for source in operation.inputs:
                self.readers.setdefault(source, []).append(i)
        if self.quantization.scheme == "float16":
            self.value[-1] = self._node("Cast", ["input"], to=TensorProto.FLOAT16)
        self._quantise(-1)
        for i in range(len(self.found)):
            self._operation(i)
        if self.quantization.scheme == "float16":
            self._node("Cast", [self.value[len(self.found) - 1]], to=TensorProto.FLOAT)
        self._zero_points()
        return self

    def _zero_points(self) -> None:
        """Those of weights that slimming keeps."""
        kept = not_fused((op, inputs, output) for op, inputs, output, _ in self.nodes)
        for number, (_, inputs, output, _) in enumerate(self.nodes):
            scales = self.tensors[inputs[1]][0] if output in kept else ()
            if scales:
                self.at = self.node_owners[number]
                inputs.append(self._tensor(f"zeros{number}", scales, TensorProto.INT8))

    def _operation(self, i: int) -> None:
        self.at, operation = i, self.found[i]
        inputs = [self.value[source] for source in operation.inputs]
        kind, layer = operation.kind, operation.module
        signed = any(self.signed[source] for source in operation.inputs)
        self.signed[i] = signed and kind not in _UNSIGNED
        self.value[i] = inputs[0]
        if kind in _NOTHING or (kind in ("relu", "relu6") and self._wanted(i)):
            pass  # what the quantiser saturates anyway is dropped
        elif isinstance(layer, nn.Conv2d):
            self.signed[i] = True
            self.value[i] = self._conv(i, inputs[0], layer)
        elif kind == "subspectralnorm":
            self._sub_spectral_norm(i, inputs[0])
            return
        elif kind == "globalresponsenorm":
            self.signed[i] = True
            self.value[i] = self._global_response_norm(operation, inputs[0])
        elif kind == "silu":
            self._silu(i, inputs[0])
        else:
            self.value[i] = self._simple(operation, inputs)
        if kind not in _PASSING and not self._goes_on_in_place(i):
            self._quantise(i)

    def _goes_on_in_place(self, i: int) -> bool:
        """Whether norms and activations follow that belong to the same quantised value."""
        readers = self.readers.get(i, [])
        return len(readers) == 1 and (
            self.found[readers[0]].kind in (*_NOTHING, "relu", "relu6", "hardsigmoid")
        )

    def _wanted(self, i: int) -> bool:
        """Whether anything behind wants the value quantised."""
        if not self.int8:
            return False
        for reader in self.readers.get(i, []):
            kind = self.found[reader].kind
            if self._asks(reader) or (
                kind in (*_PASSING, *_NOTHING, "relu", "relu6") and self._wanted(reader)
            ):
                return True
        return False

    def _asks(self, i: int) -> bool:
        operation = self.found[i]
        return operation.kind in _ASKING and (not operation.macs or self.widths[i] == 1)

    def _quantise(self, i: int) -> None:
        if self._wanted(i) and self.value[i] not in self.quantised:
            self.value[i] = self._quantised(self.value[i], self.signed[i])

    def _quantised(self, value: str, signed: bool) -> str:
        number = len(self.nodes)
        zero = [self._tensor(f"zero{number}", (), TensorProto.UINT8)] if signed else []
        scale = self._tensor(f"scale{number}", (), TensorProto.FLOAT)
        stored = self._node("QuantizeLinear", [value, scale, *zero])
        value = self._node("DequantizeLinear", [stored, scale, *zero])
        self.quantised.add(value)
        return value

    def _conv(self, i: int, value: str, layer: nn.Conv2d) -> str:
        bias = layer.bias is not None or any(
            self.found[reader].kind == "batchnorm2d" for reader in self.readers.get(i, [])
        )
        padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
        pads = [*padding, *padding]
        before = self.found[self.found[i].inputs[0]] if self.found[i].inputs[0] >= 0 else None
        if before is not None and isinstance(before.module, nn.ZeroPad2d):
            left, right, top, bottom = before.module.padding
            pads = [top, left, bottom, right]
        attributes = {
            "dilations": list(layer.dilation) if max(layer.dilation) > 1 else None,
            "group": layer.groups if layer.groups > 1 else None,
            "pads": pads if any(pads) else None,
            "strides": list(layer.stride) if max(layer.stride) > 1 else None,
        }
        dims = tuple(layer.weight.shape)
        return self._weighted(f"conv{i}", value, dims, bias, self.widths[i], attributes)

    def _weighted(
        self,
        name: str,
        value: str,
        dims: tuple[int, ...],
        bias: bool,
        width: int,
        attributes: dict[str, Any],
    ) -> str:
        """A convolution with its weights, scales and bias."""
        float_kind = TensorProto.FLOAT16 if width == 2 else TensorProto.FLOAT
        inputs = [
            value,
            self._tensor(f"{name}w", dims, TensorProto.INT8 if width == 1 else float_kind),
        ]
        if width == 1:
            per_channel = self.quantization.weights == "channel"
            scales = self._tensor(f"{name}s", dims[:1] if per_channel else (), TensorProto.FLOAT)
            axis = {"axis": 0} if per_channel else {}
            inputs[1] = self._node("DequantizeLinear", [inputs[1], scales], **axis)
        if bias:
            inputs.append(self._tensor(f"{name}b", dims[:1], float_kind))
        return self._node("Conv", inputs, **attributes)

    def _sub_spectral_norm(self, i: int, value: str) -> None:
        norm = self.found[i].module
        assert isinstance(norm, SubSpectralNorm)
        frames = self.found[i].output[2]
        grouped = self._shape((-1, *norm.grouped, frames))
        value = self._node("Reshape", [value, grouped])
        channels = norm.grouped[0]
        attributes = {"group": channels}
        self.value[i] = self._weighted(
            f"norm{i}", value, (channels, 1, 1, 1), True, self.widths[i], attributes
        )
        self.signed[i] = True
        self._quantise(i)
        plain = self._shape((-1, *norm.plain, frames))
        self.value[i] = self._node("Reshape", [self.value[i], plain])

    def _global_response_norm(self, operation: Operation, value: str) -> str:
        kind = self._float_kind()
        dims = (1, operation.output[0], 1, 1)
        number = len(self.nodes)
        gamma, beta = (self._tensor(f"{part}{number}", dims, kind) for part in ("gamma", "beta"))
        energy = self._node("ReduceMean", [self._node("Mul", [value, value])], axes=[2, 3])
        energy = self._node("Sqrt", [energy])
        mean = self._node("ReduceMean", [energy], axes=[1])
        mean = self._node("Add", [mean, self._tensor("least energy", (), kind)])
        share = self._node("Mul", [value, self._node("Div", [energy, mean])])
        scaled = self._node("Add", [self._node("Mul", [gamma, share]), beta])
        return self._node("Add", [scaled, value])

    def _silu(self, i: int, value: str) -> None:
        gate = self._node("Sigmoid", [value])
        if self.int8:
            gate = self._quantised(gate, signed=False)
        self.value[i] = self._node("Mul", [value, gate])

    def _simple(self, operation: Operation, inputs: list[str]) -> str:
        kind, layer = operation.kind, operation.module
        if kind in _PLAIN:
            return self._node(_PLAIN[kind], inputs)
        if kind == "relu6":
            return self._clip(inputs[0])
        if kind == "hardsigmoid":
            return self._node("HardSigmoid", inputs, alpha=1 / 6)
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            return self._pool(layer, inputs)
        return self._node({"add": "Add", "mul": "Mul"}[kind], inputs)

    def _clip(self, value: str) -> str:
        bounds = [self._tensor(name, (), TensorProto.FLOAT) for name in ("least", "most")]
        if self.quantization.scheme != "float16":
            return self._node("Clip", [value, *bounds])
        value = self._node("Cast", [value], to=TensorProto.FLOAT)
        clipped = self._node("Clip", [value, *bounds])
        return self._node("Cast", [clipped], to=TensorProto.FLOAT16)

    def _pool(self, layer: Any, inputs: list[str]) -> str:
        kernel, stride, padding = both(layer.kernel_size), both(layer.stride), both(layer.padding)
        attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(stride)}
        if any(padding):
            attributes["pads"] = [*padding, *padding]
        if isinstance(layer, nn.MaxPool2d):
            return self._node("MaxPool", inputs, **attributes)
        return self._node("AveragePool", inputs, count_include_pad=1, **attributes)

    def _float_kind(self) -> int:
        return TensorProto.FLOAT16 if self.quantization.scheme == "float16" else TensorProto.FLOAT

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append((op, inputs, output, given))
        self.node_owners.append(self.at)
        return output

    def _tensor(self, name: str, dims: tuple[int, ...], kind: int) -> str:
        if name not in self.tensors:
            self.tensors[name] = (dims, kind)
            self.tensor_owners.append(self.at)
        return name

    def _shape(self, dims: tuple[int, ...]) -> str:
        return self._tensor("x".join(map(str, dims)), dims, TensorProto.INT64)

    def model(self, shape: Shape) -> ModelProto:
        """The file with empty weights and names as short as slimming makes them."""
        names = self._short_names()
        model = ModelProto(ir_version=8)
        model.opset_import.append(helper.make_opsetid("", OPSET))
        model.graph.name = "g"
        classes = self.found[-1].output[0]
        for value, dims in (("input", (1, *shape)), ("output", (1, classes))):
            info = helper.make_tensor_value_info(value, TensorProto.FLOAT, dims)
            (model.graph.input if value == "input" else model.graph.output).append(info)
        for op, inputs, output, attributes in self.nodes:
            short = [names[name] for name in inputs], [names[output]]
            model.graph.node.append(helper.make_node(op, *short, **attributes))
        for name, (dims, kind) in self.tensors.items():
            model.graph.initializer.append(_tensor(names[name], dims, kind))
        return model

    def _short_names(self) -> dict[str, str]:
        """The right lengths: one letter for the names that are written most often."""
        written = Counter(list(self.tensors))
        for _, inputs, output, _ in self.nodes:
            written.update([*inputs, output])
        last = self.nodes[-1][2]
        names = {"input": "input", last: "output"}
        ranked = [name for name, _ in written.most_common() if name not in names]
        return names | {n: "ab"[: 1 + (r >= _ONE_LETTER_NAMES)] for r, n in enumerate(ranked)}


def _tensor(name: str, dims: tuple[int, ...], kind: int) -> TensorProto:
    """An empty tensor of the right length; an int64 one is a shape and holds `dims`."""
    if kind == TensorProto.INT64:
        return TensorProto(name=name, dims=[len(dims)], data_type=kind, int64_data=dims)
    width = helper.tensor_dtype_to_np_dtype(kind).itemsize
    return TensorProto(
        name=name, dims=dims, data_type=kind, raw_data=bytes(math.prod(dims) * width)
    )
