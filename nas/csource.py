"""An int8 ONNX network as C99: constant weights, calls of assets/c/kernels.h, one planned arena.

A map is stored where the graph quantises it (uint8) or where a convolution or mean ends in float;
what lies between, element by element, becomes one expression, or a table of 256 bytes if it
depends on one stored byte only. Maps are height x width x channels (frequency x time x channels).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, load_from_string
from onnx.shape_inference import infer_shapes

from nas.arena import LOGITS, Map, Step, maps_of, plan
from nas.errors import UserError
from nas.plain import DEQUANTIZE, QUANTIZE, Array, arrays, attribute, computed


@dataclass(frozen=True)
class NetworkSource:
    """network.c, and what it keeps in memory. `arena_bytes` are planned: maps that are never
    needed together share them, and so does the front end's `workspace`."""

    text: str
    arena_bytes: int
    weight_bytes: int


def network_source(artifact: bytes, workspace_bytes: int) -> NetworkSource:
    """C of the int8 network `artifact`, with room for `workspace_bytes` beside its input.

    Raises UserError if the network has an operator that has no C.
    """
    lowering = _Lowering(load_from_string(artifact))
    lowering.run()
    source, steps = lowering.input, lowering.steps
    workspace = Map("workspace", (workspace_bytes,), "uint8_t")
    steps = [Step("", [source, workspace]), *steps]
    places, arena = plan(steps)
    pointers = {m.name: f"(({m.kind} *)(void *)(arena + {places[m.name]}))" for m in maps_of(steps)}
    pointers[LOGITS] = LOGITS
    body = "\n".join(f"    {step.text.format_map(pointers)}" for step in steps[1:])
    text = _FILE.format(
        constants="\n".join(lowering.constants),
        words=-(-arena // 4),
        input=lowering.set_input().format_map(pointers),
        workspace=pointers["workspace"],
        taps=lowering.taps,
        body=body,
    )
    return NetworkSource(text, arena, lowering.weight_bytes)


_FILE = """/* Generated: weights and layers of the network. */

#include "kernels.h"
#include "network.h"

{constants}

static uint32_t words[{words}]; /* the arena */
static const uint8_t *taps[{taps}];

void network_set(int channel, int band, int frame, float value)
{{
    uint8_t *arena = (uint8_t *)words;
    {input}
}}

float *network_workspace(void)
{{
    uint8_t *arena = (uint8_t *)words;
    return (float *)(void *){workspace};
}}

void network_run(float *logits)
{{
    uint8_t *arena = (uint8_t *)words;
    (void)taps;
{body}
}}
"""


_TABLE_OPSET = 19  # the first in which ONNX's reference implementation has quantisers
_WINDOWED = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool")
# C of one element. Sigmoid occurs in tables only.
_ELEMENTWISE = {
    "Add": "({0} + {1})",
    "Sub": "({0} - {1})",
    "Mul": "({0} * {1})",
    "Div": "({0} / {1})",
    "Sqrt": "sqrtf({0})",
    "Relu": "fmaxf({0}, 0.0f)",
    "Clip": "fminf(fmaxf({0}, {1}), {2})",
    "HardSigmoid": "fminf(fmaxf({alpha} * ({0}) + {beta}, 0.0f), 1.0f)",
    "HardSwish": "({0} * fminf(fmaxf(({0}) / 6.0f + 0.5f, 0.0f), 1.0f))",
    "Sigmoid": "",
}


@dataclass(frozen=True)
class _Form:
    """What a result is stored as: uint8 of this scale and zero point, held between low and high,
    or float if there is no scale; in the C variable `target` if named."""

    scale: Any = None
    zero: int = 0
    low: int = 0
    high: int = 255
    target: str = ""


class _Lowering:
    """Graph to steps. A map is stored when a later node needs it."""

    def __init__(self, model: ModelProto) -> None:
        self.model = infer_shapes(model)
        graph = self.model.graph
        self.known = arrays(graph)
        self.makers = {node.output[0]: node for node in graph.node}
        self.shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in [*graph.input, *graph.output, *graph.value_info]
        }
        self.stored: dict[str, Map] = {}
        self.steps: list[Step] = []
        self.constants: list[str] = []
        self.names: dict[bytes, str] = {}
        self.weight_bytes, self.taps, self.count = 0, 1, 0
        self.input = self._input()

    def run(self) -> None:
        """All steps, in the order of the graph, up to the logits."""
        for node in self.model.graph.node:
            if node.op_type in _WINDOWED and not self._follows_conv(node):
                self._source(node.input[0])
        self._real(self._origin(self.model.graph.output[0].name), LOGITS)

    # what constants and maps become in C

    def _constant(self, values: Array, kind: str) -> str:
        """Name of a constant array of these values; equal ones are stored once."""
        key = kind.encode() + values.tobytes()
        if key not in self.names:
            self.names[key] = name = f"c{len(self.names)}"
            items = [_number(value) for value in values.ravel().tolist()]
            listing = textwrap.fill(", ".join(items), 98, break_on_hyphens=False)
            aligned = " __attribute__((aligned(4)))" if kind == "int8_t" else ""
            self.constants.append(
                f"static const {kind} {name}[{len(items)}]{aligned} = {{\n{listing}\n}};"
            )
            self.weight_bytes += len(items) * (4 if kind in ("int32_t", "float") else 1)
        return self.names[key]

    def _new(self, shape: Sequence[int], kind: str, scale: Any = None, zero: int = 0) -> Map:
        self.count += 1
        return Map(f"m{self.count}", tuple(shape), kind, scale, zero)

    def _add(self, text: str, *maps: Map) -> None:
        self.steps.append(Step(text, list(maps)))

    def _result(self, form: _Form, shape: Sequence[int]) -> Map:
        if form.target:
            return Map(form.target, tuple(shape), "float")
        kind = "float" if form.scale is None else "uint8_t"
        return self._new(shape, kind, form.scale, form.zero)

    def _output(
        self, form: _Form, result: Map, sums: Array, scale: Array, offset: Array | None = None
    ) -> str:
        """An Output in C; `sums` are the biases in units of the integer sums."""
        bias = self._constant(sums.astype(np.int32), "int32_t")
        factors = self._constant(scale.astype(np.float32), "float")
        added = "NULL" if offset is None else self._constant(offset.astype(np.float32), "float")
        real = f"{{{result.name}}}" if form.scale is None else "NULL"
        numbers = f"{form.zero}, {form.low}, {form.high}"
        return f"&(const Output){{{{{bias}, {factors}, {added}, {numbers}, {real}}}}}"

    # values of the graph

    def _shape(self, name: str) -> tuple[int, int, int]:
        c, f, t = (*self.shapes[name][1:], 1, 1)[:3]
        return c, f, t

    def _scale(self, node: NodeProto) -> tuple[Any, int]:
        """Scale and zero point of a quantiser of a whole map."""
        zero = self.known[node.input[2]].item() if len(node.input) > 2 else 0
        return np.float32(self.known[node.input[1]].item()), int(zero)

    def _input(self) -> Map:
        name = self.model.graph.input[0].name
        readers = [node for node in self.model.graph.node if name in node.input]
        if [node.op_type for node in readers] == [QUANTIZE]:
            found = Map("input", self._shape(name), "uint8_t", *self._scale(readers[0]))
            self.stored[readers[0].output[0]] = found
        else:
            found = self.stored[name] = Map("input", self._shape(name), "float")
        return found

    def set_input(self) -> str:
        """The body of network_set."""
        c, _, t = self.input.shape
        at = f"{{input}}[(band * {t} + frame) * {c} + channel]"
        if self.input.scale is None:
            return f"{at} = value;"
        scale = _number(float(self.input.scale))
        return f"{at} = rounded(value / {scale}, {self.input.zero}, 0, 255);"

    def _maker(self, name: str) -> NodeProto:
        return self.makers.get(name) or NodeProto()

    def _origin(self, name: str) -> str:
        """The value that `name` is but for its shape."""
        while self._maker(name).op_type in ("Reshape", "Flatten"):
            name = self._maker(name).input[0]
        return name

    def _bytes(self, name: str) -> str | None:
        """The uint8 value that `name` stands for: it dequantises it, or takes maxima of it."""
        name = self._origin(name)
        maker = self._maker(name)
        if maker.op_type == DEQUANTIZE and maker.input[0] not in self.known:
            return self._origin(maker.input[0])
        maxima = maker.op_type == "MaxPool" and self._bytes(maker.input[0]) is not None
        return name if maxima or maker.op_type == QUANTIZE else None

    def _source(self, name: str) -> Map:
        """`name` as a stored map, uint8 if the graph has it so."""
        integers = self._bytes(name)
        if integers is not None:
            return self._quantised(integers)
        return self.stored[name] if name in self.stored else self._real(name)

    def _quantised(self, name: str) -> Map:
        if name not in self.stored:
            node = self.makers[name]
            lower = self._maximum if node.op_type == "MaxPool" else self._quantise
            self.stored[name] = lower(node)
        return self.stored[name]

    def _quantise(self, node: NodeProto) -> Map:
        """The map of a quantiser: the result of one kernel, or element by element."""
        scale, zero = self._scale(node)
        low, high, name = 0, 255, node.input[0]
        while self._maker(name).op_type in ("Relu", "Clip") and name not in self.stored:
            bounds = [self.known[n].item() for n in self.makers[name].input[1:]] or [0.0, np.inf]
            ends = np.clip(np.rint(np.array(bounds, np.float32) / scale) + zero, 0, 255)
            low, high = max(low, int(ends[0])), min(high, int(ends[1]))
            name = self.makers[name].input[0]
        maker = self._maker(name)
        lower = self._kernel(maker) if name not in self.stored else None
        return lower(maker, _Form(scale, zero, low, high)) if lower else self._elementwise(node)

    def _kernel(self, node: NodeProto) -> Callable[[NodeProto, _Form], Map] | None:
        """The method that lowers a node with a kernel of its own."""
        if node.op_type == "Conv":
            return self._convolution
        pools = {"GlobalAveragePool": self._global_mean, "AveragePool": self._window_mean}
        known = node.op_type in pools and self._bytes(node.input[0]) is not None
        return pools[node.op_type] if known else None

    def _real(self, name: str, target: str = "") -> Map:
        """The float value `name` as a stored map, in the C variable `target` if named."""
        maker = self.makers[name]
        lower = self._kernel(maker) if maker.op_type != "AveragePool" else None
        form = _Form(target=target)
        if lower:
            found = lower(maker, form)
        elif maker.op_type in ("ReduceMean", "GlobalAveragePool"):
            found = self._mean(maker, form)
        else:
            found = self._result(form, self._shape(name))
            text, maps = self._expression(name, found.shape)
            self._loop(f"{{{found.name}}}[i] = {text};", found.shape, found, *maps)
        self.stored[name] = found
        return found

    # convolutions

    def _weights(self, name: str) -> tuple[Array, Array | None]:
        """(int8 weights, scales) if they are quantised, else (float32 weights, None)."""
        if name in self.known:
            return self.known[name], None
        maker = self.makers[name]
        values, scale = self.known[maker.input[0]], self.known[maker.input[1]].ravel()
        return values, np.broadcast_to(scale, len(values)).astype(np.float32)

    def _bias(self, node: NodeProto, channels: int) -> Array:
        return self.known[node.input[2]] if len(node.input) > 2 else np.zeros(channels, np.float32)

    def _window(self, node: NodeProto, kernel: Sequence[int], rows: int = 0) -> str:
        """A Window in C; `rows` of output if it makes fewer than all."""
        _refuse(attribute(node, "auto_pad", b"NOTSET") != b"NOTSET", node, "automatic padding")
        c, f, t = self._shape(node.input[0])
        oc, of, ot = self._shape(node.output[0])
        pads = attribute(node, "pads", [0, 0, 0, 0])
        numbers = [f, t, c, rows or of, ot, oc, *kernel, *attribute(node, "strides", [1, 1])]
        numbers += [*attribute(node, "dilations", [1, 1]), *pads[:2]]
        return f"&(const Window){{{{{', '.join(map(str, numbers))}}}}}"

    def _convolution(self, node: NodeProto, form: _Form) -> Map:
        weights, scales = self._weights(node.input[1])
        if self._follows_conv(node):
            return self._sub_bands(node, form)
        source = self._source(node.input[0])
        if scales is None or source.scale is None:
            return self._float_convolution(node, source, form)
        bias, step = self._bias(node, len(weights)), source.scale * scales
        result = self._result(form, self._shape(node.output[0]))
        sums = -source.zero * weights.sum((1, 2, 3), dtype=np.int64)
        if form.scale is None:
            output = self._output(form, result, sums, step, bias)
        else:
            sums += np.rint(bias / step).clip(-(2**31), 2**31 - 1).astype(np.int64)
            output = self._output(form, result, sums, step / form.scale)
        lower = self._dense if attribute(node, "group", 1) == 1 else self._depthwise
        lower(node, weights, source, output, result)
        return result

    def _dense(
        self, node: NodeProto, weights: Array, source: Map, output: str, result: Map
    ) -> None:
        rows = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        length = padded.shape[1]
        direct = weights.shape[2:] == (1, 1) and not any(attribute(node, "pads", [0]))
        scratch = [] if direct and rows.shape == padded.shape else [(2 * length,)]
        columns = [self._new(shape, "uint8_t") for shape in scratch]
        place = f"{{{columns[0].name}}}" if columns else "NULL"
        self._add(
            f"convolution({self._window(node, weights.shape[2:])}, {{{source.name}}}, "
            f"{source.zero}, {self._constant(padded, 'int8_t')}, {length}, {output}, {place}, "
            f"{_bytes_of(result)});",
            *[source, result, *columns],
        )

    def _depthwise(
        self,
        node: NodeProto,
        weights: Array,
        source: Map,
        output: str,
        result: Map,
        rows: range | None = None,
    ) -> None:
        """`rows` are those of the output that the call makes, if not all."""
        grouped = attribute(node, "group", 1), weights.shape[1]
        _refuse(grouped != (len(weights), 1), node, "groups of several channels")
        _, f, t = result.shape
        rows = rows or range(f)
        self.taps = max(self.taps, math.prod(weights.shape[2:]))
        edge = self._new((len(weights),), "uint8_t")
        start = f" + {rows.start * t * len(weights)}" if rows.start else ""
        self._add(
            f"depthwise({self._window(node, weights.shape[2:], len(rows))}, {rows.start}, "
            f"{{{source.name}}}, {source.zero}, "
            f"{self._constant(weights[:, 0].transpose(1, 2, 0), 'int8_t')}, {output}, taps, "
            f"{{{edge.name}}}, {_bytes_of(result)}{start});",
            *[source, result, edge],
        )

    def _follows_conv(self, node: NodeProto) -> bool:
        """Whether the node is a norm, a float 1x1 depthwise convolution, right behind another."""
        if node.op_type != "Conv" or node.input[1] not in self.known:
            return False
        lone = self.known[node.input[1]].shape[1:] == (1, 1, 1)
        return lone and self._maker(self._origin(node.input[0])).op_type == "Conv"

    def _sub_bands(self, norm: NodeProto, form: _Form) -> Map:
        """A convolution and a norm whose channels are (channel, sub-band): one call per band."""
        conv = self.makers[self._origin(norm.input[0])]
        weights, scales = self._weights(conv.input[1])
        source = self._source(conv.input[0])
        whole = scales is not None and source.scale is not None and form.scale is not None
        _refuse(not whole, norm, "a norm in float")
        c, f, t = self._shape(conv.output[0])
        gains = self.known[norm.input[1]].reshape(c, -1)
        shifts = self._bias(norm, gains.size).reshape(gains.shape)
        shifts = shifts + gains * self._bias(conv, c)[:, None]
        sums = -source.zero * weights.sum((1, 2, 3), dtype=np.int64)
        step = source.scale * scales / form.scale
        result, rows = self._result(form, (c, f, t)), f // gains.shape[1]
        for band, (gain, shift) in enumerate(zip(gains.T, shifts.T, strict=True)):
            output = self._output(form, result, sums, gain * step, shift / form.scale)
            part = range(band * rows, (band + 1) * rows)
            self._depthwise(conv, weights, source, output, result, part)
        return result

    def _float_convolution(self, node: NodeProto, source: Map, form: _Form) -> Map:
        weights, scales = self._weights(node.input[1])
        if scales is not None:
            weights = weights * scales[:, None, None, None]
        result = self._result(form, self._shape(node.output[0]))
        scale = np.array([1.0 if form.scale is None else form.scale], np.float32)
        bias = self._bias(node, len(weights))
        output = self._output(form, result, np.zeros(1), scale, bias)
        values = self._constant(weights.transpose(0, 2, 3, 1).astype(np.float32), "float")
        place = f"{{{source.name}}}"
        real, integers = (place, "NULL") if source.scale is None else ("NULL", place)
        step = _number(float(1.0 if source.scale is None else source.scale))
        self._add(
            f"float_convolution({self._window(node, weights.shape[2:])}, "
            f"{attribute(node, 'group', 1)}, {real}, {integers}, {step}, {source.zero}, {values}, "
            f"{output}, {_bytes_of(result)});",
            *[source, result],
        )
        return result

    # pools

    def _global_mean(self, node: NodeProto, form: _Form) -> Map:
        source = self._source(node.input[0])
        c, f, t = source.shape
        result = self._result(form, (c, 1, 1))
        scale = source.scale / (np.float32(form.scale or 1) * np.float32(f * t))
        output = self._output(form, result, np.array([-source.zero * f * t]), np.reshape(scale, 1))
        call = f"global_mean({f * t}, {c}, {{{source.name}}}, {output}, {_bytes_of(result)});"
        self._add(call, source, result)
        return result

    def _window_mean(self, node: NodeProto, form: _Form) -> Map:
        _refuse(bool(attribute(node, "ceil_mode", 0)), node, "ceil_mode")
        source, result = (
            self._source(node.input[0]),
            self._result(form, self._shape(node.output[0])),
        )
        output = self._output(form, result, np.zeros(1), np.array([form.scale]))
        self._add(
            f"window_mean({self._window(node, attribute(node, 'kernel_shape', []))}, "
            f"{{{source.name}}}, {_number(float(source.scale))}, {source.zero}, "
            f"{attribute(node, 'count_include_pad', 0)}, {output}, {{{result.name}}});",
            *[source, result],
        )
        return result

    def _maximum(self, node: NodeProto) -> Map:
        """Maxima of integers keep the scale of what they are taken of."""
        source = self._source(node.input[0])
        result = self._new(self._shape(node.output[0]), "uint8_t", source.scale, source.zero)
        window = self._window(node, attribute(node, "kernel_shape", []))
        self._add(
            f"window_maximum({window}, {{{source.name}}}, {{{result.name}}});", source, result
        )
        return result

    def _mean(self, node: NodeProto, form: _Form) -> Map:
        """Means in float over all axes of length 1 in the result."""
        shape = self._shape(node.input[0])
        result = self._result(form, self._shape(node.output[0]))
        text, maps = self._expression(node.input[0], shape)
        size, place = math.prod(result.shape), f"{{{result.name}}}"
        share = _number(float(np.float32(size / math.prod(shape))))
        self._add(f"memset({place}, 0, {4 * size});", result)
        self._loop(f"{place}[{_index(result.shape)}] += {text};", shape, result, *maps)
        self._loop(f"{place}[i] *= {share};", result.shape, result)
        return result

    # element by element

    def _loop(self, statement: str, shape: Sequence[int], *maps: Map) -> None:
        c, f, t = shape
        self._add(
            f"for (int h = 0, i = 0; h < {f}; h++)\n        for (int w = 0; w < {t}; w++)\n"
            f"            for (int c = 0; c < {c}; c++, i++)\n                {statement}",
            *maps,
        )

    def _elementwise(self, node: NodeProto) -> Map:
        """A quantiser of a sum, a product, or any expression, rounded as ONNX Runtime does."""
        scale, zero = self._scale(node)
        result = self._new(self._shape(node.input[0]), "uint8_t", scale, zero)
        leaf = self._only_leaf(node)
        maker = self._maker(node.input[0])
        pair = [self._bytes(name) for name in maker.input]
        if leaf is not None:
            source = self._quantised(leaf)
            table = self._constant(self._table(node, leaf), "uint8_t")
            text, maps = f"{table}[{{{source.name}}}[i]]", [source]
        elif maker.op_type in ("Add", "Mul") and None not in pair:
            maps = [self._source(name) for name in maker.input]
            text = (_sum if maker.op_type == "Add" else _product)(maps[0], maps[1], result)
        else:
            text, maps = self._expression(node.input[0], result.shape)
            text = f"rounded({text} / {_number(float(scale))}, {zero}, 0, 255)"
        self._loop(f"{{{result.name}}}[i] = {text};", result.shape, result, *maps)
        return result

    def _only_leaf(self, node: NodeProto) -> str | None:
        """The one stored uint8 value that a quantiser's result depends on, element by element."""
        leaves, open_names = set(), [node.input[0]]
        while open_names:
            name = open_names.pop()
            maker, integers = self._maker(name), self._bytes(name)
            if integers is not None:
                inner = self.makers[integers]
                known = integers in self.stored or inner.op_type != QUANTIZE
                leaves.add((None if known else self._only_leaf(inner)) or integers)
            elif maker.op_type in _ELEMENTWISE:
                open_names += [n for n in maker.input if self.known.get(n, np.ones(2)).size > 1]
            else:
                return None
        same = len(leaves) == 1 and self.shapes[min(leaves)] == self.shapes[node.output[0]]
        return leaves.pop() if same else None

    def _table(self, node: NodeProto, leaf: str) -> Array:
        """The quantiser's result for each value of the byte that it depends on."""
        values = {**self.known, leaf: np.arange(256, dtype=np.uint8)}

        def value(name: str) -> Array:
            if name not in values:
                maker = self.makers[name]
                inputs = {n: value(n) for n in maker.input if n}
                values[name] = computed(maker, inputs, [helper.make_opsetid("", _TABLE_OPSET)])[0]
            return values[name]

        return value(node.output[0])

    def _expression(self, name: str, shape: Sequence[int]) -> tuple[str, list[Map]]:
        """C of one element of `name` in a loop over `shape`, and the maps that it reads."""
        if name in self.known:
            values = self.known[name]
            if values.size == 1:
                return _number(float(values.item())), []
            own = values.shape[-3:]
            values = values.reshape(own).transpose(1, 2, 0)
            place = _index(own, shape)
            return f"{self._constant(values, 'float')}[{place}]", []
        maker, integers = self._maker(name), self._bytes(name)
        if integers is None and name not in self.stored and maker.op_type in _ELEMENTWISE:
            parts = [self._expression(n, shape) for n in maker.input if n]
            alpha, beta = attribute(maker, "alpha", 0.2), attribute(maker, "beta", 0.5)
            numbers = {"alpha": _number(alpha), "beta": _number(beta)}
            form = _ELEMENTWISE[maker.op_type]
            _refuse(not form, maker, "more than one input map")
            return form.format(*(text for text, _ in parts), **numbers), [
                m for _, maps in parts for m in maps
            ]
        _refuse(integers is None and maker.op_type not in (*_WINDOWED, "ReduceMean", ""), maker)
        source = self._source(name)
        text = f"{{{source.name}}}[{_index(source.shape, shape)}]"
        if source.scale is not None:
            text = f"(float)({text} - {source.zero}) * {_number(float(source.scale))}"
        return text, [source]


