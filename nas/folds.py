"""Cross-validation: each fold is the test split once, and one score covers all recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.arch import Architecture
from nas.features import SplitFeatures, compute
from nas.measure import logits
from nas.pipeline import Job, artifact_of, trained
from nas.record import Score
from nas.score import score


class Answers(NamedTuple):
    """What an artefact said, logits [windows, classes], to the test split of one fold."""

    outputs: NDArray[np.float32]
    split: SplitFeatures


def answers(architecture: Architecture, job: Job, seed: int = 0) -> Answers:
    """Those of the architecture's artefact, trained on the training split of the job's data."""
    features = compute(job.dataset, architecture.front_end, splits=("train", "test"))
    training, test = features.split("train"), features.split("test")
    network = trained(architecture, job, training, seed)
    artifact = artifact_of(network, architecture, training, seed)
    return Answers(logits(artifact.content, test.features), test)


def pooled(folds: Sequence[Answers], classes: Sequence[str]) -> Score:
    """One score over the recordings of all folds."""
    splits = [fold.split for fold in folds]
    firsts = np.cumsum([0, *(len(split.clips) for split in splits)])
    recordings = [split.recordings + first for split, first in zip(splits, firsts, strict=False)]
    return score(
        np.concatenate([fold.outputs for fold in folds]),
        np.concatenate([split.labels for split in splits]),
        np.concatenate(recordings),
        [clip for split in splits for clip in split.clips],
        classes,
    )
