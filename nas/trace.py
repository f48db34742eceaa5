"""Architecture -> its operations in execution order, without training or exporting anything.

The real module is built without memory (torch's meta device) and traced with torch.fx; shapes,
parameters and multiply-accumulates (MACs) are read off it. MACs count convolution and dense
layers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn

from nas.arch import Architecture, Quantization
from nas.blocks import GlobalResponseNorm, SubSpectralNorm
from nas.network import build

Shape = tuple[int, ...]
# These run inside the operation before or after them in every runtime that we ship to.
_IN_PLACE = (
    *(nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Dropout2d, nn.Identity),
    nn.ZeroPad2d,
)


@dataclass(frozen=True)
class Operation:
    """One operation of the network; `inputs` are indices of earlier ones, -1 the features.

    `kind` is conv, depthwise, the lower-case name of any other module, or add, mul.
    `output` is (channels, frequency, time); `window` the positions that one output looks at.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    output: Shape
    parameters: int
    macs: int
    in_place: bool
    module: nn.Module | None
    window: int = 1


# Norms that are one operation to the reader of a layer table, whatever they are made of.
_WHOLE = (GlobalResponseNorm, SubSpectralNorm)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _WHOLE) or super().is_leaf_module(m, qualified_name)


def operations(architecture: Architecture, classes: int) -> list[Operation]:
    """All operations in execution order, the features' input left out."""
    return list(_traced(replace(architecture, quantization=Quantization()), classes))


# A search asks for one network several times over, and in every number format.
@lru_cache(maxsize=8)
def _traced(architecture: Architecture, classes: int) -> tuple[Operation, ...]:
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
    return tuple(found)


def _operation(
    node: fx.Node, network: nn.Module, index: dict[fx.Node, int], shapes: dict[fx.Node, Shape]
) -> Operation:
    sources = [n for n in node.all_input_nodes if n in index]
    inputs = tuple(index[n] for n in sources)
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    output = _output(node, module, [shapes[n] for n in sources])
    parameters, macs, window = 0, 0, 1
    if module is not None:
        parameters = sum(p.numel() for p in module.parameters())
    if isinstance(module, nn.Conv2d):
        macs = math.prod(output) * math.prod(module.weight.shape[1:])
        window = math.prod(module.kernel_size)
    in_place = isinstance(module, _IN_PLACE) or node.name.startswith(("flatten", "relu"))
    return Operation(
        name=str(node.target) if module is not None else node.name,
        kind=_kind(node, module),
        inputs=inputs,
        output=output,
        parameters=parameters,
        macs=macs,
        in_place=in_place,
        module=module,
        window=window,
    )


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
    return tuple(max(sizes) for sizes in zip(*inputs, strict=True))


def _slide(size: Shape, layer: Any) -> tuple[int, int]:
    """Output size (F, T) of a sliding window."""
    kernel, stride, padding = both(layer.kernel_size), both(layer.stride), both(layer.padding)
    dilation = both(getattr(layer, "dilation", 1))
    frequency, time = (
        (size[i + 1] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return frequency, time


def live_bytes(
    found: Sequence[Operation], widths: Sequence[int], shape: Shape, width: int
) -> list[int]:
    """Bytes of the feature maps alive while each operation runs (liveness in this order), at
    `width` bytes per value; the features of `shape` (C, F, T), among them, are as wide as the
    weights of the first convolution, of the `widths` of all operations."""
    owner: dict[int, int] = {-1: -1}
    last_use: dict[int, int] = {}
    stem = next((w for o, w in zip(found, widths, strict=True) if o.macs), width)
    sizes = {-1: math.prod(shape) * stem}
    for i, operation in enumerate(found):
        owner[i] = owner[operation.inputs[0]] if operation.in_place else i
        sizes.setdefault(owner[i], math.prod(operation.output) * width)
        for source in (*operation.inputs, i):
            last_use[owner[source]] = i
    return [
        sum(size for o, size in sizes.items() if o <= i <= last_use.get(o, -1))
        for i in range(len(found))
    ]


def both(value: Any) -> tuple[int, int]:
    """torch's size of a window as (F, T), whether it was given as one number or two."""
    return value if isinstance(value, tuple) else (value, value)
