"""The pipeline of one trial: build, train, export, quantise, measure - a function that calls
functions. Every figure is taken from the bytes that would ship."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from types import MappingProxyType

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import ModelProto
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from nas.arch import Architecture, Quantization
from nas.artifacts import fetch, keep
from nas.cost import estimate
from nas.dataset import Dataset
from nas.errors import UserError
from nas.features import Features, SplitFeatures, compute, front_end_ms
from nas.finetune import fine_tuned
from nas.measure import QUICK, THOROUGH, latencies_if_there, logits
from nas.network import build, to_onnx
from nas.pareto import quantization
from nas.quantize import CALIBRATION_CLIPS, quantize
from nas.record import Proxy, Score, Trained, TrialResult
from nas.score import score
from nas.target import TargetProfile
from nas.train import one_thread, predict, train

MOST_LOST = 0.05
# After a full training, int8 that costs more of the validation accuracy is tried with fine-tuning.
MOST_LOST_UNTUNED = 0.01

Rungs = list[tuple[int, float]]  # finished epochs, and the accuracy then
CLOSE = 1.1


@dataclass(frozen=True)
class Job:
    """What every trial of a study has in common."""

    dataset: Dataset
    target: TargetProfile
    proxy: Proxy
    max_latency_ms: float | None = None


def evaluate_architecture(
    architecture: Architecture,
    job: Job,
    seed: int,
    stem: str,
    bars: Mapping[int, float] = MappingProxyType({}),
    in_full: bool = False,
    before: Trained | None = None,
) -> TrialResult:
    """Trains a proxy of the architecture, quantises it and measures the artefact; infeasible,
    and not trained, if it is slower than the job allows.

    Writes `stem`.onnx (the artefact) and `stem`.safetensors (the trained float weights), each
    whole or not at all; `stem` is a path or s3://bucket/key. With `in_full` the artefact is made
    as `retrained` does. Deterministic for one seed on one machine, but for the latency.

    The weights of a trial `before`, which trained the network for another number format, are taken
    if they can be read. A trial whose float network is below one of the `bars` (accuracy on the
    validation recordings, by number of finished epochs) is stopped there.
    """
    start = time.monotonic()
    features = compute(job.dataset, architecture.front_end, splits=("train", "validation"))
    training, validation = features.split("train"), features.split("validation")
    if slow := too_slow(architecture, job, training, seed):
        return replace(slow, seconds=time.monotonic() - start, finished_at=time.time())
    training_start = time.monotonic()
    taken = before and _taken(architecture, job, before)
    network, rungs = (taken, []) if taken else _proxy(architecture, job, features, seed, bars)
    result = TrialResult(
        architecture=str(architecture),
        state="complete",
        cost=estimate(architecture, len(job.dataset.classes), job.target),
        rungs=rungs,
        weights_of=before.trial if before and taken else None,
        seconds_training=time.monotonic() - training_start,
    )
    if rungs and rungs[-1][1] < bars[rungs[-1][0]]:
        reason = "weak for its size after {} epochs ({:.1%})".format(*rungs[-1])
        result = replace(result, state="stopped", reason=reason)
    else:
        tolerance = MOST_LOST_UNTUNED if in_full else math.inf
        artifact = shipped(network, architecture, features, job.dataset, seed, tolerance)
        result = replace(result, front_end_ms=front_end_ms(architecture.front_end))
        result = _kept(result, network, artifact, stem)
        outputs = predict(network, tensor(validation))
        result = measured(result, artifact, outputs, validation, job)
    return replace(result, seconds=time.monotonic() - start, finished_at=time.time())


def _kept(result: TrialResult, network: nn.Module, artifact: Artifact, stem: str) -> TrialResult:
    """`result` with the files that it now has."""
    keep(f"{stem}.safetensors", save(weights(network)))
    keep(f"{stem}.onnx", artifact.content)
    return replace(
        result,
        file_bytes=len(artifact.content),
        fine_tuned=artifact.fine_tuned,
        artifact=f"{stem}.onnx",
    )


def too_slow(
    architecture: Architecture, job: Job, training: SplitFeatures, seed: int
) -> TrialResult | None:
    """The infeasible result of an architecture that takes too long, told by its untrained network
    (weights do not change the time); a close decision is made by the thorough protocol."""
    limit_ms = job.max_latency_ms
    if limit_ms is None or job.target.mcu:  # a board's time is known from the structure
        return None
    classes = len(job.dataset.classes)
    artifact = artifact_of(untrained(architecture, classes, seed), architecture, training, seed)
    (latency,), _ = latencies_if_there([artifact.content], job.target, QUICK)
    if latency and limit_ms < latency.latency_ms < CLOSE * limit_ms:
        (latency,), _ = latencies_if_there([artifact.content], job.target, THOROUGH)
    if latency is None or latency.latency_ms <= limit_ms:
        return None
    reason = f"measured {latency.latency_ms:.3g} ms before training, over {limit_ms:g} ms"
    cost = estimate(architecture, classes, job.target)
    return TrialResult(str(architecture), "infeasible", reason, cost, latency=latency)


def measured(
    result: TrialResult,
    artifact: Artifact,
    float_outputs: NDArray[np.float32],
    validation: SplitFeatures,
    job: Job,
) -> TrialResult:
    """`result` with what the artefact does; failed, with the reason, if its quantisation broke.

    `float_outputs` are the float network's logits [windows, classes] for the same windows. Broken
    is a file that ONNX Runtime refuses, that gives NaN, or that fails `refuse_broken`.
    """
    on_float = score_of(float_outputs, validation, job.dataset)
    result = replace(result, float_accuracy=on_float.accuracy)
    try:
        outputs = logits(artifact.content, validation.features)
        error = np.sqrt(np.square(outputs - float_outputs).mean()) / max(float_outputs.std(), 1e-9)
        result = replace(result, logit_error=float(error))
        score = score_of(outputs, validation, job.dataset)
        refuse_broken(score, on_float)
    except UserError as trouble:
        return replace(result, state="failed", reason=f"{quantization(result)} broke it: {trouble}")
    (latency,), away = latencies_if_there([artifact.content], job.target, QUICK, artifact.parent)
    return replace(result, score=score, latency=latency, reason=away)


def refuse_broken(artifact: Score, parent: Score) -> None:
    """Raises UserError if quantising lost more than MOST_LOST of the accuracy beyond noise: if
    even the upper end of the artefact's interval is so far below its float parent."""
    if parent.accuracy - artifact.accuracy_high > MOST_LOST:
        raise UserError(
            f"accuracy {artifact.accuracy:.1%} (at most {artifact.accuracy_high:.1%}) against "
            f"{parent.accuracy:.1%} in float"
        )


