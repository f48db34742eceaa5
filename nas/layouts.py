"""Data sets as they lie on disk: each known layout is read into clips, without opening any audio.

A layout is a row of LAYOUTS: a name, a test for it, and a reader. Readers give the official split
or fold of each clip where the data set has one; dataset.py makes the rest.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import posixpath
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import soundfile

from nas.errors import UserError

Split = Literal["train", "validation", "test"]

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".wave")
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording, or the part from `start_s` to `end_s` (None: the end) of one.

    `path` is relative to the data set's root, with forward slashes. Clips of one `group` (speaker,
    location, source recording) must stay on one side of a split. `gain` scales the waveform.
    `duration_s` is known once dataset.py has opened the file.
    """

    path: str
    label: str
    split: Split | None = None
    group: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    fold: str | None = None
    device: str | None = None
    city: str | None = None
    gain: float = 1.0
    duration_s: float = 0.0


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
            f"{path}: no such folder or CSV manifest; give the path of a folder of recordings"
        )
    for layout in LAYOUTS:
        if layout.matches(path):
            return Found(path, layout.name, layout.read(path))
    raise UserError(
        f"{path}: no recordings in a known layout; put the audio files of each class into a "
        "folder of its own, or add a CSV manifest with the columns filename,label"
    )


def audio_files(folder: Path) -> list[str]:
    """Audio files below `folder` as sorted relative paths; hidden files and folders are ignored.

    Raises UserError for a linked folder that lies elsewhere.
    """
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        for name in folders:
            if os.path.islink(os.path.join(base, name)):
                refuse_outside(os.path.realpath(folder), os.path.join(base, name))
        inside = Path(base).relative_to(folder).as_posix()
        prefix = "" if inside == "." else inside + "/"
        found += [prefix + n for n in names if n.lower().endswith(AUDIO) and not n.startswith(".")]
    return sorted(found)


def refuse_outside(root: str, path: str, real: str | None = None) -> None:
    """Raise UserError unless `path`, really `real`, lies below `root`."""
    real = real or os.path.realpath(path)
    if real != root and not real.startswith(root + os.sep):
        raise UserError(f"{path}: leads out of the data folder to {real}; copy it into the folder")


def _rows(path: Path, needed: tuple[str, ...], delimiter: str = ",") -> Iterator[_Row]:
    """Rows of a CSV file with its line numbers; every row must fill the `needed` columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in needed if name not in header]
            if missing:
                raise UserError(
                    f"{path}: column '{missing[0]}' is missing, the header is "
                    f"'{delimiter.join(header)}'"
                )
            for cells in reader:
                if cells:
                    yield _row(f"{path}, line {reader.line_num}", header, cells, needed)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV file in UTF-8 ({error})") from None


@dataclass(frozen=True)
class _Row:
    """One line of a CSV file; `where` names it in messages, a missing column reads as empty."""

    where: str
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def _row(where: str, header: list[str], cells: list[str], needed: tuple[str, ...]) -> _Row:
    if len(cells) != len(header):
        raise UserError(f"{where}: {len(cells)} values, but the header has {len(header)} columns")
    row = _Row(where, {k: v.strip() for k, v in zip(header, cells, strict=True)})
    for name in needed:
        if not row[name]:
            raise UserError(f"{where}: column '{name}' is empty")
    return row


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
    for row in _rows(path, ("filename", "label")):
        clips.append(_manifest_clip(row))
        part = clips[-1].path, clips[-1].start_s
        if part in seen:
            raise UserError(f"{row.where}: '{part[0]}' is listed twice, first at {seen[part]}")
        seen[part] = row.where.rpartition(", ")[2]
    return clips


def _manifest_clip(row: _Row) -> Clip:
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


def _split(row: _Row) -> Split:
    if row["split"].lower() not in SPLIT_NAMES:
        raise UserError(
            f"{row.where}: split is '{row['split']}', allowed are train, validation and test"
        )
    return SPLIT_NAMES[row["split"].lower()]


def _seconds(row: _Row, column: str) -> float | None:
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
    rows = _rows(root / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file"))
    return [
        Clip(f"audio/{r['filename']}", r["category"], group=r["src_file"], fold=r["fold"])
        for r in rows
    ]


_ESC10_FOLDER = re.compile(r"\d{3} - (.+)")
_ESC10_FILE = re.compile(r"(\d+)-(\d+)-[A-Z]\.\w+")


def _is_esc10(root: Path) -> bool:
    folders = [entry for entry in os.scandir(root) if _ESC10_FOLDER.fullmatch(entry.name)]
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
        for r in _rows(root / "metadata" / "UrbanSound8K.csv", needed)
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
    for row in _rows(root / "meta.csv", ("filename", "scene_label", "identifier"), "\t"):
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
    return {row["filename"]: split for row in _rows(path, ("filename",), "\t")}


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
