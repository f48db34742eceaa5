"""Scoring: from logits of windows to an accuracy with an interval."""

import math

import numpy as np
import pytest

from nas.clips import Clip
from nas.errors import UserError
from nas.features import SplitFeatures
from nas.folds import Answers, pooled
from nas.score import score


def sure(labels, classes, sharpness=8.0):
    """Logits that are sure of the given class indices."""
    return sharpness * np.eye(classes)[np.asarray(labels)]


def recordings(groups):
    """Recordings of these groups, by two devices in turn."""
    return [Clip(f"{i}", "?", group=group, device="ab"[i % 2]) for i, group in enumerate(groups)]


def one_window(truth, predicted, groups=None, classes=2):
    """Score of recordings of one window each."""
    clips = recordings(groups or [None] * len(truth))
    names = [f"class{i}" for i in range(classes)]
    logits = sure(predicted, classes)
    return score(logits, np.array(truth), np.arange(len(truth)), clips, names)


def test_windows_of_a_recording_are_judged_by_their_mean_probability():
    # Recording 7: two windows weakly for class 0, one strongly for class 1.
    window_logits = np.log([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]])
    clips = recordings([None] * 7 + ["a", "b"])
    found = score(
        window_logits, np.array([1, 1, 1, 0]), np.array([7, 7, 7, 8]), clips, ["no", "yes"]
    )
    assert found.confusion == [[0, 1], [0, 1]]
    assert found.class_accuracy == {"no": 0.0, "yes": 1.0}
    assert found.group_accuracy == {"a": 1.0, "b": 0.0}
    mean = (0.4 + 0.4 + 0.9) / 3
    assert found.log_loss == pytest.approx(-(math.log(mean) + math.log(0.3)) / 2)


def test_accuracy_is_the_mean_over_classes_and_plain_accuracy_the_share_of_recordings():
    found = one_window([0] * 8 + [1] * 2, [0] * 8 + [1, 0])
    assert found.accuracy == pytest.approx((1 + 0.5) / 2)
    assert found.plain_accuracy == pytest.approx(0.9)
    assert found.accuracy_low <= found.accuracy <= found.accuracy_high


def test_a_class_without_recordings_does_not_count():
    found = one_window([0, 0, 2, 2], [0, 0, 2, 1], classes=3)
    assert found.accuracy == pytest.approx(0.75)
    assert list(found.class_accuracy) == ["class0", "class2"]
    assert np.sum(found.confusion) == 4


def test_the_interval_is_the_same_every_time_and_shrinks_with_more_recordings():
    truth, predicted = [0, 1] * 20, [0, 1] * 15 + [1, 0] * 5
    few, again = one_window(truth, predicted), one_window(truth, predicted)
    many = one_window(truth * 16, predicted * 16)
    assert few == again
    shrunk = (many.accuracy_high - many.accuracy_low) / (few.accuracy_high - few.accuracy_low)
    assert shrunk == pytest.approx(1 / 4, rel=0.15)


@pytest.mark.parametrize("grouped", [False, True])
def test_about_95_of_100_intervals_hold_the_true_accuracy(grouped):
    random, hits = np.random.default_rng(1), 0
    groups = [f"group{i % 60}" for i in range(240)] if grouped else None
    for _ in range(200):
        truth = random.integers(0, 2, 240)
        predicted = np.where(random.random(240) < 0.8, truth, 1 - truth)
        found = one_window(truth, predicted, groups)
        hits += found.accuracy_low <= 0.8 <= found.accuracy_high
    assert 0.91 <= hits / 200 <= 0.99


def test_recordings_that_fall_together_widen_the_interval_if_their_groups_are_known():
    truth = [0, 1] * 120
    predicted = [label if i // 12 % 4 else 1 - label for i, label in enumerate(truth)]
    groups = [f"speaker{i // 12}" for i in range(240)]
    alone, together = one_window(truth, predicted), one_window(truth, predicted, groups)
    assert alone.accuracy == together.accuracy == pytest.approx(0.75)
    widths = [s.accuracy_high - s.accuracy_low for s in (alone, together)]
    assert widths[1] > 2 * widths[0]


def test_two_groups_are_too_few_to_resample():
    truth, predicted = [0, 1] * 30, [0, 1] * 24 + [1, 0] * 6
    paired = one_window(truth, predicted, ["north", "south"] * 30)
    alone = one_window(truth, predicted)
    assert (paired.accuracy_low, paired.accuracy_high) == (alone.accuracy_low, alone.accuracy_high)
    assert set(paired.group_accuracy) == {"north", "south"}


def test_each_group_device_and_city_has_its_share_of_correct_recordings():
    places = ["lyon-1", "lyon-2", "oslo-1", None]
    clips = [
        Clip(f"{i}", "?", group=place, device="abc"[i % 3], city=place and place[:4])
        for i, place in enumerate(places * 3)
    ]
    truth = np.array([0, 1] * 6)
    said = np.where(np.arange(12) < 3, 1 - truth, truth)
    found = score(sure(said, 2), truth, np.arange(12), clips, ["no", "yes"])
    two_thirds = pytest.approx(2 / 3)
    assert found.group_accuracy == dict.fromkeys(places[:3], two_thirds)
    assert found.city_accuracy == {"lyon": two_thirds, "oslo": two_thirds}
    assert found.device_accuracy == dict.fromkeys("abc", 0.75)


def test_folds_are_pooled_as_one_set_of_recordings():
    truth, said = np.array([0, 1, 1, 0] * 30), np.array([0, 1, 0, 0] * 30)
    recording = np.repeat(np.arange(60), 2)
    clips = recordings([f"g{i % 20}" for i in range(60)])
    labels = truth[::2][recording]
    whole = score(sure(said, 2), labels, recording, clips, ["no", "yes"])
    parts = [
        Answers(sure(said, 2)[rows], SplitFeatures(None, labels[rows], recording[first:last], own))
        for rows, first, last, own in (
            (slice(0, 50), 0, 50, tuple(clips[:25])),
            (slice(50, 120), 0, 70, tuple(clips[25:])),
        )
    ]
    assert pooled(parts, ["no", "yes"]) == whole


def test_everything_right_is_not_taken_for_certainty():
    found = one_window([0, 1] * 40, [0, 1] * 40)
    assert found.accuracy == found.accuracy_high == 1
    # Wilson's interval for 80 of 80.
    assert found.accuracy_low == pytest.approx(80 / (80 + 1.96**2), abs=1e-6)
    nothing = one_window([0, 1] * 40, [1, 0] * 40)
    assert nothing.accuracy_high == pytest.approx(1.96**2 / (80 + 1.96**2), abs=1e-6)


def test_a_broken_network_is_said_to_be_broken():
    broken = sure([0, 1], 2)
    broken[1, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        score(broken, np.array([0, 1]), np.arange(2), recordings([None, None]), ["a", "b"])
