"""Published networks by name: search_spaces/architectures.toml as architectures."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from nas.arch import Architecture, parse, parse_quantization
from nas.errors import UserError, nearest
from nas.shipped import ARCHITECTURES, decode, folder


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network of the literature. `classes` is the paper's number of them; `note` says what
    is not exactly as published."""

    architecture: str
    classes: int
    paper: str
    note: str = ""


class _File(msgspec.Struct, frozen=True):
    networks: dict[str, Published]


def published() -> dict[str, Published]:
    """All published networks, by name."""
    path = folder("spaces") / f"{ARCHITECTURES}.toml"
    return decode(path.read_text(), _File, path.name).networks


def architecture_named(
    name_or_text: str, quantization: str | None = None, clip_s: float | None = None
) -> tuple[Architecture, int | None]:
    """The architecture of a published name (with its number of classes) or canonical string, in
    another number format or for clips of another length if asked for.

    Raises UserError that points at what is wrong.
    """
    architecture, classes = _named(name_or_text)
    if quantization:
        architecture = replace(architecture, quantization=parse_quantization(quantization))
    if clip_s:
        front_end = replace(architecture.front_end, clip_s=clip_s)
        architecture = replace(architecture, front_end=front_end)
    return architecture, classes


def _named(name_or_text: str) -> tuple[Architecture, int | None]:
    if "/" in name_or_text:
        return parse(name_or_text), None
    known = published()
    if name_or_text not in known:
        raise UserError(
            f"unknown architecture '{name_or_text}': {nearest(name_or_text, list(known))} "
            "(or give a canonical string)"
        )
    entry = known[name_or_text]
    return parse(entry.architecture), entry.classes
