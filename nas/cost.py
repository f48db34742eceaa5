"""Architecture -> what it costs, in milliseconds: parameters, MACs, three sizes, peak memory."""

from __future__ import annotations

import math

import msgspec
from torch import nn

from nas.arch import Architecture, FrontEnd
from nas.ledger import WIDTH, Share, file_shares, weight_widths
from nas.record import Cost, Layer, Ledger
from nas.trace import Operation, operations

_FLOAT_BYTES = 4  # the front end keeps one window of samples and its spectrum in float32


def layers(architecture: Architecture, classes: int) -> list[Layer]:
    """The layer table. Operations that run in place are counted with the one before them.

    `bytes` are the parameters at their stored width; `live_bytes` the feature maps that must be
    in memory while the layer runs. With the container of `estimate`'s ledger, the bytes of the
    file add up to its predicted length.
    """
    found, quantization = operations(architecture, classes), architecture.quantization
    live = _live_bytes(found, architecture)
    widths = weight_widths(found, quantization)
    shares, _ = file_shares(found, architecture.front_end.shape, quantization)
    rows: list[Layer] = []
    for operation, width, share, alive in zip(found, widths, shares, live, strict=True):
        row = _row(operation, width, share, alive)
        if operation.in_place and rows:
            rows[-1] = _together(rows[-1], row)
        else:
            rows.append(row)
    return rows


def _row(operation: Operation, width: int, share: Share, live_bytes: int) -> Layer:
    return Layer(
        name=f"{operation.name} {_label(operation)}",
        output_shape=operation.output,
        parameters=operation.parameters,
        macs=operation.macs,
        bytes=operation.parameters * width,
        live_bytes=live_bytes,
        weight_bytes=share.weights,
        scale_bytes=share.scales,
        graph_bytes=share.graph,
    )


def _together(before: Layer, in_place: Layer) -> Layer:
    keys = ("parameters", "bytes", "weight_bytes", "scale_bytes", "graph_bytes")
    sums = {key: getattr(before, key) + getattr(in_place, key) for key in keys}
    return msgspec.structs.replace(before, **sums)


def _label(operation: Operation) -> str:
    layer = operation.module
    if isinstance(layer, nn.Conv2d):
        return f"{operation.kind} {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    return operation.kind


def _live_bytes(found: list[Operation], architecture: Architecture) -> list[int]:
    """Bytes of the feature maps alive while each operation runs (liveness in this order)."""
    width = WIDTH[architecture.quantization.scheme]
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
    widths = weight_widths(found, quantization)
    parameter_bytes = sum(o.parameters * w for o, w in zip(found, widths, strict=True))
    shares, container = file_shares(found, architecture.front_end.shape, quantization)
    weights, scales, graph = (sum(column) for column in zip(*shares, strict=True))
    ledger = Ledger(weights, scales, graph, container)
    return Cost(
        parameters=sum(operation.parameters for operation in found),
        macs=sum(operation.macs for operation in found),
        parameter_bytes=parameter_bytes,
        file_bytes=sum(msgspec.structs.astuple(ledger)),
        flash_bytes=parameter_bytes + 8 * _channels(found) * (quantization.scheme == "int8"),
        peak_ram_bytes=max(_live_bytes(found, architecture)),
        front_end_macs=front_end_macs(architecture.front_end),
        front_end_ram_bytes=2 * _FLOAT_BYTES * architecture.front_end.fft,
        ledger=ledger,
    )


def front_end_macs(front_end: FrontEnd) -> int:
    """Multiplications of the features of one clip: window, real FFT (n log2 n), power, triangular
    mel filters (each bin is in two) and deltas over five frames. An estimate: libraries differ."""
    bins = front_end.fft // 2 + 1
    fft = round(front_end.fft * math.log2(front_end.fft))
    per_frame = front_end.window + fft + 2 * bins + 2 * bins + 5 * front_end.mels * front_end.deltas
    return per_frame * front_end.frames


def _channels(found: list[Operation]) -> int:
    return sum(operation.output[0] for operation in found if operation.macs)
