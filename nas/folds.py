"""Cross-validation: each fold is the test split once, and one score covers all recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.arch import Architecture
from nas.dataset import Dataset, on_fold
from nas.errors import UserError
from nas.features import SplitFeatures, compute
from nas.measure import logits
from nas.pipeline import Job, retrained, score_of
from nas.record import Score
from nas.score import score
from nas.splits import SPLITS


class Answers(NamedTuple):
    """What an artefact said, logits [windows, classes], to the test split of one fold."""

    outputs: NDArray[np.float32]
    split: SplitFeatures


def answers(architecture: Architecture, job: Job, seed: int = 0) -> Answers:
    """Those of the architecture's artefact, trained on the training split of the job's data."""
    features = compute(job.dataset, architecture.front_end, splits=SPLITS)
    artifact, test = retrained(architecture, job, features, seed), features.split("test")
    return Answers(logits(artifact.content, test.features), test)


class CrossValidation(NamedTuple):
    """`pooled` is one score over the recordings of all tested folds, `folds` the accuracy on each
    of them, by name."""

    pooled: Score
    folds: dict[str, float]


def cross_validated(architecture: Architecture, job: Job, seed: int) -> CrossValidation:
    """Trains a network for each fold and tests its file on it.

    The fold before it is left for validation, the others are trained on. Raises UserError if the
    data set has no folds.
    """
    refuse_unfolded(job.dataset)
    found, accuracies = [], {}
    for fold in job.dataset.folds:
        part = replace(job, dataset=on_fold(job.dataset, fold))
        found.append(answers(architecture, part, seed))
        accuracies[fold] = score_of(*found[-1], part.dataset).accuracy
    return CrossValidation(pooled(found, job.dataset.classes), accuracies)


def refuse_unfolded(dataset: Dataset) -> None:
    """Raises UserError if the data set has no folds."""
    if not dataset.folds:
        raise UserError(
            f"{dataset.name} has a fixed split and no folds to validate across; leave out "
            "--cross-validate, or give its recordings folds or groups instead of splits"
        )


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
