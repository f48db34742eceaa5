"""Operations -> what they cost on a microcontroller: flash, peak memory and time.

All of it is estimated. Time is cycles per multiply-accumulate, of dense and of depthwise layers;
memory is exact liveness in execution order with the kernels' scratch. A constant per network or
layer did not lower the leave-one-out error on MicroNets' boards, so there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nas.arch import FrontEnd
from nas.target import Microcontroller
from nas.trace import Operation, Shape, live_bytes

# What the networks that the profiles were held against are made of.
_VALIDATED = {
    *("conv", "depthwise", "batchnorm2d", "relu", "relu6", "adaptiveavgpool2d", "flatten"),
    *("zeropad2d", "dropout", "dropout2d", "identity"),
}


@dataclass(frozen=True)
class Work:
    """What a network asks of a microcontroller. `arena_bytes` is the peak of the feature maps and
    the scratch of the layer that reads them; `unmodelled` are kinds of operations without a
    measurement behind them."""

    dense_macs: int
    depthwise_macs: int
    layers: int
    channels: int
    weight_bytes: int
    arena_bytes: int
    unmodelled: tuple[str, ...] = ()


def work(found: Sequence[Operation], widths: Sequence[int], shape: Shape, width: int) -> Work:
    """The work of operations, given the bytes of a parameter of each, the features' (C, F, T) and
    the bytes of a value of a feature map."""
    layers = [operation for operation in found if operation.macs]
    depthwise = sum(o.macs for o in layers if o.kind == "depthwise")
    live = live_bytes(found, widths, shape, width)
    return Work(
        dense_macs=sum(o.macs for o in layers) - depthwise,
        depthwise_macs=depthwise,
        layers=len(layers),
        channels=sum(o.output[0] for o in layers),
        weight_bytes=sum(_weights(o) * w for o, w in zip(found, widths, strict=True)),
        arena_bytes=max(a + _scratch_bytes(o) for a, o in zip(live, found, strict=True)),
        unmodelled=tuple(sorted({o.kind for o in found} - _VALIDATED)),
    )


def _weights(operation: Operation) -> int:
    """Without biases and folded norms, which are per-channel data."""
    if operation.macs:
        return operation.macs // math.prod(operation.output[1:])
    return 0 if operation.kind == "batchnorm2d" else operation.parameters


def _scratch_bytes(operation: Operation) -> int:
    """CMSIS-NN unrolls the inputs of one position (depthwise) or two (other convolutions, but for
    1x1) to int16."""
    if not operation.macs:
        return 0
    per_output = operation.macs // math.prod(operation.output)
    if operation.kind == "depthwise":
        return 2 * operation.output[0] * per_output
    return 4 * per_output if operation.window > 1 else 0


def flash_bytes(work: Work, mcu: Microcontroller) -> int:
    """Weights, per-channel data and the description of every layer, and the runtime's code."""
    return mcu.runtime_flash_bytes + model_bytes(work, mcu)


def model_bytes(work: Work, mcu: Microcontroller) -> int:
    """`flash_bytes` without the runtime's code."""
    per_channel = mcu.flash_bytes_per_channel * work.channels
    return work.weight_bytes + per_channel + mcu.flash_bytes_per_layer * work.layers


def peak_ram_bytes(work: Work, mcu: Microcontroller) -> int:
    """Feature maps and scratch, per-channel data that the stack prepares, and its own state."""
    per_channel = mcu.ram_bytes_per_channel * work.channels
    return work.arena_bytes + per_channel + mcu.runtime_ram_bytes


def cycles(work: Work, mcu: Microcontroller) -> float:
    """Clock cycles of one inference of an int8 network."""
    dense = mcu.cycles_per_dense_mac * work.dense_macs
    return dense + mcu.cycles_per_depthwise_mac * work.depthwise_macs


def latency_ms(work: Work, mcu: Microcontroller) -> float:
    """Milliseconds of one inference of an int8 network."""
    return cycles(work, mcu) / mcu.clock_mhz / 1e3


def front_end_ram_bytes(front_end: FrontEnd) -> int:
    """What listening takes while the network runs: a ring of int16 samples that holds a window
    and the hop that arrives meanwhile, a real FFT in and out in float32, and the features of the
    next clip as int8."""
    ring = 2 * (front_end.window + front_end.hop)
    return ring + 2 * 4 * front_end.fft + math.prod(front_end.shape)
