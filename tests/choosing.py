"""Trials that choose by a seed or by rote, in the place of Optuna's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


class RandomTrial:
    """Chooses uniformly; `chosen` records what. Being asked the same twice is an error."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.chosen: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self._note(name, self._random.randint(low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._note(name, self._random.choice(choices))

    def _note(self, name: str, value: Any) -> Any:
        assert name not in self.chosen
        self.chosen[name] = value
        return value


class EveryTrial:
    """Walks through all combinations: ask for trials until `exhausted`."""

    def __init__(self) -> None:
        self._path: list[tuple[int, int]] = []
        self._at = 0
        self.exhausted = False

    def next(self) -> EveryTrial:
        while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
            self._path.pop()
        if self._path:
            index, count = self._path.pop()
            self._path.append((index + 1, count))
        else:
            self.exhausted = True
        self._at = 0
        return self

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return low + self._choose(high - low + 1)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[self._choose(len(choices))]

    def _choose(self, count: int) -> int:
        if self._at == len(self._path):
            self._path.append((0, count))
        self._at += 1
        return self._path[self._at - 1][0]
