"""Studies of any size with plausible figures, made through the record's structs."""

from __future__ import annotations

import math
import random

from nas.arch import Architecture, FrontEnd, Head, Quantization, Stage
from nas.record import (
    KB,
    Budget,
    Cost,
    Latency,
    Layer,
    Proxy,
    Score,
    State,
    StudyInputs,
    StudyRecord,
    TrialResult,
)
from nas.shipped import load_target

SCENES = ("airport", "bus", "market", "metro", "park", "plaza", "station", "street", "tram", "wood")


def architecture(chance: random.Random) -> str:
    """The canonical string of a network drawn from the published block kinds."""
    kind, width = chance.choice(["ds", "ir"]), chance.choice([8, 12, 16, 24, 32])
    expansion = chance.choice([2.0, 3.0, 4.0]) if kind == "ir" else 1.0
    stages = [Stage("conv", stride=(2, 2), channels=width)]
    for i in range(chance.randint(1, 4)):
        stride = chance.choice([(1, 1), (2, 2)])
        repeats, channels = chance.randint(1, 3), width * (i + 2)
        stages.append(Stage(kind, repeats, stride=stride, expansion=expansion, channels=channels))
    scheme = chance.choice(["int8", "int8", "float16", "float32"])
    front_end = FrontEnd(16000, 2.0, 1024, 1024, 320, chance.choice([32, 40, 64]))
    return str(Architecture(front_end, tuple(stages), Head(), Quantization(scheme)))


def score(accuracy: float, clips: int = 400, chance: random.Random | None = None) -> Score:
    """A score with a binomial 95 % interval and a confusion matrix around that accuracy."""
    chance = chance or random.Random(0)
    half = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 1e-4) / clips)
    shares = [min(1.0, max(0.0, chance.gauss(accuracy, 0.08))) for _ in SCENES]
    each = clips // len(SCENES)
    confusion = []
    for i, share in enumerate(shares):
        row = [0] * len(SCENES)
        row[i] = round(share * each)
        for _ in range(each - row[i]):
            row[(i + chance.choice([1, 1, 1, 3, 5])) % len(SCENES)] += 1
        confusion.append(row)
    groups = {f"city_{c}": round(accuracy + chance.gauss(0, 0.04), 3) for c in "abcd"}
    return Score(
        accuracy=accuracy,
        accuracy_low=max(0.0, accuracy - half),
        accuracy_high=min(1.0, accuracy + half),
        plain_accuracy=accuracy,
        log_loss=2.5 * (1 - accuracy),
        class_accuracy=dict(zip(SCENES, shares, strict=True)),
        group_accuracy=groups,
        confusion=confusion,
    )


def cost(size: int) -> Cost:
    """A cost whose figures all follow from the size of the file in bytes."""
    return Cost(
        parameters=size // 2,
        macs=size * 110,
        parameter_bytes=size * 3 // 4,
        file_bytes=size,
        flash_bytes=size + 20 * KB,
        peak_ram_bytes=24 * KB + size // 3,
    )


def complete(
    trial: int,
    accuracy: float,
    size: int,
    latency_ms: float | None = None,
    name: str = "",
    clips: int = 400,
    chance: random.Random | None = None,
) -> TrialResult:
    """A finished trial with a file of `size` bytes."""
    chance = chance or random.Random(trial)
    ms = latency_ms if latency_ms is not None else 0.2 + size / 40000 * chance.uniform(0.8, 1.6)
    return TrialResult(
        trial=trial,
        architecture=name or architecture(chance),
        state="complete",
        cost=cost(size),
        score=score(accuracy, clips, chance),
        float_accuracy=min(1.0, accuracy + chance.gauss(0.006, 0.006)),
        file_bytes=size,
        latency=Latency(ms, ms * 1.04, ms * 1.3, ms / 2.1, "measured", "host, one thread"),
        artifact=f"artifacts/{trial}.onnx",
        seconds=chance.uniform(8, 30),
        rungs=[(e, accuracy * (1 - 0.5 * math.exp(-e / 6))) for e in (3, 7, 14, 20)],
        finished_at=1_760_000_000.0 + 20 * trial,
    )


def inputs(
    kb: float = 64, name: str = "scenes", note: str = "", latency_ms: float | None = None
) -> StudyInputs:
    return StudyInputs(
        data=name,
        data_fingerprint=f"of {name}",
        data_note=note,
        classes=list(SCENES),
        space_name="tiny",
        space="",
        target="host",
        profile=load_target("host"),
        size_kind="file_bytes",
        budget=Budget(size_bytes=round(kb * KB), latency_ms=latency_ms),
        proxy=Proxy(),
        seed=0,
    )


def study(trials: int, name: str = "scenes", seed: int = 0, note: str = "") -> StudyRecord:
    """A search of `trials` trials: most complete, the rest of every other state."""
    chance = random.Random(seed)
    return StudyRecord(name, inputs(note=note), [_trial(i, chance, trials) for i in range(trials)])


def _trial(number: int, chance: random.Random, trials: int) -> TrialResult:
    size = round(KB * 2 ** min(7.5, max(1.6, chance.gauss(4.6, 1.2))))
    ceiling = 0.94 - 0.55 * math.exp(-0.42 * math.log2(size / 700)) + 0.01 * (number / trials)
    accuracy = max(0.1, min(0.97, ceiling - abs(chance.gauss(0, 0.06)) - chance.expovariate(18)))
    draw = chance.random()
    if size > 64 * KB:
        text = f"file is {size / KB:.1f} KB, the budget is 64 KB"
        return _other(number, "infeasible", text, size, chance)
    if draw < 0.06:
        return _other(number, "repeated", f"as trial {chance.randrange(number + 1)}", size, chance)
    if draw < 0.2:
        rungs = [(3, round(0.4 * accuracy, 3)), (7, round(0.6 * accuracy, 3))]
        text = f"weak for its size after 7 epochs ({rungs[-1][1]:.3f})"
        return _other(number, "stopped", text, size, chance, rungs)
    if draw < 0.21:
        return _other(number, "failed", "RuntimeError: quantisation did not converge", size, chance)
    return complete(number, accuracy, size, chance=chance)


def _other(
    number: int,
    state: State,
    reason: str,
    size: int,
    chance: random.Random,
    rungs: list[tuple[int, float]] | None = None,
) -> TrialResult:
    return TrialResult(
        trial=number,
        architecture=architecture(chance),
        state=state,
        reason=reason,
        cost=cost(size),
        rungs=rungs or [],
        seconds=0.0 if state in ("infeasible", "repeated") else chance.uniform(2, 9),
        finished_at=1_760_000_000.0 + 20 * number,
    )


def layer_table() -> list[Layer]:
    """A short layer table."""
    return [
        Layer("stem", (16, 32, 50), 160, 230400, 224, 51200, 144, 132, 191),
        Layer("stage 2, block 1, depthwise", (16, 32, 50), 160, 230400, 224, 51200),
        Layer("stage 2, block 1, pointwise", (32, 16, 25), 544, 204800, 640, 38400),
        Layer("head", (10, 1, 1), 330, 320, 370, 1290),
    ]
