"""The one arena of a network in C: which maps are alive together, and where each one lies."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LOGITS = "logits"
_ALIGNMENT = 4


@dataclass(frozen=True)
class Map:
    """A stored feature map [C, F, T]; a uint8 one stands for (value - zero) * scale."""

    name: str
    shape: tuple[int, ...]
    kind: str
    scale: Any = None
    zero: int = 0

    @property
    def bytes(self) -> int:
        """Its place in the arena."""
        return math.prod(self.shape) * (1 if self.kind == "uint8_t" else 4)


@dataclass
class Step:
    """One call in C; `maps` are what it reads and writes, `{name}` in the text their places."""

    text: str
    maps: list[Map]


def maps_of(steps: Sequence[Step]) -> list[Map]:
    named = {m.name: m for step in steps for m in step.maps if m.name != LOGITS}
    return list(named.values())


def plan(steps: Sequence[Step]) -> tuple[dict[str, int], int]:
    """Offset of each map in the arena, and the arena's size: the best of some orders."""
    life: dict[str, tuple[int, int]] = {}
    for now, step in enumerate(steps):
        for m in maps_of([step]):
            life[m.name] = (life.get(m.name, (now, now))[0], now)
    maps = sorted(maps_of(steps), key=lambda m: -m.bytes)
    shuffle = random.Random(0).sample
    plans = [
        _placed(order, life) for order in [maps, *(shuffle(maps, len(maps)) for _ in range(30))]
    ]
    return min(plans, key=lambda found: found[1])


def _placed(maps: Sequence[Map], life: dict[str, tuple[int, int]]) -> tuple[dict[str, int], int]:
    """One map after the other, as low as it fits beside those that are alive with it."""
    placed: list[tuple[int, int, str]] = []
    for m in maps:
        first, last = life[m.name]
        beside = [p for p in placed if life[p[2]][0] <= last and first <= life[p[2]][1]]
        start = 0
        for low, high, _ in sorted(beside):
            if start + m.bytes <= low:
                break
            start = max(start, -(-high // _ALIGNMENT) * _ALIGNMENT)
        placed.append((start, start + m.bytes, m.name))
    return {name: low for low, _, name in placed}, max(high for _, high, _ in placed)
