"""An architecture as data, and the one canonical string that says it.

`str(architecture)` and `parse(text)` are exact inverses. The parts are joined by "/":

    front end / stage / stage / ... / head / quantisation

The first stage is the stem. A stage prints the keys that its kind uses (see KINDS), each once,
in that order. All pairs are frequency x time, as the feature maps are (channels, mel, frames).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

from nas.errors import UserError, nearest

Pair = tuple[int, int]
T = TypeVar("T")


class BlockKind(NamedTuple):
    """A row of the table of block kinds: its class in blocks.py, its keys, what it is."""

    block: str
    keys: str
    summary: str


_COMMON = "channels activation squeeze residual dropout"
KINDS = {
    "conv": BlockKind("Conv", f"repeats kernel stride {_COMMON}", "plain convolution"),
    "ds": BlockKind(
        "DepthwiseSeparable", f"repeats kernel stride {_COMMON}", "depthwise separable (MobileNet)"
    ),
    "fact": BlockKind(
        "Factorised", f"repeats kernel stride {_COMMON}", "kx1, then 1xk convolution"
    ),
    "ir": BlockKind(
        "InvertedResidual",
        "repeats kernel stride expansion channels activation squeeze dropout",
        "linear-bottleneck inverted residual (MobileNetV2)",
    ),
    "fused": BlockKind(
        "FusedInvertedResidual",
        "repeats kernel stride expansion channels activation squeeze dropout",
        "inverted residual with a full expanding convolution (EfficientNet-EdgeTPU)",
    ),
    "cpm": BlockKind(
        "CPMobile",
        "repeats kernel stride expansion channels activation response_norm dropout",
        "CP-Mobile: inverted residual with pooled shortcut (DCASE 2023)",
    ),
    "sep2": BlockKind(
        "DoubleSeparable",
        "repeats kernel stride channels activation dropout",
        "two separable convolutions and spatial dropout (VGG-like)",
    ),
    "bc": BlockKind(
        "BroadcastedResidual",
        "repeats kernel stride dilation channels activation subbands dropout",
        "broadcasted residual with sub-spectral normalisation (BC-ResNet)",
    ),
    "skip": BlockKind("Skip", "stride", "nothing, or the pooling of its stride"),
}
ACTIVATIONS = ("relu", "relu6", "hswish", "silu")
DOWN = {"s": "stride", "m": "max", "a": "avg"}
FRONT_ENDS = ("logmel", "relmel")  # by level
HEADS = ("gap", "map", "bc")
SCHEMES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class FrontEnd:
    """Log-mel spectrogram of a fixed window of audio; `deltas` of 1 or 2 add channels.

    `level` of 1 takes each clip's own level away (its string begins with relmel, not logmel):
    nothing then depends on how loud a recording is.
    """

    sample_rate_hz: int
    clip_s: float
    fft: int
    window: int
    hop: int
    mels: int
    deltas: int = 0
    center: int = 1
    level: int = 0

    def __post_init__(self) -> None:
        _within("sample rate", self.sample_rate_hz, 4000, 192000)
        _within("clip length in seconds", self.clip_s, 0.05, 60)
        _within("FFT length", self.fft, 32, 16384)
        _within("window", self.window, 16, self.fft)
        _within("hop", self.hop, 8, self.window)
        _within("mel bands", self.mels, 4, 512)
        _within("deltas", self.deltas, 0, 2)
        _within("center", self.center, 0, 1)
        _within("level", self.level, 0, 1)
        if not self.center and self.samples < self.fft:
            raise UserError(f"a clip of {self.samples} samples is shorter than FFT {self.fft}")

    @property
    def samples(self) -> int:
        """Audio samples of one clip."""
        return round(self.sample_rate_hz * self.clip_s)

    @property
    def frames(self) -> int:
        """Frames of one clip."""
        return 1 + (self.samples if self.center else self.samples - self.fft) // self.hop

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, mel bands, frames) of one clip."""
        return 1 + self.deltas, self.mels, self.frames


