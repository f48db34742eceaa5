"""Hardware profiles: one TOML file per device and software stack, each naming its source."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

SizeKind = Literal["file_bytes", "parameter_bytes", "flash_bytes"]

Count = Annotated[int, msgspec.Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the device or the rule set allows; None means no limit."""

    size_bytes: Count | None = None
    ram_bytes: Count | None = None
    macs: Count | None = None
    latency_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device with one software stack. `threads` of 0 means all cores."""

    name: str
    description: str
    source: str
    runtime: Literal["onnxruntime"]
    provider: str = "CPUExecutionProvider"
    threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    graph_optimization: Literal["all", "extended", "basic", "disabled"] = "all"
    size_kind: SizeKind = "file_bytes"
    limits: Limits = Limits()
