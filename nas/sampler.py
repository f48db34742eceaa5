"""What proposes a study's next architecture: Optuna's TPE on the trials worth learning from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from optuna import Study
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

LEARNT = 1000


def sampler(seed: int) -> BaseSampler:
    """What proposes: TPE (Ozaki et al. 2022, for several objectives), all choices together."""
    return _Sampler(seed=seed, constant_liar=True, multivariate=True)


class _Sampler(TPESampler):
    """TPE that learns from what `learnt` keeps: its time grows with the trials that it reads."""

    def _sample(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return super()._sample(cast(Study, _Recent(study)), trial, search_space)


class _Recent:
    """A study in which only the trials that are learnt from can be seen."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, *given: Any, **named: Any) -> list[FrozenTrial]:
        return learnt(self._study._get_trials(*given, **named))


def learnt(trials: Sequence[FrozenTrial], last: int = LEARNT) -> list[FrozenTrial]:
    """The last trials, and of those before them the ones that none of them beats."""
    before = [t for t in trials[:-last] if t.state == TrialState.COMPLETE]
    best: list[FrozenTrial] = []
    for trial in sorted(before, key=lambda t: (t.values[1], -t.values[0])):
        if not best or trial.values[0] > best[-1].values[0]:
            best.append(trial)
    return [*best, *trials[-last:]]
