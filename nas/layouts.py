"""Data sets as they lie on disk: each known layout is read into clips, without opening any audio.

A layout is a row of LAYOUTS: a name, a test for it, and a reader. Readers give the official split
or fold of each clip where the data set has one; dataset.py makes the rest.
"""

from __future__ import annotations

import contextlib
import math
import os
import posixpath
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import soundfile

from nas.clips import AUDIO, SPLIT_NAMES, Clip, Row, Split, audio_files, rows
from nas.errors import UserError

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


class Layout(NamedTuple):
    """A known shape of data set: how it is recognised and how it is read."""

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], list[Clip]]


class Found(NamedTuple):
    """What `read_tree` makes of a path."""

    root: Path
    layout: str
    clips: list[Clip]


def read_tree(path: Path) -> Found:
    """The clips below `path`, a data set's folder or a CSV manifest.

    Raises UserError if there is no such path, no known layout, a CSV is malformed, or a link
    leads out of the folder.
    """
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None


def _read(path: Path) -> Found:
    if path.is_file() and path.suffix.lower() == ".csv":
        return Found(path.parent, "csv manifest", _read_manifest(path))
    if not path.is_dir():
        raise UserError(
            f"{path}: is neither a folder nor a CSV manifest; give a folder of recordings"
        )
    for layout in LAYOUTS:
        if layout.matches(path):
            return Found(path, layout.name, layout.read(path))
    raise UserError(
        f"{path}: no recordings in a known layout; put the audio files of each class into a "
        "folder of its own, or add a CSV manifest with the columns filename,label"
    )


# CSV manifest


