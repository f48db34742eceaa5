"""Recordings on disk as a checked, split data set: what is there, what is bad, who is tested on.

Every audio file is decoded once, in parallel, and hashed; the verdict is cached by size and
modification time, so later loads open no audio. The fingerprint is made of the files' content and
of the splits, and is the same wherever the data set lies.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import msgspec

from nas import scenes
from nas.audio import AudioFile, examine
from nas.cache import cache_folder, explained, locked, whole_folder, write_whole
from nas.clips import Clip, Split, refuse_outside
from nas.errors import UserError, nearest
from nas.layouts import read_tree
from nas.splits import SPLITS, leak_warning, with_splits

BUILT_IN = ("synthetic-scenes",)
BAD_SHARE = 0.1
END_TOLERANCE_S = 0.1
LONGEST_CLIP_S = 10.0
_CHECK_VERSION = 1


class Problem(msgspec.Struct, frozen=True):
    """A file that was left out, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Usable clips with their splits. `folds` is empty if the data set has a fixed split.

    `clip_s` is a clip length that holds nine recordings out of ten, at most 10 s. `files` maps
    each clip's path to what is known of the file.
    """

    name: str
    root: Path
    layout: str
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...]
    folds: tuple[str, ...]
    note: str
    clip_s: float
    sample_rate_hz: int
    fingerprint: str
    files: Mapping[str, AudioFile]

    def split(self, name: Split) -> tuple[Clip, ...]:
        """Clips of one split, in the order of their paths."""
        return tuple(clip for clip in self.clips if clip.split == name)


def load(
    path_or_name: str | Path,
    *,
    tolerate_bad_files: bool = False,
    test_fold: str | None = None,
    validation_fold: str | None = None,
    workers: int | None = None,
) -> Dataset:
    """The data set at a path (folder or CSV manifest), or a built-in one by name.

    The last fold is the test split and the one before it validation, unless told otherwise.
    Raises UserError for anything the user must change.
    """
    found = read_tree(_locate(str(path_or_name)))
    root = found.root.resolve()
    files = check_files(root, {clip.path for clip in found.clips}, workers or os.cpu_count() or 1)
    usable, problems = _usable(found.clips, files)
    _refuse_unusable(found.root, usable, problems, tolerate_bad_files)
    units = _units(usable, files)
    clips, folds = with_splits(str(found.root), usable, units, test_fold, validation_fold)
    built_in = str(path_or_name) in BUILT_IN
    return Dataset(
        name=str(path_or_name) if built_in else root.name,
        root=root,
        layout=found.layout,
        classes=tuple(sorted({clip.label for clip in clips})),
        clips=clips,
        problems=problems,
        folds=folds,
        note=scenes.NOTE if built_in else "",
        clip_s=_clip_s([clip.duration_s for clip in clips]),
        sample_rate_hz=_most_common(files[clip.path].sample_rate_hz for clip in clips),
        fingerprint=_fingerprint(clips, files),
        files={clip.path: files[clip.path] for clip in clips},
    )


def on_fold(dataset: Dataset, fold: str) -> Dataset:
    """The same recordings with this fold for test and the one before it for validation."""
    whole = [replace(clip, split=None) for clip in dataset.clips]
    clips, _ = with_splits(dataset.name, whole, {}, fold, None)
    return replace(dataset, clips=clips, fingerprint=_fingerprint(clips, dataset.files))


def _locate(path_or_name: str) -> Path:
    if path_or_name in BUILT_IN:
        return _built_in(path_or_name)
    try:
        path = Path(path_or_name).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user in ~user
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path_or_name}: cannot be looked at: {reason}") from None
    if not there:
        hint = f" ({nearest(path_or_name, list(BUILT_IN))})" if path.name == path_or_name else ""
        raise UserError(
            f"{path}: no such folder or built-in data set{hint}; give a folder of recordings or a "
            "CSV manifest"
        )
    return path


def _built_in(name: str) -> Path:
    folder = cache_folder("datasets") / f"{name}-{scenes.VERSION}"
    with explained(), locked(folder):
        if not folder.is_dir():
            with whole_folder(folder) as temporary:
                scenes.synthesise(temporary)
    return folder


# checking files


def check_files(root: Path, paths: Iterable[str], workers: int) -> dict[str, AudioFile]:
    """A verdict on each file below `root`, from the cache where the file has not changed.

    Raises UserError if a path or a symbolic link leaves the folder.
    """
    key = hashlib.blake2b(f"{_CHECK_VERSION} {root}".encode(), digest_size=16).hexdigest()
    cache = cache_folder("checks") / f"{key}.msgpack"
    known = _read_checks(cache)
    status = {path: _status(str(root), path) for path in sorted(paths)}
    changed = [p for p, now in status.items() if not now or now != _status_of(known.get(p))]
    with ThreadPoolExecutor(workers) as pool:
        batches = [changed[i : i + 32] for i in range(0, len(changed), 32)]
        for batch, verdicts in zip(
            batches, pool.map(partial(_examine, root), batches), strict=True
        ):
            known.update(zip(batch, verdicts, strict=True))
    if any(status[path] for path in changed):
        with explained():
            write_whole(cache, msgspec.msgpack.encode(known))
    return {path: known[path] for path in status}


def _examine(root: Path, paths: list[str]) -> list[AudioFile]:
    return [examine(root / path) for path in paths]


def _read_checks(cache: Path) -> dict[str, AudioFile]:
    try:
        return msgspec.msgpack.decode(cache.read_bytes(), type=dict[str, AudioFile])
    except (OSError, msgspec.DecodeError):
        return {}


def _status_of(file: AudioFile | None) -> tuple[int, int] | None:
    return (file.size_bytes, file.mtime_ns) if file else None


def _status(root: str, path: str) -> tuple[int, int] | None:
    """(bytes, modification time) of a file that must lie below `root`; None if there is none."""
    full = os.path.join(root, path)
    try:
        status = os.lstat(full)
        link = stat.S_ISLNK(status.st_mode)
        status = os.stat(full) if link else status
    except OSError:
        link, status = False, None
    real = os.path.realpath(full) if link else _real_path(os.path.dirname(full))
    refuse_outside(root, full, real)
    return (status.st_size, status.st_mtime_ns) if status else None


@lru_cache(maxsize=4096)
def _real_path(folder: str) -> str:
    return os.path.realpath(folder)


def _usable(
    clips: Sequence[Clip], files: Mapping[str, AudioFile]
) -> tuple[list[Clip], tuple[Problem, ...]]:
    """Clips with their durations, sorted by path, and what had to be left out."""
    good, bad = [], []
    for clip in sorted(clips, key=lambda c: (c.path, c.start_s)):
        file = files[clip.path]
        reason = file.problem or _outside(clip, file.duration_s)
        if reason:
            bad.append(Problem(clip.path, reason))
        else:
            end_s = file.duration_s if clip.end_s is None else min(clip.end_s, file.duration_s)
            good.append(replace(clip, duration_s=end_s - clip.start_s))
    return good, tuple(bad)


def _outside(clip: Clip, duration_s: float) -> str:
    if clip.start_s >= duration_s:
        return f"starts at {clip.start_s:g} s, but the file is {duration_s:.3g} s long"
    if clip.end_s is not None and clip.end_s > duration_s + END_TOLERANCE_S:
        return f"ends at {clip.end_s:g} s, but the file is {duration_s:.3g} s long"
    return ""


def _refuse_unusable(
    root: Path, clips: Sequence[Clip], problems: Sequence[Problem], tolerate_bad_files: bool
) -> None:
    if not clips:
        first = f" ({problems[0].file}: {problems[0].reason})" if problems else ""
        raise UserError(f"{root}: no readable audio{first}; give a folder of recordings")
    if len(problems) > BAD_SHARE * (len(clips) + len(problems)) and not tolerate_bad_files:
        raise UserError(
            f"{root}: {len(problems)} of {len(clips) + len(problems)} recordings cannot be used "
            f"(first {problems[0].file}: {problems[0].reason}), allowed are {BAD_SHARE:.0%}; "
            "repair or remove them, or pass --tolerate-bad-files"
        )
    labels = sorted({clip.label for clip in clips})
    if len(labels) == 1:
        raise UserError(
            f"{root}: holds one class only ('{labels[0]}'), a classifier needs two or more"
        )


def _units(clips: Sequence[Clip], files: Mapping[str, AudioFile]) -> dict[Clip, str]:
    """What must stay together: the group, else the part of one file content."""
    return {
        clip: f"group {clip.group}" if clip.group else f"{files[clip.path].digest} {clip.start_s}"
        for clip in clips
    }


def _clip_s(durations_s: Sequence[float]) -> float:
    """The length that nine clips in ten fit into, to a tenth below 2 s and a half above."""
    long = sorted(durations_s)[math.ceil(0.9 * len(durations_s)) - 1]
    step = 0.1 if long < 2 else 0.5
    return min(LONGEST_CLIP_S, round(max(0.1, math.ceil((long - 0.01) / step) * step), 1))


def _most_common(rates_hz: Iterable[int]) -> int:
    return max(Counter(rates_hz).items(), key=lambda item: (item[1], item[0]))[0]


def _fingerprint(clips: Sequence[Clip], files: Mapping[str, AudioFile]) -> str:
    content = [(files[clip.path].digest, clip) for clip in clips]
    return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).hexdigest()


# report


class Durations(msgspec.Struct, frozen=True):
    """Lengths of the clips in seconds."""

    min: float
    median: float
    max: float
    total: float


class DataReport(msgspec.Struct, frozen=True):
    """What `nas data` shows; counts are of usable clips, `groups` are names."""

    name: str
    layout: str
    classes: dict[str, int]
    clips: int
    splits: dict[str, int]
    groups: list[str]
    devices: dict[str, int]
    folds: list[str]
    durations_s: Durations
    sample_rates_hz: dict[str, int]
    channels: dict[str, int]
    formats: dict[str, int]
    problems: list[Problem]
    leak: str
    note: str
    fingerprint: str


def describe(dataset: Dataset) -> DataReport:
    """Counts and names of everything that was found in a data set."""
    clips, files = dataset.clips, [dataset.files[clip.path] for clip in dataset.clips]
    lengths = sorted(clip.duration_s for clip in clips)
    middle = round(statistics.median(lengths), 3)
    return DataReport(
        name=dataset.name,
        layout=dataset.layout,
        classes=_count(clip.label for clip in clips),
        clips=len(clips),
        splits={name: len(dataset.split(name)) for name in SPLITS},
        groups=sorted({clip.group for clip in clips if clip.group}),
        devices=_count(clip.device for clip in clips if clip.device),
        folds=list(dataset.folds),
        durations_s=Durations(
            round(lengths[0], 3), middle, round(lengths[-1], 3), round(sum(lengths), 1)
        ),
        sample_rates_hz=_count(str(file.sample_rate_hz) for file in files),
        channels=_count(str(file.channels) for file in files),
        formats=_count(file.format for file in files),
        problems=list(dataset.problems),
        leak=leak_warning(clips, _units(clips, dataset.files)),
        note=dataset.note,
        fingerprint=dataset.fingerprint,
    )


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
