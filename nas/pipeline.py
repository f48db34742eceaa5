"""The pipeline of one trial: build, train, export, quantise, measure - a function that calls
functions. Every figure is taken from the bytes that would ship."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from nas.arch import Architecture
from nas.cache import write_whole
from nas.cost import estimate
from nas.dataset import Dataset
from nas.features import SplitFeatures, compute, front_end_ms
from nas.measure import latency, logits, take_times
from nas.network import build, to_onnx
from nas.quantize import CALIBRATION_CLIPS, quantize
from nas.record import Budget, Cost, Proxy, Score, SizeKind, TrialResult
from nas.score import score
from nas.target import TargetProfile
from nas.train import one_thread, predict, train


@dataclass(frozen=True)
class Job:
    """What every trial of a study has in common."""

    dataset: Dataset
    target: TargetProfile
    proxy: Proxy


def over_limits(cost: Cost, kind: SizeKind, budget: Budget) -> dict[str, float]:
    """How far the candidate is over each limit that can be known before training, as a share of
    the limit; below 0 it fits."""
    over = {str(kind): getattr(cost, kind) / budget.size_bytes - 1}
    if budget.ram_bytes:
        over["ram_bytes"] = cost.ram_bytes / budget.ram_bytes - 1
    if budget.macs:
        over["macs"] = cost.macs / budget.macs - 1
    return over


def evaluate_architecture(
    architecture: Architecture, job: Job, seed: int, stem: Path
) -> TrialResult:
    """Trains a proxy of the architecture, quantises it and measures the artefact.

    Writes `stem`.onnx (the artefact) and `stem`.safetensors (the trained float weights), each
    whole or not at all. Deterministic for one seed on one machine, but for the latency.
    """
    start = time.monotonic()
    classes = len(job.dataset.classes)
    features = compute(job.dataset, architecture.front_end, splits=("train", "validation"))
    training, validation = features.split("train"), features.split("validation")
    training_start = time.monotonic()
    network = trained(architecture, job, training, seed)
    seconds_training = time.monotonic() - training_start
    artifact = artifact_of(network, architecture, training, seed)
    first_times = take_times(artifact, job.target)
    on_artifact = score_of(logits(artifact, validation.features), validation, job.dataset)
    on_float = score_of(predict(network, tensor(validation)), validation, job.dataset)
    write_whole(stem.with_suffix(".onnx"), artifact)
    write_whole(stem.with_suffix(".safetensors"), save(weights(network)))
    return TrialResult(
        architecture=str(architecture),
        state="complete",
        cost=estimate(architecture, classes),
        score=on_artifact,
        float_accuracy=on_float.accuracy,
        file_bytes=len(artifact),
        latency=latency(artifact, job.target, [first_times]),
        front_end_ms=front_end_ms(architecture.front_end),
        artifact=os.fspath(stem.with_suffix(".onnx")),
        seconds=time.monotonic() - start,
        seconds_training=seconds_training,
        finished_at=time.time(),
    )


def trained(architecture: Architecture, job: Job, training: SplitFeatures, seed: int) -> nn.Module:
    """A new network of this architecture, trained by the job's recipe."""
    classes = len(job.dataset.classes)
    labels = torch.from_numpy(training.labels)
    with one_thread():
        torch.manual_seed(seed)
        network = build(architecture, classes)
        for _ in train(network, tensor(training), labels, classes, job.proxy, seed):
            pass
    return network


def artifact_of(
    network: nn.Module, architecture: Architecture, training: SplitFeatures, seed: int
) -> bytes:
    """The ONNX bytes that ship; int8 is calibrated on clips drawn from the training split."""
    model = to_onnx(network, architecture.front_end.shape)
    rows = np.random.default_rng(seed).permutation(len(training.features))[:CALIBRATION_CLIPS]
    clips = training.features[np.sort(rows)].astype(np.float32)
    return bytes(quantize(model, architecture.quantization, clips).SerializeToString())


def tensor(split: SplitFeatures) -> torch.Tensor:
    """The split's features, [windows, C, F, T]; mapped from disk, so that workers share them."""
    return torch.from_numpy(split.features)


def score_of(outputs: NDArray[np.float32], split: SplitFeatures, dataset: Dataset) -> Score:
    """Scores the outputs [windows, classes] for one split."""
    return score(outputs, split.labels, split.recordings, split.groups, dataset.classes)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights as safetensors wants them."""
    return {name: value.contiguous() for name, value in network.state_dict().items()}
