"""What a search begins with: the networks of the literature, and those of another study's front,
so that its own front never starts worse than theirs; and a ladder of small to large ones, so that
the whole front is known after the first few trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from nas.arch import Architecture, parse, parse_quantization
from nas.published import published
from nas.space import SearchSpace

DRAWN = 48
FORMATS = ("int8_channel_none", "int8_tensor_none", "float16", "float32")


def literature() -> list[Architecture]:
    """All published networks."""
    return [parse(network.architecture) for network in published().values()]


def ladder(
    space: SearchSpace,
    clip_s: float,
    size: Callable[[Architecture], int | None],
    most: int,
    seed: int,
) -> list[Architecture]:
    """Random networks of the space, smallest first, whose `size`s (None: does not fit) double from
    step to step up to `most`: for each the nearest of DRAWN, as far down as they reach."""
    random = Random(seed)
    drawn = [space.draw(random, clip_s, i / (DRAWN - 1)) for i in range(DRAWN)]
    sizes = {a: found for a in drawn if (found := size(a)) is not None}
    if not sizes:
        return []
    doublings = round(math.log2(most / min(sizes.values())))
    wanted = [most / 2 ** (step + 0.5) for step in range(doublings, -1, -1)]
    return [min(sizes, key=lambda a: abs(math.log(sizes[a] / near))) for near in wanted]


def beginnings(
    networks: Iterable[Architecture],
    space: SearchSpace,
    clip_s: float,
    fits: Callable[[Architecture], bool],
) -> dict[str, dict[str, Any]]:
    """The choices of the networks that lie in the space and fit, by canonical string.

    A network may be changed to clips of `clip_s` seconds, and to the first of FORMATS with which
    it is in the space and fits, if it does not with its own.
    """
    found: dict[str, dict[str, Any]] = {}
    for network in networks:
        for variant in _variants(network, clip_s):
            choices = space.choices_of(variant, clip_s)
            if choices is not None and fits(variant):
                found[str(variant)] = choices
                break
    return found


def _variants(network: Architecture, clip_s: float) -> Iterator[Architecture]:
    formats = [network.quantization, *map(parse_quantization, FORMATS)]
    for quantization in formats:
        for length_s in (network.front_end.clip_s, clip_s):
            front_end = replace(network.front_end, clip_s=length_s)
            yield replace(network, front_end=front_end, quantization=quantization)
