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
    remote: Remote | None = None

    def reached_at(self, ssh: str | None) -> TargetProfile:
        """The same profile for a device at this address; unchanged without one."""
        if not ssh:
            return self
        remote = msgspec.structs.replace(self.remote or Remote(), ssh=ssh)
        return msgspec.structs.replace(self, remote=remote)
