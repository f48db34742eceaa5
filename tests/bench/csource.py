"""C on simulated boards: instructions, flash and RAM

Published networks in int8 (random weights: they cost what trained ones cost) as the C that a bundle
for a microcontroller holds, built by gcc -O2 and run by QEMU (mps2-an386 for Cortex-M4, mps2-an500
for M7). Instructions of one inference and of its front end are exact and repeat; they are not
cycles. Flash and RAM are those of the linked classifier, front end included, without stack; the
arena is the planned part of the RAM, beside what the cost model promised for the feature maps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.cost import estimate
from nas.csource import network_source
from nas.firmware import firmware, simulate, workspace_bytes
from nas.network import build, to_onnx
from nas.published import architecture_named
from nas.quantize import quantize

NETWORKS = ("dscnn-s", "dscnn-m", "micronet-kws-s", "micronet-kws-m", "bcresnet-1")


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for name in NETWORKS:
        yield name, partial(_row, name)


def _row(name: str) -> dict[str, Any]:
    architecture, classes = architecture_named(name, "int8_channel_none")
    settings = architecture.front_end
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    noise = random.standard_normal((8, *settings.shape), np.float32)
    model = to_onnx(build(architecture, classes), settings.shape)
    artifact = quantize(model, architecture.quantization, noise).SerializeToString()
    scale = np.zeros(settings.shape[:2], np.float32), np.ones(settings.shape[:2], np.float32)
    audio = random.standard_normal((2, settings.samples), np.float32) / 10
    labels = [f"{i}" for i in range(classes)]
    cost = estimate(architecture, classes)
    row: dict[str, Any] = {"MACs": cost.macs}
    with tempfile.TemporaryDirectory() as folder:
        for path, content in firmware(artifact, architecture, *scale, labels, audio).items():
            (Path(folder) / path).write_bytes(content)
        boards = [simulate(Path(folder), core) for core in ("m4", "m7")]
    for board in boards:
        assert board.equal_labels == board.equal_logits == board.clips
        core = board.core.upper()
        row[f"{core} network, instructions"] = f"{board.network_instructions:,}"
        row[f"{core} instructions per MAC"] = board.network_instructions / cost.macs
        row[f"{core} front end, instructions"] = f"{board.front_end_instructions:,}"
        row[f"{core} flash, B"] = f"{board.flash_bytes:,}"
    arena = network_source(artifact, workspace_bytes(settings)).arena_bytes
    return row | {
        "RAM, B": f"{boards[0].ram_bytes:,}",
        "arena, B": f"{arena:,}",
        "promised, B": f"{cost.peak_ram_bytes:,}",
    }
