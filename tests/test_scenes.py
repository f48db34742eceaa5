"""The synthetic scenes: reproducible to the bit, split by city, varied."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from nas.dataset import describe, load
from nas.scenes import synthesise


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        synthesise(folder, seed, takes=1)
    first, second, other = map(content, folders)
    assert first == second
    assert not set(first.values()) & set(other.values())


def test_the_built_in_data_set_is_said_to_be_synthetic_and_split_by_city() -> None:
    dataset = load("synthetic-scenes")
    report = describe(dataset)
    assert "synthetic" in report.note
    assert report.splits == {"train": 600, "validation": 300, "test": 200}
    assert set(report.classes.values()) == {110}
    assert (report.durations_s.min, report.durations_s.max) == (2, 2)
    assert report.sample_rates_hz == {"16000": 1100}
    sides = {(clip.city, clip.split) for clip in dataset.clips}
    assert len(sides) == len(report.groups) == 11
    assert Counter(split for _, split in sides) == {"train": 6, "validation": 3, "test": 2}
    assert not report.problems


def test_fewer_takes_are_the_first_ones_of_the_built_in_data_set(tmp_path: Path) -> None:
    synthesise(tmp_path, takes=1)
    whole = load("synthetic-scenes").root
    with (tmp_path / "manifest.csv").open() as file:
        names = [row["filename"] for row in csv.DictReader(file)]
    assert len(names) == 110
    for name in names:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_clips_differ_in_level_and_none_clips() -> None:
    dataset = load("synthetic-scenes")
    audio = [soundfile.read(dataset.root / clip.path)[0] for clip in dataset.clips[::25]]
    peaks = np.array([np.abs(x).max() for x in audio])
    levels_db = np.array([20 * np.log10(x.std()) for x in audio])
    assert peaks.max() < 1
    assert np.ptp(levels_db) > 6