@dataclass(frozen=True)
class Stage:
    """`repeats` blocks of one kind; only the first of them strides or changes the width.

    `down` says how the stride is taken: by that first block ("stride"), or by max or average
    pooling after the last one. Squeeze-excite divides the width by `squeeze` (0: none).
    """

    kind: str
    repeats: int = 1
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    dilation: int = 1
    expansion: float = 1.0
    channels: int = 0
    activation: str = "relu"
    down: str = "stride"
    squeeze: int = 0
    residual: int = 0
    response_norm: int = 0
    subbands: int = 1
    dropout: int = 0

    def __post_init__(self) -> None:
        _one_of("block kind", self.kind, tuple(KINDS))
        _within("repeats", self.repeats, 1, 16)
        for axis, size, step in zip(("frequency", "time"), self.kernel, self.stride, strict=True):
            _within(f"kernel in {axis}", size, 1, 31)
            _within(f"stride in {axis}", step, 1, 8)
        _within("dilation", self.dilation, 1, 64)
        _within("expansion", self.expansion, 0.5, 10)
        _within("channels", self.channels, 1 if "channels" in self.keys else 0, 2048)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("downsampling", self.down, tuple(DOWN.values()))
        if self.stride == (1, 1) and self.down != "stride":
            raise UserError(f"a stride of 1x1 cannot be taken by {self.down} pooling: write s1x1")
        _within("squeeze-excite reduction", self.squeeze, 0, 16)
        _within("residual", self.residual, 0, 1)
        _within("response normalisation", self.response_norm, 0, 1)
        _within("sub-bands", self.subbands, 1, 16)
        _within("dropout in percent", self.dropout, 0, 90)
        for field in fields(self)[1:]:
            known = field.name in self.keys or field.name == "down"
            if not known and getattr(self, field.name) != field.default:
                raise UserError(f"block kind '{self.kind}' has no {field.name}")

    @property
    def keys(self) -> list[str]:
        """The fields that the kind uses."""
        return KINDS[self.kind].keys.split()


@dataclass(frozen=True)
class Head:
    """Classifier: `gap` = [1x1 conv to `channels`], global average pool, 1x1 conv to classes;
    `map` = 1x1 conv to classes, then the pool (DCASE 2024 baseline); `bc` = 5x5 depthwise, 1x1
    conv, pool, 1x1 conv to classes (BC-ResNet)."""

    kind: str = "gap"
    channels: int = 0
    dropout: int = 0

    def __post_init__(self) -> None:
        _one_of("head", self.kind, HEADS)
        _within("head channels", self.channels, 0, 2048)
        _within("dropout in percent", self.dropout, 0, 90)
        if (self.kind == "map" and self.channels) or (self.kind == "bc" and not self.channels):
            raise UserError(f"a '{self.kind}' head cannot have {self.channels} channels")


@dataclass(frozen=True)
class Quantization:
    """Number format of the artefact; `keep_float` names the parts that int8 leaves in float, and
    `qat` of 1 asks for fine-tuning under int8's rounding (quantisation-aware training)."""

    scheme: str = "float32"
    weights: str = "channel"
    keep_float: str = "none"
    qat: int = 0

    def __post_init__(self) -> None:
        _one_of("quantisation", self.scheme, SCHEMES)
        _one_of("int8 weights", self.weights, ("channel", "tensor"))
        _one_of("parts kept in float", self.keep_float, ("none", "stem", "head", "both"))
        _within("fine-tuning (qat)", self.qat, 0, 1)
        choices = self.weights, self.keep_float, self.qat
        if self.scheme != "int8" and choices != ("channel", "none", 0):
            raise UserError(
                f"only int8 takes weights, parts kept in float and fine-tuning, not {self.scheme}"
            )

    def __str__(self) -> str:
        if self.scheme != "int8":
            return self.scheme
        return f"int8_{self.weights}_{self.keep_float}" + "_qat" * self.qat


@dataclass(frozen=True)
class Architecture:
    """Front end, stages (the first is the stem), head and quantisation of one network."""

    front_end: FrontEnd
    stages: tuple[Stage, ...]
    head: Head
    quantization: Quantization

    def __str__(self) -> str:
        parts = [_print(FRONT_ENDS[self.front_end.level], _FRONT_END, self.front_end)]
        parts += [_print(s.kind, _stage_keys(s.kind), s) for s in self.stages]
        parts += [_print(self.head.kind, _HEAD, self.head), str(self.quantization)]
        return "/".join(parts)


class _Key(NamedTuple):
    """How one field is written: a letter (one of several for the stride) and a value, or a bare
    word."""

    letter: str
    field: str
    pattern: str
    read: Callable[[str], Any]
    example: str


def _pair(text: str) -> Pair:
    frequency, time = text.split("x")
    return int(frequency), int(time)


_INT, _DECIMAL = r"0|[1-9]\d*", r"(?:0|[1-9]\d*)(?:\.\d*[1-9])?"
_PAIR = r"[1-9]\d*x[1-9]\d*"


def _number(letter: str, field: str, example: str = "1") -> _Key:
    return _Key(letter, field, _INT, int, letter + example)


_FRONT_END = (
    _number("r", "sample_rate_hz", "16000"),
    _Key("t", "clip_s", _DECIMAL, float, "t1.5"),
    _number("f", "fft", "1024"),
    _number("w", "window", "1024"),
    _number("h", "hop", "320"),
    _number("m", "mels", "64"),
    _number("d", "deltas", "0"),
    _number("c", "center", "1"),
)
_STAGE = {
    key.field: key
    for key in (
        _number("n", "repeats"),
        _Key("k", "kernel", _PAIR, _pair, "k3x3"),
        _Key("sma", "stride", _PAIR, _pair, "s2x2"),
        _number("d", "dilation"),
        _Key("e", "expansion", _DECIMAL, float, "e4"),
        _number("c", "channels", "32"),
        _Key("", "activation", "[a-z]+[0-9]?", str, "relu"),
        _number("q", "squeeze", "0"),
        _number("g", "residual"),
        _number("o", "response_norm"),
        _number("b", "subbands", "5"),
        _number("p", "dropout", "0"),
    )
}
_HEAD = (_number("c", "channels", "0"), _number("p", "dropout", "0"))


