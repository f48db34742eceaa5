"""Class probabilities of windows -> accuracy on recordings, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.clips import Clip
from nas.errors import UserError
from nas.record import Score

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

RESAMPLES = 1000
FEWEST_GROUPS = 10


def score(
    window_logits: Floats,
    labels: Integers,
    recordings: Integers,
    clips: Sequence[Clip],
    classes: Sequence[str],
) -> Score:
    """Accuracy on recordings, each judged by the mean of its windows' class probabilities.

    `window_logits` [W, classes]; `labels` and `recordings` [W] are each window's class index and
    recording; `clips[recording]` is that recording. `accuracy` is the mean of the per-class
    accuracies over the classes that occur; the accuracies of groups, devices and cities are plain
    shares, of those that are known. The interval is a 95 % percentile
    bootstrap (1,000 resamples, fixed seed): whole groups are resampled where there are at least
    FEWEST_GROUPS of them, as recordings of one speaker or place stand or fall together; with
    fewer, resampling groups says next to nothing (Cameron, Gelbach and Miller 2008), so
    recordings are resampled within each class, and the interval does not cover new groups. Where
    all resamples agree (nothing or everything correct) it is Wilson's (1927). Raises UserError
    if a logit is NaN or infinite.
    """
    if not np.isfinite(window_logits).all():
        raise UserError("the network's output holds NaN or infinite values")
    ids, first, window_of = np.unique(recordings, return_index=True, return_inverse=True)
    probabilities = _mean_by(window_of, softmax(window_logits))
    truth = np.asarray(labels)[first]
    correct = probabilities.argmax(1) == truth
    count = len(classes)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (truth, probabilities.argmax(1)), 1)
    per_class = _ratio(np.diag(confusion), confusion.sum(1))
    heard = [clips[i] for i in ids.tolist()]
    names, place = np.unique([clip.group or "" for clip in heard], return_inverse=True)
    regroup = len(names) >= FEWEST_GROUPS and "" not in names
    low, high = _interval(correct, truth, place if regroup else None)
    likelihood = probabilities[np.arange(len(ids)), truth]
    return Score(
        accuracy=float(np.nanmean(per_class)),
        accuracy_low=low,
        accuracy_high=high,
        plain_accuracy=float(correct.mean()),
        log_loss=float(-np.log(likelihood.clip(1e-12)).mean()),
        class_accuracy={
            name: float(value) for name, value in zip(classes, per_class, strict=True) if value >= 0
        },
        group_accuracy=_shares([clip.group for clip in heard], correct),
        confusion=confusion.tolist(),
        device_accuracy=_shares([clip.device for clip in heard], correct),
        city_accuracy=_shares([clip.city for clip in heard], correct),
    )


def _shares(names: Sequence[str | None], correct: NDArray[np.bool_]) -> dict[str, float]:
    """Share correct under each name, sorted; recordings without one are left out."""
    known, place = np.unique([name or "" for name in names], return_inverse=True)
    shares = _ratio(np.bincount(place, correct), np.bincount(place)).tolist()
    return {name: share for name, share in zip(known.tolist(), shares, strict=True) if name}


def softmax(logits: Floats) -> Floats:
    """Probabilities [windows, classes]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares


def _mean_by(place: Integers, rows: Floats) -> Floats:
    """Mean of the `rows` that share a place, for places 0, 1, ..."""
    sums = np.zeros((place.max() + 1, rows.shape[1]))
    np.add.at(sums, place, rows)
    return sums / np.bincount(place)[:, None]


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """NaN where there is nothing."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _interval(
    correct: NDArray[np.bool_], truth: Integers, place: Integers | None
) -> tuple[float, float]:
    """95 % interval of the mean of the per-class accuracies, over groups if `place` tells them."""
    if place is None:
        units, accuracies = len(truth), _resampled_recordings(correct, truth)
    else:
        units, accuracies = place.max() + 1, _resampled_groups(correct, truth, place)
    low, high = np.percentile(accuracies, [2.5, 97.5]).tolist()
    return (low, high) if low < high else _wilson(low, units)


def _resampled_recordings(correct: NDArray[np.bool_], truth: Integers) -> Floats:
    """Accuracies [RESAMPLES]; drawing n recordings, each right or wrong, is a binomial draw."""
    _, class_of, total = np.unique(truth, return_inverse=True, return_counts=True)
    right = np.bincount(class_of, correct)
    random = np.random.default_rng(0)
    draws = random.binomial(total, right / total, (RESAMPLES, len(total)))
    accuracies: Floats = (draws / total).mean(1)
    return accuracies


def _resampled_groups(correct: NDArray[np.bool_], truth: Integers, place: Integers) -> Floats:
    """Accuracies [RESAMPLES], each over as many groups as there are, drawn with replacement."""
    groups, classes = place.max() + 1, truth.max() + 1
    cell = place * classes + truth
    right = np.bincount(cell, correct, groups * classes).reshape(groups, classes)
    total = np.bincount(cell, minlength=groups * classes).reshape(groups, classes)
    random = np.random.default_rng(0)
    draws = random.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    accuracies: Floats = np.nanmean(_ratio(draws @ right, draws @ total), 1)
    return accuracies


def _wilson(share: float, units: int) -> tuple[float, float]:
    z2 = 1.96**2
    middle = (share + z2 / (2 * units)) / (1 + z2 / units)
    reach = (z2 * share * (1 - share) / units + (z2 / (2 * units)) ** 2) ** 0.5 / (1 + z2 / units)
    return max(0.0, middle - reach), min(1.0, middle + reach)
