"""A clip, and the two ways to list some: the audio files of a folder, the rows of a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nas.errors import UserError

Split = Literal["train", "validation", "test"]

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".wave")
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


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


def rows(path: Path, needed: tuple[str, ...], delimiter: str = ",") -> Iterator[Row]:
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
class Row:
    """One line of a CSV file; `where` names it in messages, a missing column reads as empty."""

    where: str
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def _row(where: str, header: list[str], cells: list[str], needed: tuple[str, ...]) -> Row:
    if len(cells) != len(header):
        raise UserError(f"{where}: {len(cells)} values, but the header has {len(header)} columns")
    row = Row(where, {k: v.strip() for k, v in zip(header, cells, strict=True)})
    for name in needed:
        if not row[name]:
            raise UserError(f"{where}: column '{name}' is empty")
    return row
