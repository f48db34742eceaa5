"""A microcontroller's estimates in words, each with its known error, and the battery's days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas.record import Cost
from nas.target import Microcontroller, Spread, TargetProfile


def validity(error: Spread | None, unmodelled: Sequence[str] = ()) -> str:
    """How sure an estimate is, in words: its known error, or "not validated" and why."""
    if unmodelled:
        return f"not validated: no measurement behind {', '.join(unmodelled)}"
    return str(error) if error else "not validated"


def in_words(cost: Cost, target: TargetProfile, clip_s: float, battery_mwh: float) -> list[str]:
    """Every estimate of a microcontroller with its error, a line each, under a heading; [] for
    another target. One decision per clip; a battery of 0 is none."""
    mcu = target.mcu
    if mcu is None:
        return []
    size, ram = f"{cost.flash_bytes:,} bytes", f"{cost.peak_ram_bytes:,} bytes"
    said = [
        f"estimated for {target.description}:",
        f"  flash {size} ({validity(mcu.flash_error)}, of the model without the runtime's code)",
        f"  memory {ram} ({validity(mcu.ram_error)}), listening {cost.front_end_ram_bytes:,} more",
    ]
    if cost.latency_ms is None:
        return [*said, "  time and energy not known: cycles are those of int8 networks"]
    how = validity(mcu.latency_error, cost.unmodelled)
    said.append(f"  time {cost.latency_ms:.4g} ms per decision ({how})")
    found = duty(cost.latency_ms, clip_s, mcu)
    late = ", which is too slow to keep up" if cost.latency_ms > 1e3 * clip_s else ""
    share = f"{cost.latency_ms / 10 / clip_s:.3g} %"
    said.append(f"  duty cycle {share} of a clip of {clip_s:g} s{late}")
    if found is None or cost.energy_mj is None:
        return [*said, "  energy not known: the profile has no power (mcu.active_mw)"]
    said.append(f"  energy {cost.energy_mj:.4g} mJ per decision, of the network alone")
    if battery_mwh:
        idle = "" if found.idle_known else ", idling not counted: the profile has no mcu.idle_mw"
        days = found.days(battery_mwh)
        said.append(f"  a battery of {battery_mwh:g} mWh lasts {days:.3g} days{idle}")
    return said


@dataclass(frozen=True)
class Duty:
    """One decision per clip: the share of the time spent computing, and the mean power of the
    network and, where the profile knows it, of idling between decisions."""

    duty_cycle: float
    mean_mw: float
    idle_known: bool

    def days(self, battery_mwh: float) -> float:
        """How long a battery lasts."""
        return battery_mwh / self.mean_mw / 24


def duty(latency_ms: float, clip_s: float, mcu: Microcontroller) -> Duty | None:
    """None if the profile has no power. More than 1 computes longer than it listens."""
    if mcu.active_mw is None:
        return None
    share = latency_ms / 1e3 / clip_s
    busy = min(1.0, share)
    mean_mw = busy * mcu.active_mw + (1 - busy) * (mcu.idle_mw or 0.0)
    return Duty(share, mean_mw, mcu.idle_mw is not None)
