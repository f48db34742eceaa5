"""Early stopping: who must reach what, on tables small enough to draw."""

from __future__ import annotations

import itertools

import pytest

from nas.record import Cost, TrialResult
from nas.rungs import FEWEST_PEERS, SIMILAR, bars, ran, rung_epochs


@pytest.mark.parametrize(
    "epochs, rungs", [(20, [5, 10]), (12, [3, 6]), (4, [1, 2]), (3, [1, 2]), (2, [1]), (1, [])]
)
def test_the_rungs_lie_inside_the_proxy(epochs, rungs):
    assert rung_epochs(epochs) == rungs


def test_in_every_order_a_trial_must_be_in_the_upper_half_of_its_size():
    """Eight peers and the trial itself are nine: it must be fifth or better."""
    peers = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    for accuracies in itertools.islice(itertools.permutations(peers), 0, None, 97):
        others = [(100, [(5, accuracy)]) for accuracy in accuracies]
        assert bars(100, [5], others) == {5: 0.4}


def test_a_trial_is_compared_with_similar_and_smaller_ones_only():
    """
    size      50   100   110   111   200
    accuracy  .1    .2    .3    .4    .5     each eight times
    """
    table = {50: 0.1, 100: 0.2, 110: 0.3, 111: 0.4, 200: 0.5}
    others = [(size, [(5, accuracy)]) for size, accuracy in table.items() for _ in range(8)]
    assert SIMILAR == 1.1
    found = {size: bars(size, [5], others)[5] for size in (40, 50, 100, 101, 200, 1000)}
    assert found == {40: 0.0, 50: 0.1, 100: 0.2, 101: 0.2, 200: 0.3, 1000: 0.3}


def test_nobody_is_weak_before_there_are_enough_to_compare_with():
    others = [(100, [(5, 0.9), (10, 0.95)])] * (FEWEST_PEERS - 1)
    assert bars(100, [5, 10], others) == {5: 0.0, 10: 0.0}
    stopped = (100, [(5, 0.1)])
    assert bars(100, [5, 10], [*others, stopped]) == {5: 0.9, 10: 0.0}


def test_the_better_half_of_those_of_its_size_goes_on_itself_counted():
    for count in range(FEWEST_PEERS, 40):
        accuracies = [i / 40 for i in range(count)]
        bar = bars(100, [5], [(100, [(5, accuracy)]) for accuracy in accuracies])[5]
        better = sum(accuracy > bar for accuracy in accuracies)
        assert bar in accuracies and better + 1 == -(-(count + 1) // 2)


def test_only_trials_that_were_trained_are_compared_with_and_by_their_parameters():
    cost = Cost(
        parameters=7, macs=1, parameter_bytes=10, file_bytes=20, flash_bytes=30, peak_ram_bytes=1
    )
    trials = [
        TrialResult("a", state, cost=cost, rungs=[(5, 0.5)], file_bytes=99)
        for state in ("complete", "stopped", "repeated", "failed", "infeasible")
    ]
    assert ran(trials) == [(7, [(5, 0.5)])] * 2