def trained(
    architecture: Architecture,
    job: Job,
    training: SplitFeatures,
    seed: int,
    teachers: Sequence[nn.Module] = (),
) -> nn.Module:
    """A new network of this architecture, trained by the job's recipe.

    To its end: the epoch of the least loss on the validation recordings was never better on the
    test recordings, and 1.4 points worse on average (synthetic scenes, 60 epochs, eight seeds).
    """
    *_, (_, network) = _epochs(architecture, job, training, seed, teachers)
    return network


def _taken(architecture: Architecture, job: Job, before: Trained) -> nn.Module | None:
    """The network with the weights of that trial; None if they are not to be had here."""
    network = build(architecture, len(job.dataset.classes))
    try:
        network.load_state_dict(load(fetch(before.weights)))
    except (OSError, UserError, SafetensorError, RuntimeError):  # gone, or of another network
        return None
    return network


def _proxy(
    architecture: Architecture,
    job: Job,
    features: Features,
    seed: int,
    bars: Mapping[int, float],
) -> tuple[nn.Module, Rungs]:
    """The network and its accuracy at each rung; trained to the end, or to a rung below its bar."""
    validation = features.split("validation")
    rungs: Rungs = []
    for epoch, network in _epochs(architecture, job, features.split("train"), seed):
        if epoch in bars:
            outputs = predict(network, tensor(validation))
            rungs.append((epoch, score_of(outputs, validation, job.dataset).accuracy))
            if rungs[-1][1] < bars[epoch]:
                break
    return network, rungs


def _epochs(
    architecture: Architecture,
    job: Job,
    training: SplitFeatures,
    seed: int,
    teachers: Sequence[nn.Module] = (),
) -> Iterator[tuple[int, nn.Module]]:
    """The number of finished epochs and the network, after each of them."""
    classes = len(job.dataset.classes)
    labels = torch.from_numpy(training.labels)
    network = untrained(architecture, classes, seed)
    with one_thread():
        for epoch in train(network, tensor(training), labels, classes, job.proxy, seed, teachers):
            yield epoch, network


