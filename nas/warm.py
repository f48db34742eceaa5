"""What a search begins with: the networks of the literature, and those of another study's front,
so that its own front never starts worse than theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from nas.arch import Architecture, parse, parse_quantization
from nas.published import published
from nas.space import SearchSpace

FORMATS = ("int8_channel_none", "int8_tensor_none", "float16", "float32")


def literature() -> list[Architecture]:
    """All published networks."""
    return [parse(network.architecture) for network in published().values()]


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