def _manifests(root: Path) -> list[Path]:
    """CSV files directly in `root` whose header has the columns of a manifest."""
    found = []
    for path in sorted(root.glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            header = [name.strip() for name in file.readline().split(",")]
        if {"filename", "label"} <= set(header):
            found.append(path)
    return found


def _read_manifest_folder(root: Path) -> list[Clip]:
    manifests = _manifests(root)
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise UserError(f"{root}: several manifests ({names}); give the path of the one to use")
    return _read_manifest(manifests[0])


def _read_manifest(path: Path) -> list[Clip]:
    seen: dict[tuple[str, float], str] = {}
    clips = []
    for row in rows(path, ("filename", "label")):
        clips.append(_manifest_clip(row))
        part = clips[-1].path, clips[-1].start_s
        if part in seen:
            raise UserError(f"{row.where}: '{part[0]}' is listed twice, first at {seen[part]}")
        seen[part] = row.where.rpartition(", ")[2]
    return clips


def _manifest_clip(row: Row) -> Clip:
    return Clip(
        posixpath.normpath(row["filename"].replace("\\", "/")),
        row["label"],
        split=_split(row) if row["split"] else None,
        group=row["group"] or None,
        start_s=_seconds(row, "start") or 0.0,
        end_s=_seconds(row, "end"),
        device=row["device"] or None,
        city=row["city"] or None,
    )


def _split(row: Row) -> Split:
    if row["split"].lower() not in SPLIT_NAMES:
        raise UserError(
            f"{row.where}: split is '{row['split']}', allowed are train, validation and test"
        )
    return SPLIT_NAMES[row["split"].lower()]


def _seconds(row: Row, column: str) -> float | None:
    if not row[column]:
        return None
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    low = (_seconds(row, "start") or 0.0) if column == "end" else 0.0
    if not (low <= value < math.inf) or (column == "end" and value == low):
        raise UserError(
            f"{row.where}: {column} is '{row[column]}', it must be seconds, "
            f"{'more than the start' if column == 'end' else '0 or more'}"
        )
    return value


# ESC-50 and ESC-10


def _is_esc50(root: Path) -> bool:
    return (root / "meta" / "esc50.csv").is_file()


def _read_esc50(root: Path) -> list[Clip]:
    table = rows(root / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file"))
    return [
        Clip(f"audio/{r['filename']}", r["category"], group=r["src_file"], fold=r["fold"])
        for r in table
    ]


_ESC10_FOLDER = re.compile(r"\d{3} - (.+)")
_ESC10_FILE = re.compile(r"(\d+)-(\d+)-[A-Z]\.\w+")


def _is_esc10(root: Path) -> bool:
    folders = [e for e in os.scandir(root) if e.is_dir() and _ESC10_FOLDER.fullmatch(e.name)]
    return bool(folders) and any(_ESC10_FILE.fullmatch(name) for name in os.listdir(folders[0]))


def _read_esc10(root: Path) -> list[Clip]:
    clips = []
    for path in audio_files(root):
        folder, _, name = path.partition("/")
        title, parts = _ESC10_FOLDER.fullmatch(folder), _ESC10_FILE.fullmatch(name)
        if title and parts:
            clips.append(Clip(path, title[1], group=parts[2], fold=parts[1]))
    return clips


# UrbanSound8K


def _is_urbansound(root: Path) -> bool:
    return (root / "metadata" / "UrbanSound8K.csv").is_file()


def _read_urbansound(root: Path) -> list[Clip]:
    """`start` and `end` of the metadata are positions in the original recording, not the slice."""
    needed = ("slice_file_name", "fsID", "fold", "class")
    return [
        Clip(
            f"audio/fold{r['fold']}/{r['slice_file_name']}",
            r["class"],
            group=r["fsID"],
            fold=r["fold"],
        )
        for r in rows(root / "metadata" / "UrbanSound8K.csv", needed)
    ]


# TAU Urban Acoustic Scenes


def _is_tau(root: Path) -> bool:
    return (root / "meta.csv").is_file() and (root / "evaluation_setup").is_dir()


def _read_tau(root: Path) -> list[Clip]:
    """Official split: fold1_train trains, fold1_evaluate (labelled) or fold1_test tests."""
    setup = root / "evaluation_setup"
    split = _tau_files(setup / "fold1_train.csv", "train")
    evaluate = setup / "fold1_evaluate.csv"
    split |= _tau_files(evaluate if evaluate.is_file() else setup / "fold1_test.csv", "test")
    clips = []
    for row in rows(root / "meta.csv", ("filename", "scene_label", "identifier"), "\t"):
        if row["filename"] in split:
            city, location = (row["identifier"].split("-") + ["0"])[:2]
            clips.append(
                Clip(
                    row["filename"],
                    row["scene_label"],
                    split=split[row["filename"]],
                    group=f"{city}-{location}",
                    device=row["source_label"] or None,
                    city=city,
                )
            )
    return clips


def _tau_files(path: Path, split: Split) -> dict[str, Split]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the official split of the data set is needed")
    return {row["filename"]: split for row in rows(path, ("filename",), "\t")}


# Google Speech Commands v0.02


def _is_commands(root: Path) -> bool:
    return all((root / name).is_file() for name in ("validation_list.txt", "testing_list.txt"))


def _read_commands(root: Path) -> list[Clip]:
    """The 12-class task of Warden 2018 (arXiv:1804.03209): ten words, `_unknown_`, `_silence_`.

    As in the reference, the two extra classes get a tenth of the number of keyword clips of each
    split; unknown clips are drawn from the other words with the reference's seed. Training silence
    is one-second pieces of background noise at up to a tenth of its volume.
    """
    split: dict[str, Split] = {}
    for name, kind in (("validation_list.txt", "validation"), ("testing_list.txt", "test")):
        lines = (root / name).read_text(encoding="utf-8").split()
        split |= dict.fromkeys(lines, SPLIT_NAMES[kind])
    words, noise = [], []
    for path in audio_files(root):
        word, _, name = path.partition("/")
        if word == "_background_noise_":
            noise.append(path)
        elif name:
            group = name.split("_nohash_")[0]
            label = word if word in KEYWORDS else "_unknown_"
            words.append(Clip(path, label, split=split.get(path, "train"), group=group))
    return _with_extras(words, _lengths_s(root, noise))


def _lengths_s(root: Path, paths: list[str]) -> dict[str, float]:
    lengths = {}
    for path in paths:
        with contextlib.suppress(soundfile.LibsndfileError):
            lengths[path] = float(soundfile.info(str(root / path)).duration)
    return lengths


def _with_extras(words: list[Clip], noise: dict[str, float]) -> list[Clip]:
    rng, clips = random.Random(59185), []
    for split in ("validation", "test", "train"):
        mine = [clip for clip in words if clip.split == split]
        known = [clip for clip in mine if clip.label != "_unknown_"]
        unknown = [clip for clip in mine if clip.label == "_unknown_"]
        extra = math.ceil(len(known) / 10)
        rng.shuffle(unknown)
        clips += known + unknown[:extra]
        clips += [_silence(rng, noise, SPLIT_NAMES[split]) for _ in range(extra if noise else 0)]
    return clips


def _silence(rng: random.Random, noise: dict[str, float], split: Split) -> Clip:
    path = rng.choice(list(noise))
    start = round(rng.uniform(0, max(0.0, noise[path] - 1)), 3)
    return Clip(
        path,
        "_silence_",
        split=split,
        start_s=start,
        end_s=start + 1,
        gain=round(rng.uniform(0.001, 0.1), 4),
    )


# Free Spoken Digit and plain class folders

_DIGIT_FILE = re.compile(r"(\d)_([A-Za-z]+)_\d+\.\w+")


def _digit_folder(root: Path) -> Path:
    return root / "recordings" if (root / "recordings").is_dir() else root


def _is_digits(root: Path) -> bool:
    names = [n for n in os.listdir(_digit_folder(root)) if n.lower().endswith(AUDIO)]
    return bool(names) and all(_DIGIT_FILE.fullmatch(name) for name in names)


def _read_digits(root: Path) -> list[Clip]:
    folder = _digit_folder(root)
    prefix = "" if folder == root else "recordings/"
    names = sorted(n for n in os.listdir(folder) if n.lower().endswith(AUDIO))
    matches = [(name, cast("re.Match[str]", _DIGIT_FILE.fullmatch(name))) for name in names]
    return [Clip(prefix + name, match[1], group=match[2]) for name, match in matches]


def _is_class_folders(root: Path) -> bool:
    return any("/" in path for path in audio_files(root))


def _read_class_folders(root: Path) -> list[Clip]:
    """CLASS/**/file, or SPLIT/CLASS/**/file when every top folder is named after a split."""
    parts = [path.split("/") for path in audio_files(root)]
    nested = [p for p in parts if len(p) > 1]
    split = all(p[0].lower() in SPLIT_NAMES and len(p) > 2 for p in nested)
    if split:
        return [Clip("/".join(p), p[1], split=SPLIT_NAMES[p[0].lower()]) for p in nested]
    return [Clip("/".join(p), p[0]) for p in nested]


LAYOUTS = (
    Layout("ESC-50", _is_esc50, _read_esc50),
    Layout("ESC-10", _is_esc10, _read_esc10),
    Layout("UrbanSound8K", _is_urbansound, _read_urbansound),
    Layout("TAU Urban Acoustic Scenes", _is_tau, _read_tau),
    Layout("Speech Commands", _is_commands, _read_commands),
    Layout("csv manifest", lambda root: bool(_manifests(root)), _read_manifest_folder),
    Layout("Free Spoken Digit", _is_digits, _read_digits),
    Layout("class folders", _is_class_folders, _read_class_folders),
)
