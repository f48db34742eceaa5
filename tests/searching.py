"""Searches in processes of their own: started, watched, killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tones import SPACE

STUDY = """
name = "tones"
data = "tones"
space = "tiny.toml"
budget_kb = 12
trials = 6
workers = 2

[proxy]
epochs = 3
"""
NAS = (sys.executable, "-m", "nas")
# The same command, on a clock on which a silent process is dead after seconds.
QUICK = (
    sys.executable,
    "-c",
    "import sys, nas.storage as storage; storage.BEAT_S, storage.GRACE_S = 1, 8; "
    "from nas.cli import main; sys.exit(main(sys.argv[1:]))",
)


def working_folder(folder: Path, tones: Path, study: str = STUDY) -> Path:
    """A folder with the recordings, a space and a study file."""
    folder.mkdir(exist_ok=True)
    (folder / "tones").symlink_to(tones)
    (folder / "tiny.toml").write_text(SPACE)
    (folder / "tones.toml").write_text(study)
    return folder


def start_search(
    folder: Path, *flags: str, command: Sequence[str] = NAS, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """A search in the background; what it says goes to `log` (default: a file in `folder`)."""
    with open(log or folder / "log", "ab") as output:
        return subprocess.Popen(
            [*command, "search", "tones.toml", *flags], cwd=folder, stdout=output, stderr=output
        )


def rows(folder: Path, *flags: str, name: str = "tones") -> list[dict[str, Any]]:
    """All trials of the study."""
    done = subprocess.run(
        [*NAS, "front", name, "--all", "--json", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def complete(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in trials if row["state"] == "complete"]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    """The processes that `parent` has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[1] == str(parent) and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
