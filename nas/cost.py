"""Architecture -> what it costs, in milliseconds: parameters, MACs, three sizes, peak memory."""

from __future__ import annotations

import math

import msgspec
from torch import nn

from nas.arch import Architecture, FrontEnd
from nas.ledger import WIDTH, Share, file_shares, weight_widths
from nas.mcu import Work, flash_bytes, front_end_ram_bytes, latency_ms, peak_ram_bytes, work
from nas.record import Cost, Layer, Ledger
from nas.target import Microcontroller, TargetProfile
from nas.trace import Operation, live_bytes, operations

_FLOAT_BYTES = 4  # the front end keeps one window of samples and its spectrum in float32


def layers(architecture: Architecture, classes: int) -> list[Layer]:
    """The layer table. Operations that run in place, padding among them, are counted with the one
    before them.

    `bytes` are the parameters at their stored width; `live_bytes` the feature maps that must be
    in memory while the layer runs. With the container of `estimate`'s ledger, the bytes of the
    file add up to its predicted length.
    """
    found, quantization = operations(architecture, classes), architecture.quantization
    widths = weight_widths(found, quantization)
    live = live_bytes(found, widths, architecture.front_end.shape, WIDTH[quantization.scheme])
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


def estimate(architecture: Architecture, classes: int, target: TargetProfile | None = None) -> Cost:
    """Parameters, MACs, the three sizes and peak memory, in milliseconds. For a microcontroller
    `target` flash and memory are those of its software stack, and time and energy are known."""
    found = operations(architecture, classes)
    front_end, quantization = architecture.front_end, architecture.quantization
    widths = weight_widths(found, quantization)
    parameter_bytes = sum(o.parameters * w for o, w in zip(found, widths, strict=True))
    live = live_bytes(found, widths, front_end.shape, WIDTH[quantization.scheme])
    shares, container = file_shares(found, front_end.shape, quantization)
    weights, scales, graph = (sum(column) for column in zip(*shares, strict=True))
    ledger = Ledger(weights, scales, graph, container)
    cost = Cost(
        parameters=sum(operation.parameters for operation in found),
        macs=sum(operation.macs for operation in found),
        norm_macs=sum(o.parameters for o in found if o.kind == "batchnorm2d"),
        parameter_bytes=parameter_bytes,
        file_bytes=sum(msgspec.structs.astuple(ledger)),
        flash_bytes=parameter_bytes + 8 * _channels(found) * (quantization.scheme == "int8"),
        peak_ram_bytes=max(live),
        front_end_macs=front_end_macs(front_end),
        front_end_ram_bytes=2 * _FLOAT_BYTES * front_end.fft,
        ledger=ledger,
    )
    if target is None or target.mcu is None:
        return cost
    asked = work(found, widths, front_end.shape, WIDTH[quantization.scheme])
    return _on(target.mcu, asked, architecture, cost)


def _on(mcu: Microcontroller, asked: Work, architecture: Architecture, cost: Cost) -> Cost:
    """`cost` with the figures of a microcontroller. Cycles are known of all-int8 networks only."""
    quantization = architecture.quantization
    whole = (quantization.scheme, quantization.keep_float) == ("int8", "none")
    time_ms = latency_ms(asked, mcu) if whole else None
    return msgspec.structs.replace(
        cost,
        flash_bytes=flash_bytes(asked, mcu),
        peak_ram_bytes=peak_ram_bytes(asked, mcu),
        front_end_ram_bytes=front_end_ram_bytes(architecture.front_end),
        latency_ms=time_ms,
        energy_mj=mcu.active_mw * time_ms / 1e3 if mcu.active_mw and time_ms else None,
        unmodelled=list(asked.unmodelled),
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