def _stage_keys(kind: str) -> tuple[_Key, ...]:
    return tuple(_STAGE[name] for name in KINDS[kind].keys.split())


def _print(kind: str, keys: tuple[_Key, ...], part: object) -> str:
    return "_".join(
        [kind, *(_letter(part, key) + _value(getattr(part, key.field)) for key in keys)]
    )


def _letter(part: object, key: _Key) -> str:
    down = getattr(part, "down", "")
    return next(k for k, v in DOWN.items() if v == down) if key.field == "stride" else key.letter


def _value(value: int | float | str | Pair) -> str:
    if isinstance(value, tuple):
        return f"{value[0]}x{value[1]}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _within(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{what} is {value}, allowed is {low} to {high}")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"unknown {what} '{value}': {nearest(value, list(allowed))}")


def parse(text: str) -> Architecture:
    """The architecture that prints as `text`.

    Raises UserError that points at the part and key: unknown, repeated, missing, out of range.
    """
    parts = text.strip().split("/")
    if len(parts) < 4:
        raise UserError(
            f"architecture '{text}' has {len(parts)} part(s); it needs a front end, at least one "
            "stage, a head and a quantisation, joined by '/'"
        )
    front_end = _at(1, parts[0], _parse_front_end)
    stages = tuple(_at(i, part, _parse_stage) for i, part in enumerate(parts[1:-2], start=2))
    head = _at(len(parts) - 1, parts[-2], _parse_head)
    return Architecture(front_end, stages, head, _at(len(parts), parts[-1], parse_quantization))


def _at(position: int, part: str, read: Callable[[str], T]) -> T:
    try:
        return read(part)
    except UserError as error:
        raise UserError(f"architecture, part {position} '{part}': {error}") from None


def _parse_front_end(text: str) -> FrontEnd:
    kind, *tokens = text.split("_")
    _one_of("front end", kind, FRONT_ENDS)
    return FrontEnd(**_read(tokens, _FRONT_END), level=FRONT_ENDS.index(kind))


def _parse_stage(text: str) -> Stage:
    kind, *tokens = text.split("_")
    _one_of("block kind", kind, tuple(KINDS))
    return Stage(kind=kind, **_read(tokens, _stage_keys(kind)))


def _parse_head(text: str) -> Head:
    kind, *tokens = text.split("_")
    _one_of("head", kind, HEADS)
    return Head(kind=kind, **_read(tokens, _HEAD))


def parse_quantization(text: str) -> Quantization:
    """The number format that prints as `text`; raises UserError."""
    scheme, *rest = text.split("_")
    qat = rest[2:] == ["qat"]
    if len(rest) - qat != (2 if scheme == "int8" else 0):
        raise UserError(
            "expected float32, float16 or int8_WEIGHTS_FLOATPARTS (int8_channel_none), the last "
            "with or without _qat"
        )
    weights, keep_float = rest[:2] if rest else ("channel", "none")
    return Quantization(scheme, weights, keep_float, int(qat))


def _read(tokens: list[str], keys: tuple[_Key, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for place, key in enumerate(keys):
        token = tokens[place] if place < len(tokens) else ""
        match = _match(key, token)
        if not match:
            raise UserError(_mismatch(token, key, keys, values))
        values[key.field] = key.read(match[2])
        if key.field == "stride":
            values["down"] = DOWN[match[1]]
    if len(tokens) > len(keys):
        raise UserError(_mismatch(tokens[len(keys)], None, keys, values))
    return values


def _match(key: _Key, token: str) -> re.Match[str] | None:
    letter = f"[{key.letter}]" if key.letter else ""
    return re.fullmatch(f"({letter})({key.pattern})", token)


def _mismatch(
    token: str, expected: _Key | None, keys: tuple[_Key, ...], seen: dict[str, Any]
) -> str:
    """Why `token` cannot stand where `expected` should: missing, repeated, unknown or malformed."""
    wanted = f"expected {expected.field} such as '{expected.example}'" if expected else "no more"
    if not token:
        return f"missing key: {wanted}"
    if (
        expected
        and expected.letter
        and token[0] in expected.letter
        and not re.fullmatch("[a-z]{2,}.*", token)
    ):
        return f"'{token}' is malformed: {wanted}"
    same = [k for k in keys if k.letter and _match(k, token)]
    if same and same[0].field in seen:
        return f"repeated key '{token}'"
    if same and expected:
        return f"missing key before '{token}': {wanted}"
    order = " ".join(key.example for key in keys)
    return f"unknown key '{token}': {wanted if expected else 'allowed are'} (in order: {order})"