def untrained(architecture: Architecture, classes: int, seed: int) -> nn.Module:
    """A new network of this architecture."""
    with one_thread():
        torch.manual_seed(seed)
        return build(architecture, classes)


def retrained(
    architecture: Architecture,
    job: Job,
    features: Features,
    seed: int,
    larger: Sequence[Architecture] = (),
) -> Artifact:
    """The file of a network trained in full by the job's recipe.

    With `larger` ones, those are trained first, each on the features of this one, and a second
    network is trained to give their answers as well: its file is taken if it is better on
    validation.
    """
    plain = _in_full(architecture, job, features, seed)
    if not larger:
        return plain
    teachers = [
        trained(replaced(a, front_end=architecture.front_end), job, features.split("train"), seed)
        for a in larger
    ]
    taught = replaced(_in_full(architecture, job, features, seed, teachers), distilled=True)
    validation = features.split("validation")
    return max(plain, taught, key=lambda made: _quality(made, validation, job.dataset))


def _in_full(
    architecture: Architecture,
    job: Job,
    features: Features,
    seed: int,
    teachers: Sequence[nn.Module] = (),
) -> Artifact:
    network = trained(architecture, job, features.split("train"), seed, teachers)
    return shipped(network, architecture, features, job.dataset, seed, MOST_LOST_UNTUNED)


@dataclass(frozen=True)
class Artifact:
    """The ONNX bytes that ship; `parent` is the same network in float32, None if it is that."""

    content: bytes
    parent: bytes | None
    fine_tuned: bool = False
    distilled: bool = False


def shipped(
    network: nn.Module,
    architecture: Architecture,
    features: Features,
    dataset: Dataset,
    seed: int,
    tolerance: float = math.inf,
) -> Artifact:
    """The trained network's artefact.

    If the architecture asks for fine-tuning, or int8 cost more than `tolerance` of the validation
    accuracy, the network is fine-tuned under int8's rounding and the better of both artefacts on
    validation is taken: the more accurate one, of equals that of less loss.
    """
    training, validation = features.split("train"), features.split("validation")
    plain = artifact_of(network, architecture, training, seed)
    if architecture.quantization.scheme != "int8":
        return plain
    if not architecture.quantization.qat:
        if tolerance == math.inf:
            return plain
        outputs = predict(network, tensor(validation))
        wanted = score_of(outputs, validation, dataset).accuracy - tolerance
        if _quality(plain, validation, dataset)[0] >= wanted:
            return plain
    student = fine_tuned(network, architecture.quantization, tensor(training), seed)
    tuned = artifact_of(student, architecture, training, seed)
    better = _quality(tuned, validation, dataset) > _quality(plain, validation, dataset)
    return Artifact(tuned.content, plain.parent, fine_tuned=True) if better else plain


def _quality(
    artifact: Artifact, validation: SplitFeatures, dataset: Dataset
) -> tuple[float, float]:
    """(accuracy, minus the log loss), to compare by; below all others if it cannot run."""
    try:
        found = score_of(logits(artifact.content, validation.features), validation, dataset)
    except UserError:
        return -1.0, 0.0
    return found.accuracy, -found.log_loss


def artifact_of(
    network: nn.Module, architecture: Architecture, training: SplitFeatures, seed: int
) -> Artifact:
    """The file that ships; int8 is calibrated on clips drawn from the training split."""
    model = to_onnx(network, architecture.front_end.shape)
    rows = np.random.default_rng(seed).permutation(len(training.features))[:CALIBRATION_CLIPS]
    clips = training.features[np.sort(rows)].astype(np.float32)
    formats = architecture.quantization, Quantization("float32")
    files = [_bytes(quantize(model, wanted, clips)) for wanted in formats]
    return Artifact(files[0], files[1] if formats[0] != formats[1] else None)


def _bytes(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def tensor(split: SplitFeatures) -> torch.Tensor:
    """The split's features, [windows, C, F, T]; mapped from disk, so that workers share them."""
    return torch.from_numpy(split.features)


def score_of(outputs: NDArray[np.float32], split: SplitFeatures, dataset: Dataset) -> Score:
    """Scores the outputs [windows, classes] for one split."""
    return score(outputs, split.labels, split.recordings, split.clips, dataset.classes)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights as safetensors wants them."""
    return {name: value.contiguous() for name, value in network.state_dict().items()}
