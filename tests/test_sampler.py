"""What the sampler learns from, and that it proposes what a plain one would."""

from __future__ import annotations

import itertools

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from nas.sampler import LEARNT, learnt, sampler


def ended(accuracy, size, state=TrialState.COMPLETE):
    values = (accuracy, size) if state == TrialState.COMPLETE else None
    return create_trial(state=state, values=values)


def test_all_trials_are_learnt_from_while_there_are_few():
    trials = [ended(0.5, 3.0), ended(0, 0, TrialState.PRUNED), ended(0.4, 4.0)]
    assert learnt(trials, 3) == trials and learnt(trials, 10) == trials and learnt([], 3) == []


def test_of_older_trials_those_stay_that_none_beats():
    """
    size      1    2    3    4
    accuracy .3   .2   .5   .5   and one that was stopped
    """
    old = [ended(0.3, 1.0), ended(0.2, 2.0), ended(0.5, 3.0), ended(0.5, 4.0)]
    new = [ended(0.1, 5.0), ended(0, 0, TrialState.PRUNED)]
    for order in itertools.permutations([*old, ended(0, 0, TrialState.PRUNED)]):
        assert learnt([*order, *new], 2) == [old[0], old[2], *new]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_proposes_what_plain_tpe_does_until_the_trials_are_many(seed):
    found = []
    for proposer in (sampler(seed), TPESampler(seed=seed, constant_liar=True, multivariate=True)):
        study = optuna.create_study(sampler=proposer, directions=["maximize", "minimize"])
        for _ in range(25):
            trial = study.ask()
            x, y = trial.suggest_int("x", 0, 9), trial.suggest_categorical("y", ["a", "b"])
            study.tell(trial, (x * (y == "a"), x))
        found.append([trial.params for trial in study.trials])
    assert found[0] == found[1]
    assert LEARNT > 25