def _refuse(refused: bool, node: NodeProto, what: str = "") -> None:
    if refused:
        detail = f" with {what}" if what else ""
        raise UserError(f"the operator '{node.op_type}'{detail} has no C")


def _bytes_of(result: Map) -> str:
    return "NULL" if result.scale is None else f"{{{result.name}}}"


def _number(value: float) -> str:
    """An exact literal."""
    if isinstance(value, int):
        return str(value)
    return f"{np.float32(value).item().hex()}f" if math.isfinite(value) else "HUGE_VALF"


def _index(own: Sequence[int], of: Sequence[int] | None = None) -> str:
    """Where a map [C, F, T] has the element of a loop over `of`: axes of length 1 are repeated."""
    if of is not None and tuple(own) == tuple(of):
        return "i"
    c, f, t = own
    place = " + ".join(part for part, size in ((f"h * {t}", f), ("w", t)) if size > 1)
    parts = [f"({place}) * {c}"] * bool(place) + ["c"] * (c > 1)
    return " + ".join(parts) or "0"


def _sum(a: Map, b: Map, result: Map) -> str:
    """ONNX Runtime's order of a quantised sum: two fused multiply-adds to one constant."""
    assert a.scale is not None and b.scale is not None
    ra, rb = np.float32(a.scale / result.scale), np.float32(b.scale / result.scale)
    start = np.float32(result.zero) - (ra * np.float32(a.zero) + rb * np.float32(b.zero))
    first, second = (
        f"(float){{{m.name}}}[{_index(m.shape, result.shape)}], {_number(float(ratio))}"
        for m, ratio in ((a, ra), (b, rb))
    )
    return f"rounded(fmaf({second}, fmaf({first}, {_number(float(start))})), 0, 0, 255)"


def _product(a: Map, b: Map, result: Map) -> str:
    assert a.scale is not None and b.scale is not None
    first, second = (f"({{{m.name}}}[{_index(m.shape, result.shape)}] - {m.zero})" for m in (a, b))
    scale = _number(float(a.scale * b.scale / result.scale))
    return f"rounded((float)({first} * {second}) * {scale}, {result.zero}, 0, 255)"
