"""Architecture -> what it costs, without training, exporting or measuring anything.

The real module is built without memory (torch's meta device) and traced with torch.fx; shapes,
parameters, multiply-accumulates (MACs) and live memory are read off its operations in execution
order. MACs count convolution and dense layers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from nas.arch import Architecture, Quantization
from nas.blocks import SubSpectralNorm
from nas.network import build
from nas.record import Cost, Layer

Shape = tuple[int, ...]
_WIDTH = {"float32": 4, "float16": 2, "int8": 1}
# These run inside the operation before them, on its output, in every runtime that we ship to.
_IN_PLACE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True)
class Operation:
    """One operation of the network; `inputs` are indices of earlier ones, -1 the features.

    `kind` is conv, depthwise, norm, pool, average, add, mul or the name of an activation;
    `output` is (channels, frequency, time).
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    output: Shape
    parameters: int
    macs: int
    in_place: bool
    module: nn.Module | None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, SubSpectralNorm) or super().is_leaf_module(m, qualified_name)


def operations(architecture: Architecture, classes: int) -> list[Operation]:
    """All operations in execution order, the features' input left out."""
    with torch.device("meta"):
        network = build(architecture, classes)
    graph = _Tracer().trace(network)
    found: list[Operation] = []
    index: dict[fx.Node, int] = {}
    shapes: dict[fx.Node, Shape] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            index[node], shapes[node] = -1, architecture.front_end.shape
        elif node.op in ("call_module", "call_function", "call_method"):
            operation = _operation(node, network, index, shapes)
            index[node], shapes[node] = len(found), operation.output
            found.append(operation)
    return found


def _operation(
    node: fx.Node, network: nn.Module, index: dict[fx.Node, int], shapes: dict[fx.Node, Shape]
) -> Operation:
    sources = [n for n in node.all_input_nodes if n in index]
    inputs = tuple(index[n] for n in sources)
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    output = _output(node, module, [shapes[n] for n in sources])
    parameters, macs = 0, 0
    if module is not None:
        parameters = sum(p.numel() for p in module.parameters())
    if isinstance(module, nn.Conv2d):
        macs = math.prod(output) * math.prod(module.weight.shape[1:])
    in_place = isinstance(module, _IN_PLACE) or node.name.startswith(("flatten", "relu"))
    name = str(node.target) if module is not None else node.name
    return Operation(name, _kind(node, module), inputs, output, parameters, macs, in_place, module)


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    if isinstance(module, nn.Conv2d):
        return "depthwise" if module.groups == module.in_channels > 1 else "conv"
    if module is not None:
        return type(module).__name__.lower()
    return node.name.rstrip("0123456789_")


def _output(node: fx.Node, module: nn.Module | None, inputs: list[Shape]) -> Shape:
    """The output shape, by the rules of the few operations that blocks are made of."""
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, *_slide(inputs[0], module))
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return (inputs[0][0], *_slide(inputs[0], module))
    if isinstance(module, nn.ZeroPad2d):
        left, right, top, bottom = module.padding
        return (inputs[0][0], inputs[0][1] + top + bottom, inputs[0][2] + left + right)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return (inputs[0][0], 1, 1)
    if node.name.startswith("mean"):
        dims = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return tuple(1 if i + 1 in dims else n for i, n in enumerate(inputs[0]))
    return tuple(max(sizes) for sizes in zip(*inputs, strict=True))


def _slide(size: Shape, layer: Any) -> tuple[int, int]:
    """Output size (F, T) of a sliding window."""
    kernel, stride, padding = _both(layer.kernel_size), _both(layer.stride), _both(layer.padding)
    dilation = _both(getattr(layer, "dilation", 1))
    frequency, time = (
        (size[i + 1] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return frequency, time


def _both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def layers(architecture: Architecture, classes: int) -> list[Layer]:
    """The layer table. Operations that run in place are counted with the one before them.

    `bytes` are the parameters at their stored width; `live_bytes` the feature maps that must be
    in memory while the layer runs.
    """
    found = operations(architecture, classes)
    live = _live_bytes(found, architecture)
    widths = _weight_widths(found, architecture.quantization)
    rows: list[Layer] = []
    for i, operation in enumerate(found):
        size = operation.parameters * widths[i]
        if operation.in_place and rows:
            before = rows[-1]
            rows[-1] = Layer(
                before.name,
                before.output_shape,
                before.parameters + operation.parameters,
                before.macs,
                before.bytes + size,
                before.live_bytes,
            )
        else:
            name = f"{operation.name} {_label(operation)}"
            rows.append(
                Layer(name, operation.output, operation.parameters, operation.macs, size, live[i])
            )
    return rows


def _label(operation: Operation) -> str:
    layer = operation.module
    if isinstance(layer, nn.Conv2d):
        return f"{operation.kind} {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    return operation.kind


def _weight_widths(found: list[Operation], quantization: Quantization) -> list[int]:
    """Bytes per parameter of every operation; stem and head may be kept in float by int8."""
    widths = [_WIDTH[quantization.scheme]] * len(found)
    convs = [i for i, operation in enumerate(found) if operation.macs]
    if quantization.keep_float in ("stem", "both"):
        widths[convs[0]] = 4
    if quantization.keep_float in ("head", "both"):
        widths[convs[-1]] = 4
    return widths


def _live_bytes(found: list[Operation], architecture: Architecture) -> list[int]:
    """Bytes of the feature maps alive while each operation runs (liveness in this order)."""
    width = _WIDTH[architecture.quantization.scheme]
    owner: dict[int, int] = {-1: -1}
    last_use: dict[int, int] = {}
    sizes = {-1: math.prod(architecture.front_end.shape) * width}
    for i, operation in enumerate(found):
        owner[i] = owner[operation.inputs[0]] if operation.in_place else i
        sizes.setdefault(owner[i], math.prod(operation.output) * width)
        for source in (*operation.inputs, i):
            last_use[owner[source]] = i
    return [
        sum(size for o, size in sizes.items() if o <= i <= last_use.get(o, -1))
        for i in range(len(found))
    ]


def estimate(architecture: Architecture, classes: int) -> Cost:
    """Parameters, MACs, the three sizes and peak memory of feature maps, in milliseconds."""
    found = operations(architecture, classes)
    quantization = architecture.quantization
    widths = _weight_widths(found, quantization)
    parameter_bytes = sum(o.parameters * w for o, w in zip(found, widths, strict=True))
    return Cost(
        parameters=sum(operation.parameters for operation in found),
        macs=sum(operation.macs for operation in found),
        parameter_bytes=parameter_bytes,
        file_bytes=file_bytes(found, quantization),
        flash_bytes=parameter_bytes + 8 * _channels(found) * (quantization.scheme == "int8"),
        peak_ram_bytes=max(_live_bytes(found, architecture)),
    )


def _channels(found: list[Operation]) -> int:
    return sum(operation.output[0] for operation in found if operation.macs)


def file_bytes(found: list[Operation], quantization: Quantization) -> int:
    """Length of the slimmed ONNX file."""
    widths = _weight_widths(found, quantization)
    total = 0
    for operation, width in zip(found, widths, strict=True):
        if operation.macs:
            total += operation.parameters * width + (260 if width == 1 else 60)
            total += 8 * operation.output[0] if width == 1 else 4 * operation.output[0]
    return total
