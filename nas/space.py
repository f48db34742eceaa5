"""A search space: lists of choices in TOML -> sample(trial) -> Architecture.

Every combination of choices is a valid architecture: a choice that would change nothing (a
residual where no shape allows it, a way of pooling without a stride) is not asked for, so that
one network has one set of choices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from random import Random
from typing import Any, Protocol

import msgspec

from nas.arch import KINDS, Architecture, FrontEnd, Head, Quantization, Stage
from nas.errors import UserError
from nas.record import Proxy, Training
from nas.shipped import decode, read

Choose = Callable[[str, Sequence[Any]], Any]


class Trial(Protocol):
    """What sampling needs of an Optuna trial (or of a FixedTrial in its place)."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class FrontEndChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lists of choices; `window` left out means the FFT length, `clip_s` the data's own."""

    sample_rate_hz: tuple[int, ...]
    fft: tuple[int, ...]
    hop: tuple[int, ...]
    mels: tuple[int, ...]
    window: tuple[int, ...] = ()
    clip_s: tuple[float, ...] = ()
    deltas: tuple[int, ...] = (0,)
    center: tuple[int, ...] = (1,)
    level: tuple[int, ...] = (0,)


class StageChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lists of choices of one stage; strides and kernels are "FxT" (frequency x time)."""

    kind: tuple[str, ...]
    repeats: tuple[int, ...] = (1,)
    kernel: tuple[str, ...] = ("3x3",)
    stride: tuple[str, ...] = ("1x1",)
    down: tuple[str, ...] = ("stride",)
    dilation: tuple[int, ...] = (1,)
    expansion: tuple[float, ...] = (1.0,)
    channels: tuple[int, ...] = ()
    activation: tuple[str, ...] = ("relu",)
    squeeze: tuple[int, ...] = (0,)
    residual: tuple[int, ...] = (0,)
    response_norm: tuple[int, ...] = (0,)
    subbands: tuple[int, ...] = (1,)
    dropout: tuple[int, ...] = (0,)


class HeadChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lists of choices of the head; a "map" head has no channels, a "bc" head some."""

    kind: tuple[str, ...] = ("gap",)
    channels: tuple[int, ...] = (0,)
    dropout: tuple[int, ...] = (0,)


class QuantizationChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lists of choices of the number format; all but `scheme` are int8's. `qat` of 1 fine-tunes
    the trained network under int8's rounding."""

    scheme: tuple[str, ...] = ("int8",)
    weights: tuple[str, ...] = ("channel",)
    keep_float: tuple[str, ...] = ("none",)
    qat: tuple[int, ...] = (0,)


class TrainingChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lists of choices of how strong each augmentation is, by the names of Proxy; what is left out
    is as the study has it."""

    mixup: tuple[float, ...] = ()
    gain: tuple[float, ...] = ()
    frequency_mask: tuple[int, ...] = ()
    time_mask_share: tuple[float, ...] = ()
    time_shift_share: tuple[float, ...] = ()
    mixstyle_share: tuple[float, ...] = ()


class SearchSpace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All choices. `front_end` is a list of alternatives, each with lists of its own; `stages[0]`
    is the stem, and `depth` offers how many of the stages a network has (default: all);
    `training` may let the trials find out what augmentation serves them."""

    name: str
    description: str
    front_end: tuple[FrontEndChoices, ...]
    stages: tuple[StageChoices, ...]
    depth: tuple[int, ...] = ()
    head: HeadChoices = HeadChoices()
    quantization: QuantizationChoices = QuantizationChoices()
    training: TrainingChoices = TrainingChoices()

    def sample(self, trial: Trial, clip_s: float) -> Architecture:
        """The architecture of this trial's choices, for clips of `clip_s` seconds unless the
        space has clip lengths of its own."""
        return _sample(self, partial(_ask, trial), clip_s)

    def sample_training(self, trial: Trial) -> Training:
        """What this trial's recipe has in place of the study's."""
        return {
            key: _ask(trial, f"training_{key}", choices)
            for key, choices in msgspec.structs.asdict(self.training).items()
            if choices
        }

    def choices_of_training(self, training: Training) -> dict[str, Any]:
        """The choices that sample to these settings."""
        offered = msgspec.structs.asdict(self.training)
        return {
            f"training_{key}": sorted(offered[key]).index(value)
            for key, value in training.items()
            if len(offered[key]) > 1
        }

    def choices_of(
        self, architecture: Architecture, clip_s: float | None = None
    ) -> dict[str, Any] | None:
        """The choices that sample to this architecture for clips of `clip_s` seconds (default:
        of its own length); None if it is not in the space."""
        length_s = clip_s or architecture.front_end.clip_s
        for front in range(len(self.front_end)):
            found = self._choices_of(architecture, _wanted(architecture, front), length_s)
            if found is not None:
                return found
        return None

    def _choices_of(
        self, architecture: Architecture, wanted: dict[str, Any], clip_s: float
    ) -> dict[str, Any] | None:
        asked: dict[str, Any] = {}

        def recall(name: str, choices: Sequence[Any]) -> Any:
            value = wanted.get(name)
            if value not in choices:
                raise _NotInSpace
            if len(choices) > 1:
                asked[name] = value if isinstance(value, str) else sorted(choices).index(value)
            return value

        try:
            sampled = _sample(self, recall, clip_s)
        except _NotInSpace:
            return None
        return asked if sampled == architecture else None

    def contains(self, architecture: Architecture) -> bool:
        """Whether some choices sample to this architecture."""
        return self.choices_of(architecture) is not None

    def smallest(
        self, size: Callable[[Architecture], float], clip_s: float, enough: float = -math.inf
    ) -> Architecture:
        """An architecture of `size` at most `enough`, or the one of least size that a descent
        finds which changes one choice at a time, from the least of all numbers on."""
        fixed: dict[str, Any] = {}
        best = _sample(self, _fixed(fixed, {}), clip_s)
        improved = True
        while improved and size(best) > enough:
            improved = False
            asked: dict[str, Sequence[Any]] = {}
            _sample(self, _fixed(fixed, asked), clip_s)
            for name, value in [(n, v) for n, choices in asked.items() for v in choices]:
                candidate = _sample(self, _fixed({**fixed, name: value}, {}), clip_s)
                if size(candidate) < size(best):
                    best, improved, fixed[name] = candidate, True, value
        return best

    def draw(self, random: Random, clip_s: float, share: float) -> Architecture:
        """A random architecture that tends to be small: each number of its blocks is the least
        one but for a random `share` of them. So shares from 0 to 1 draw all sizes."""

        def choose(name: str, choices: Sequence[Any]) -> Any:
            sized = not (isinstance(choices[0], str) or name.startswith("front"))
            least = sized and random.random() >= share
            return min(choices) if least else random.choice(choices)

        return _sample(self, choose, clip_s)

    def formats(self) -> list[Quantization]:
        """All number formats that it holds."""
        whole = [Quantization(scheme) for scheme in self.quantization.scheme if scheme != "int8"]
        int8 = itertools.product(*_int8_choices(self.quantization))
        return whole + [
            Quantization("int8", *c) for c in int8 if "int8" in self.quantization.scheme
        ]

    def count(self) -> int:
        """How many distinct architectures the space holds (for one clip length)."""
        ways = {1: 1}
        stacks = 0
        for number, choices in enumerate(self.stages, start=1):
            ways = _stage_ways(choices, ways)
            if number in (self.depth or (len(self.stages),)):
                stacks += sum(ways.values())
        fronts = sum(_combinations(front) for front in self.front_end)
        rest = _head_count(self.head) * len(self.formats())
        return fronts * stacks * rest

    def count_training(self) -> int:
        """How many ways to train each of them the space holds."""
        return _combinations(self.training)


def load_space(name_or_path: str) -> SearchSpace:
    """A built-in space or the user's own TOML file; raises UserError for what is wrong in it."""
    return space_from_toml(read("spaces", name_or_path)[1], name_or_path)


def space_from_toml(text: str, origin: str) -> SearchSpace:
    """The space of a TOML text; `origin` names it in errors."""
    space = decode(text, SearchSpace, origin)
    try:
        _check(space)
    except UserError as error:
        raise UserError(f"search space '{origin}': {error}") from None
    return space


def _check(space: SearchSpace) -> None:
    """Each list has distinct choices and every choice is valid next to the extremes of the rest."""
    if not space.stages:
        raise UserError("has no [[stages]]; it needs at least one, the stem")
    if not space.front_end:
        raise UserError("has no [[front_end]]; it needs at least one")
    if space.depth and not 1 <= min(space.depth) <= max(space.depth) <= len(space.stages):
        raise UserError(f"'depth' is {list(space.depth)}; allowed is 1 to {len(space.stages)}")
    for front in space.front_end:
        _check_front_end(front)
    _check_disjoint(space.front_end)
    for i, stage in enumerate(space.stages):
        for kind in stage.kind:
            _check_stage(kind, stage, f"stage {i} (the stem is 0)")
    _check_rest(space.head, space.quantization)
    _check_training(space.training)
    parts: list[tuple[str, msgspec.Struct]] = [
        ("head", space.head),
        ("quantization", space.quantization),
        ("training", space.training),
    ]
    parts += [(f"front end {i}", part) for i, part in enumerate(space.front_end)]
    parts += [(f"stage {i}", part) for i, part in enumerate(space.stages)]
    for where, part in parts:
        for key, values in msgspec.structs.asdict(part).items():
            if len(values) != len(set(values)):
                raise UserError(f"{where}: '{key}' repeats a choice: {values}")


