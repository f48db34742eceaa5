"""What is known about one candidate: its cost before training, its measurement afterwards.

All of these are frozen msgspec Structs, so that they go to and from Optuna's storage and JSON
unchanged. KB is 1,024 bytes; sizes are stored in bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nas.target import SizeKind as SizeKind
from nas.target import TargetProfile

LatencyKind = Literal["measured", "estimated", "none"]
State = Literal["complete", "infeasible", "stopped", "repeated", "failed"]

Training = dict[str, int | float]  # settings of Proxy that a trial has of its own

KB = 1024


class Layer(msgspec.Struct, frozen=True):
    """One row of the layer table; `output_shape` is (channels, frequency, time).

    `bytes` are its parameters at their stored width (the DCASE rule); what it takes of the file
    are `weight_bytes`, `scale_bytes` and `graph_bytes`, as in Ledger.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    bytes: int
    live_bytes: int
    weight_bytes: int = 0
    scale_bytes: int = 0
    graph_bytes: int = 0


class Ledger(msgspec.Struct, frozen=True):
    """Where the bytes of the file are, predicted; they add up to `file_bytes` exactly.

    `scale_bytes` hold scales, zero points and biases; `graph_bytes` the nodes, their attributes
    and the headers of tensors; `container_bytes` the ends of the network and the file's frame.
    """

    weight_bytes: int
    scale_bytes: int
    graph_bytes: int
    container_bytes: int


class Cost(msgspec.Struct, frozen=True):
    """What the structure alone says, at the architecture's number format. All estimates.

    `macs` are those of the network's convolution and dense layers, the figure that papers and
    rules limit; the front end's work is beside it, and `norm_macs` are those that some rules count
    for normalisation layers. `flash_bytes` are parameters and int8's per-channel data, on a
    microcontroller also its runtime's code. Time and energy of one inference are known of a
    microcontroller only, by a model without measurements of the `unmodelled` operations.
    """

    parameters: int
    macs: int
    parameter_bytes: int
    file_bytes: int
    flash_bytes: int
    peak_ram_bytes: int
    front_end_macs: int = 0
    front_end_ram_bytes: int = 0
    ledger: Ledger | None = None
    norm_macs: int = 0
    latency_ms: float | None = None
    energy_mj: float | None = None
    unmodelled: list[str] = []

    @property
    def ram_bytes(self) -> int:
        """What must be in memory at once: the peak of the feature maps and the front end's
        buffers, which fill with the next clip meanwhile."""
        return self.peak_ram_bytes + self.front_end_ram_bytes


class Latency(msgspec.Struct, frozen=True, omit_defaults=True):
    """Time of one inference on one device, one clip.

    `latency_ms` is the fastest of a thousand runs in interleaved bursts, of CPU time where it runs
    on one thread; `reference_ratio` is that over the same of a fixed reference network timed in the
    same window; `float_latency_ms` is that of the same network in float32, if it was timed beside
    it. `facts` are those that the device told: CPU, clock, governor, temperature, versions.
    """

    latency_ms: float
    latency_median_ms: float
    latency_p95_ms: float
    reference_ratio: float
    latency_kind: LatencyKind
    device: str
    float_latency_ms: float | None = None
    facts: dict[str, str | int | float] = {}


