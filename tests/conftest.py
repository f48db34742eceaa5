"""Shared fixtures: a cache folder of the session's own, generated recordings, the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

Tone = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache; built-in data are made once per session."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("NAS_CACHE")
    os.environ["NAS_CACHE"] = str(folder)
    yield folder
    os.environ.pop("NAS_CACHE")
    if before is not None:
        os.environ["NAS_CACHE"] = before


@pytest.fixture(scope="session")
def tone() -> Tone:
    """Writes a noisy tone, different for each path, and returns the path."""

    def write(
        path: Path,
        seconds: float = 0.2,
        rate_hz: int = 8000,
        pitch_hz: float = 440,
        channels: int = 1,
        **options: str,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(path.name.encode()))
        time_s = np.arange(round(seconds * rate_hz)) / rate_hz
        audio = 0.3 * np.sin(2 * np.pi * pitch_hz * time_s) + 0.01 * rng.standard_normal(
            len(time_s)
        )
        soundfile.write(path, np.repeat(audio[:, None], channels, axis=1), rate_hz, **options)
        return path

    return write


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder with ESC-10 and Free Spoken Digit, which NAS_DATA names."""
    if not os.environ.get("NAS_DATA"):
        pytest.skip("needs real recordings: set NAS_DATA to the folder that holds them")
    return Path(os.environ["NAS_DATA"])