def _check_front_end(front: FrontEndChoices) -> None:
    """Raises UserError if some of the choices do not go together."""
    shortest = min(front.fft)
    for rate, window, mels in itertools.product(
        front.sample_rate_hz, front.window or (shortest,), front.mels
    ):
        FrontEnd(rate, 1.0, shortest, window, max(front.hop), mels, level=max(front.level))


def _check_disjoint(alternatives: Sequence[FrontEndChoices]) -> None:
    """One front end must have one set of choices."""
    for first, second in itertools.combinations(alternatives, 2):
        one, other = (
            msgspec.structs.asdict(f) | {"window": f.window or f.fft} for f in (first, second)
        )
        if all(_common(one[key], other[key]) for key in one):
            raise UserError("two [[front_end]] alternatives hold a front end in common")


def _common(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return not first or not second or bool(set(first) & set(second))


def _check_rest(head: HeadChoices, quantization: QuantizationChoices) -> None:
    for kind, dropout in itertools.product(head.kind, head.dropout):
        widths = _head_widths(kind, head)
        if not widths:
            raise UserError(f"head: kind '{kind}' needs 'channels' above 0")
        for channels in widths:
            Head(kind, channels, dropout)
    for scheme in quantization.scheme:
        Quantization(scheme)
    for int8 in itertools.product(*_int8_choices(quantization)):
        Quantization("int8", *int8)


def _check_training(training: TrainingChoices) -> None:
    for key, choices in msgspec.structs.asdict(training).items():
        for value in choices:
            try:
                msgspec.convert({key: value}, Proxy)
            except msgspec.ValidationError as error:
                raise UserError(f"training: '{key}' holds {value!r}: {error}") from None


def _check_stage(kind: str, stage: StageChoices, where: str) -> None:
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind '{kind}', allowed are {', '.join(KINDS)}")
    for key in KINDS[kind].keys.split():
        choices = getattr(stage, key)
        if not choices:
            raise UserError(f"{where}: kind '{kind}' needs a list of '{key}'")
        for value in choices:
            try:
                Stage(
                    kind,
                    **{"channels": 8 * ("channels" in KINDS[kind].keys)} | {key: _read(key, value)},
                )
            except (UserError, ValueError) as error:
                raise UserError(f"{where}: '{key}' holds {value!r}: {error}") from None


def _read(key: str, value: Any) -> Any:
    if key not in ("kernel", "stride"):
        return value
    frequency, time = value.split("x")
    return int(frequency), int(time)


class _NotInSpace(Exception):
    """A value of the architecture is not among the choices."""


def _ask(trial: Trial, name: str, choices: Sequence[Any]) -> Any:
    """Numbers are offered in order, so that a sampler can tell more from less; a single choice
    is no question."""
    if len(choices) == 1:
        return choices[0]
    if isinstance(choices[0], str):
        return trial.suggest_categorical(name, tuple(choices))
    ordered = sorted(choices)
    return ordered[trial.suggest_int(name, 0, len(ordered) - 1)]


def _fixed(values: dict[str, Any], asked: dict[str, Sequence[Any]]) -> Choose:
    """Chooses these values, else the least; notes in `asked` what was to be chosen from."""

    def choose(name: str, choices: Sequence[Any]) -> Any:
        if len(choices) > 1:
            asked[name] = choices
        value = values.get(name)
        return value if value in choices else min(choices)

    return choose


def _sample(space: SearchSpace, choose: Choose, clip_s: float) -> Architecture:
    channels = 1
    stages = []
    for i, choices in enumerate(
        space.stages[: choose("depth", space.depth or (len(space.stages),))]
    ):
        stages.append(_stage(choose, f"stage{i}", choices, channels))
        channels = stages[-1].channels or channels
    return Architecture(
        _front_end(choose, space.front_end, clip_s),
        tuple(stages),
        _head(choose, space.head),
        _quantization(choose, space.quantization),
    )


def _front_end(choose: Choose, alternatives: Sequence[FrontEndChoices], clip_s: float) -> FrontEnd:
    number = choose("front_end", range(len(alternatives)))
    fields = msgspec.structs.asdict(alternatives[number])
    window = fields.pop("window")
    fields["clip_s"] = fields["clip_s"] or (clip_s,)
    values = {key: choose(f"front{number}_{key}", options) for key, options in fields.items()}
    values["window"] = choose(f"front{number}_window", window or (values["fft"],))
    return FrontEnd(**values)


def _stage(choose: Choose, prefix: str, choices: StageChoices, channels_in: int) -> Stage:
    kind = choose(f"{prefix}_kind", choices.kind)
    values: dict[str, Any] = {}
    for key in KINDS[kind].keys.split():
        if key != "residual":
            values[key] = _read(key, choose(f"{prefix}_{key}", getattr(choices, key)))
    if kind != "skip" and values["stride"] != (1, 1):
        values["down"] = choose(f"{prefix}_down", choices.down)
    if "residual" in KINDS[kind].keys and _can_add(values, channels_in):
        values["residual"] = choose(f"{prefix}_residual", choices.residual)
    return Stage(kind, **values)


def _can_add(values: dict[str, Any], channels_in: int) -> bool:
    """Whether any block of the stage keeps its shape, so that a residual can exist."""
    strides = values["stride"] != (1, 1) and values.get("down", "stride") == "stride"
    return values["repeats"] > 1 or (values["channels"] == channels_in and not strides)


def _head(choose: Choose, choices: HeadChoices) -> Head:
    kind = choose("head_kind", choices.kind)
    widths = _head_widths(kind, choices)
    dropout = choose("head_dropout", choices.dropout)
    return Head(kind, choose(f"head_channels_{kind}", widths), dropout)


def _head_widths(kind: str, choices: HeadChoices) -> list[int]:
    if kind == "map":
        return [0]
    return [c for c in choices.channels if c or kind != "bc"]


def _quantization(choose: Choose, choices: QuantizationChoices) -> Quantization:
    scheme = choose("scheme", choices.scheme)
    if scheme != "int8":
        return Quantization(scheme)
    weights, part = choose("weights", choices.weights), choose("keep_float", choices.keep_float)
    return Quantization(scheme, weights, part, choose("qat", choices.qat))


def _int8_choices(choices: QuantizationChoices) -> tuple[Sequence[Any], ...]:
    return choices.weights, choices.keep_float, choices.qat


def _wanted(architecture: Architecture, front: int) -> dict[str, Any]:
    """The values that sampling would have to choose, by the names it asks them under."""
    head, quantization = architecture.head, architecture.quantization
    wanted: dict[str, Any] = {"front_end": front, "depth": len(architecture.stages)}
    wanted |= {f"front{front}_{k}": v for k, v in asdict(architecture.front_end).items()}
    for i, stage in enumerate(architecture.stages):
        for key, value in asdict(stage).items():
            wanted[f"stage{i}_{key}"] = (
                f"{value[0]}x{value[1]}" if isinstance(value, tuple) else value
            )
    wanted |= {"head_kind": head.kind, "head_dropout": head.dropout}
    wanted |= {f"head_channels_{head.kind}": head.channels}
    return wanted | asdict(quantization)


def _combinations(part: FrontEndChoices | TrainingChoices) -> int:
    return math.prod(len(values) or 1 for values in msgspec.structs.asdict(part).values())


def _head_count(choices: HeadChoices) -> int:
    return len(choices.dropout) * sum(len(_head_widths(kind, choices)) for kind in choices.kind)


def _stage_ways(choices: StageChoices, ways: dict[int, int]) -> dict[int, int]:
    """Number of ways to reach each width behind the stage, from those before it."""
    found: dict[int, int] = {}
    for kind in choices.kind:
        keys = set(KINDS[kind].keys.split())
        rest = keys - {"channels", "stride", "repeats", "residual"}
        free = math.prod(len(getattr(choices, key)) for key in rest)
        for channels_in, before in ways.items():
            for values in _shapes(kind, choices):
                out = values.get("channels", channels_in)
                residuals = 1
                if "residual" in keys and _can_add(values, channels_in):
                    residuals = len(choices.residual)
                found[out] = found.get(out, 0) + before * free * residuals
    return found


def _shapes(kind: str, choices: StageChoices) -> list[dict[str, Any]]:
    """The combinations of choices that decide whether a residual can exist."""
    strides = [_read("stride", text) for text in choices.stride]
    if kind == "skip":
        return [{"stride": stride} for stride in strides]
    return [
        {"stride": stride, "down": down, "repeats": repeats, "channels": channels}
        for stride in strides
        for down in (choices.down if stride != (1, 1) else ["stride"])
        for repeats in choices.repeats
        for channels in choices.channels
    ]