class Score(msgspec.Struct, frozen=True):
    """Accuracy (mean of the per-class accuracies) on recordings, with its 95 % interval."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    plain_accuracy: float
    log_loss: float
    class_accuracy: dict[str, float]
    group_accuracy: dict[str, float]
    confusion: list[list[int]]
    device_accuracy: dict[str, float] = {}
    city_accuracy: dict[str, float] = {}


class TrialResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One trial, whatever became of it. Fields that a state cannot know stay None.

    `training` is what its space chose for its recipe; the rest of the recipe is the study's.

    `front_end_ms` is the time of the features of one clip, by torch on this machine; `latency`
    is the network's alone. `logit_error` is the root mean square difference of the artefact's
    logits from the float network's on the validation clips, as a share of the latter's spread;
    `fine_tuned` whether it is of the network fine-tuned under int8's rounding. `weights_of` is the
    trial that trained the network, if that was another one, in another number format.
    """

    architecture: str
    state: State
    reason: str = ""
    cost: Cost | None = None
    score: Score | None = None
    float_accuracy: float | None = None
    logit_error: float | None = None
    fine_tuned: bool = False
    file_bytes: int | None = None
    latency: Latency | None = None
    front_end_ms: float | None = None
    artifact: str | None = None
    training: Training = {}
    weights_of: int | None = None
    seconds: float = 0.0
    seconds_training: float = 0.0
    rungs: list[tuple[int, float]] = []
    trial: int = -1
    finished_at: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether trying it again would give the same: it was trained or timed, whatever came."""
        return bool(self.rungs or self.score or self.latency or self.float_accuracy is not None)

    @property
    def trained_by(self) -> int:
        """The trial that trained the network."""
        return self.trial if self.weights_of is None else self.weights_of


class Trained(msgspec.Struct, frozen=True):
    """The float weights of a trial: a safetensors file or object."""

    trial: int
    weights: str


class Budget(msgspec.Struct, frozen=True):
    """Limits on a candidate; None means no limit. `norm_macs`: those of normalisation count too."""

    size_bytes: int
    latency_ms: float | None = None
    ram_bytes: int | None = None
    macs: int | None = None
    norm_macs: bool = False

    def macs_of(self, cost: Cost) -> int:
        """The MACs that the limit means."""
        return cost.macs + self.norm_macs * cost.norm_macs


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The short training of a trial. `batch` is less where there are few recordings.

    `mixup` is the Beta distribution's parameter (0: none); `gain` the largest change of level, in
    standard deviations of the log-mel features; `frequency_mask` in bands; `time_mask_share` and
    `time_shift_share` in clip lengths; `mixstyle_share` the share of the batches that freq-MixStyle
    changes.
    """

    epochs: Annotated[int, Meta(ge=1)] = 20
    batch: Annotated[int, Meta(ge=2)] = 32
    learning_rate: Annotated[float, Meta(gt=0)] = 0.012
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    mixup: Annotated[float, Meta(ge=0)] = 0.0
    gain: Annotated[float, Meta(ge=0)] = 0.75
    frequency_mask: Annotated[int, Meta(ge=0)] = 8
    time_mask_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    time_shift_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    mixstyle_share: Annotated[float, Meta(ge=0, le=1)] = 0.0


def in_full(proxy: Proxy, epochs: int) -> Proxy:
    """The recipe of a full training: longer, in half the batch at two thirds of the learning rate.

    Short trainings do as well in large batches, and faster; of 60 epochs on the synthetic scenes
    the smaller ones made 90.4 % on test of 82.8 % (one network of 25 KB, four seeds).
    """
    rate, batch = proxy.learning_rate * 2 / 3, max(2, proxy.batch // 2)
    return msgspec.structs.replace(proxy, epochs=epochs, batch=batch, learning_rate=rate)


class StudyInputs(msgspec.Struct, frozen=True):
    """All that a study's results depend on, frozen when it is created. `space` is the search space
    as JSON; `target` is the name in `profile`."""

    data: str
    data_fingerprint: str
    data_note: str
    classes: list[str]
    space_name: str
    space: str
    target: str
    profile: TargetProfile
    size_kind: SizeKind
    budget: Budget
    proxy: Proxy
    seed: int

    def seed_of(self, trial: int) -> int:
        """The seed that the trial's network is trained with, in the search and for export."""
        return self.seed + trial

    def recipe_of(self, result: TrialResult) -> Proxy:
        """The recipe that the trial was trained by, for its export as well."""
        return msgspec.structs.replace(self.proxy, **result.training)


class Evaluated(msgspec.Struct, frozen=True):
    """One architecture trained and measured outside a study, under the name it was asked for."""

    name: str
    data_fingerprint: str
    target: str
    epochs: int
    result: TrialResult


class StudyRecord(msgspec.Struct, frozen=True):
    """One study as read back: its inputs and every recorded trial. `storage` is the URL that it was
    given, without the password."""

    name: str
    inputs: StudyInputs
    trials: list[TrialResult]
    started_at: float = 0.0
    storage: str | None = None


def size_bytes(result: TrialResult, kind: SizeKind) -> int:
    """The size that the target's budget means: measured for files, estimated otherwise."""
    if kind == "file_bytes" and result.file_bytes is not None:
        return result.file_bytes
    if result.cost is None:
        raise ValueError(f"trial {result.trial} has no cost")
    return int(getattr(result.cost, kind))
