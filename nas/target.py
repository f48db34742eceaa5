"""Hardware profiles and rule sets: one TOML file each, naming the source of its numbers.

A profile is of a device that runs ONNX Runtime, of a microcontroller (`[mcu]`: flash, memory, time
and energy are computed), or of a challenge (`[rules]`) whose networks run on the machine at hand.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nas.errors import UserError

SizeKind = Literal["file_bytes", "parameter_bytes", "flash_bytes"]
Scheme = Literal["float32", "float16", "int8"]

Count = Annotated[int, Meta(gt=0)]
Bytes = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the device or the rule set allows; None means no limit. For a microcontroller, its
    flash (`size_bytes`) and memory (`ram_bytes`)."""

    size_bytes: Count | None = None
    ram_bytes: Count | None = None
    macs: Count | None = None
    latency_ms: Positive | None = None


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far estimates were from measurements of `networks` networks, in percent of the
    measurement: each left out of the fit in turn where there was a fit."""

    mean_percent: Annotated[float, Meta(ge=0)]
    worst_percent: Annotated[float, Meta(ge=0)]
    networks: Count

    def __str__(self) -> str:
        return (
            f"error {self.mean_percent:.1f} % mean, {self.worst_percent:.1f} % worst "
            f"of {self.networks} networks"
        )


class Microcontroller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A microcontroller with one software stack, for int8 networks.

    `active_mw` is the board's power while it computes, `idle_mw` between decisions; None: not
    known. The errors are None where no measurement was held against the estimate. `sources` say
    where each of the keys comes from.
    """

    core: str
    clock_mhz: Positive
    stack: str
    cycles_per_dense_mac: Positive
    cycles_per_depthwise_mac: Positive
    runtime_flash_bytes: Bytes
    runtime_ram_bytes: Bytes
    flash_bytes_per_channel: Bytes
    flash_bytes_per_layer: Bytes
    ram_bytes_per_channel: Bytes
    active_mw: Positive | None = None
    idle_mw: Annotated[float, Meta(ge=0)] | None = None
    latency_error: Spread | None = None
    ram_error: Spread | None = None
    flash_error: Spread | None = None
    sources: dict[str, str] = {}


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a challenge demands beside the limits; empty or None: nothing.

    `formats` are the number formats allowed; `norm_macs` counts those of normalisation layers;
    `accuracy` is the least allowed. `unverified` names what was not read in the organisers' text.
    """

    formats: list[Scheme] = []
    clip_s: Positive | None = None
    norm_macs: bool = False
    accuracy: Annotated[float, Meta(gt=0, le=1)] | None = None
    unverified: list[str] = []


class Remote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that is reached over ssh; an empty `ssh` says that none is at hand.

    `ssh` is `user@host`, `user@host:port` or a name of the user's ssh configuration, `python` the
    command that runs Python there, `timeout_s` how long one measurement may take. A trial whose
    device cannot be reached waits for it, or is recorded without a latency: `when_away`.
    """

    ssh: str = ""
    python: str = "python3"
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    when_away: Literal["wait", "no latency"] = "no latency"


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device with one software stack, or one rule set. `threads` of 0 means all cores."""

    name: str
    description: str
    source: str
    runtime: Literal["onnxruntime", "mcu"]
    provider: str = "CPUExecutionProvider"
    threads: Annotated[int, Meta(ge=0)] = 1
    graph_optimization: Literal["all", "extended", "basic", "disabled"] = "all"
    size_kind: SizeKind = "file_bytes"
    limits: Limits = Limits()
    remote: Remote | None = None
    mcu: Microcontroller | None = None
    rules: Rules | None = None

    def __post_init__(self) -> None:
        if self.runtime != "mcu":
            if self.mcu:
                raise ValueError("a table [mcu] contradicts runtime 'onnxruntime': remove one")
            return
        if not self.mcu:
            raise ValueError("missing key 'mcu': runtime 'mcu' needs a table [mcu]")
        if self.size_kind != "flash_bytes":
            raise ValueError(
                f"size_kind is '{self.size_kind}'; with runtime 'mcu' it must be 'flash_bytes'"
            )
        if not self.limits.size_bytes or not self.limits.ram_bytes:
            raise ValueError(
                "runtime 'mcu' needs the device's flash and memory as limits.size_bytes and "
                "limits.ram_bytes"
            )
        if (self.provider, self.threads, self.graph_optimization) != _ORT_DEFAULTS or self.remote:
            raise ValueError(
                "provider, threads, graph_optimization and [remote] contradict runtime 'mcu': "
                "remove them"
            )
        if self.rules:
            raise ValueError("a table [rules] contradicts runtime 'mcu': remove one")

    def reached_at(self, ssh: str | None) -> TargetProfile:
        """The same profile for a device at this address; unchanged without one."""
        if not ssh:
            return self
        if self.mcu:
            raise UserError(
                f"--remote is {ssh}, but target '{self.name}' is a microcontroller, whose times "
                "are estimated: leave one of them out"
            )
        remote = msgspec.structs.replace(self.remote or Remote(), ssh=ssh)
        return msgspec.structs.replace(self, remote=remote)


_ORT_DEFAULTS = ("CPUExecutionProvider", 1, "all")
