"""What a search keeps when it is killed, or its disk fails, at the worst moments."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import load_file
from searching import children, complete, rows, start_search, wait_for, working_folder
from tones import write_tones

pytestmark = pytest.mark.slow
QUICK_STUDY = """
name = "tones"
data = "tones"
space = "tiny.toml"
budget_kb = 12
workers = 2

[proxy]
epochs = 1
"""


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recordings")
    return write_tones(root / "tones", clips_per_class=8, seconds=0.2)


def stored(folder: Path, state: str) -> dict[int, str]:
    """The results or, if they run, notes of the study's trials, straight from its file."""
    database = folder / "studies" / "tones" / "study.db"
    if not database.exists():
        return {}
    key = "started" if state == "RUNNING" else "result"
    query = (
        "select number, value_json from trials join trial_user_attributes using (trial_id) "
        f"where state = '{state}' and key = '{key}'"
    )
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            return dict(connection.execute(query).fetchall())
        except sqlite3.OperationalError:  # its tables are being made
            return {}


def writes_an_artefact(folder: Path) -> bool:
    return any(name.startswith(".new-") for name in os.listdir(folder / "artifacts"))


def commits(folder: Path) -> bool:
    return (folder / "study.db-journal").exists()


def kill(process: subprocess.Popen[bytes]) -> None:
    """The search and its workers, at once."""
    workers = children(process.pid)
    for pid in [process.pid, *workers]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def at_once_when(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end


def figures(trials: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """What a search never changes once a trial is finished (the front is timed again)."""
    keys = ("trial", "architecture", "accuracy", "file_bytes", "artifact")
    return {tuple(row[key] for key in keys) for row in trials}


def check_files(folder: Path) -> None:
    """Every file that can be seen is whole."""
    for path in (folder / "studies" / "tones" / "artifacts").glob("[!.]*"):
        if path.suffix == ".onnx":
            onnx.checker.check_model(str(path))
        else:
            assert load_file(path)


def test_twenty_kills_lose_no_finished_trial_and_leave_no_torn_file(tones: Path, tmp_path: Path):
    folder = working_folder(tmp_path / "work", tones, QUICK_STUDY)
    study = folder / "studies" / "tones"
    seeded = random.Random(7)
    moments = ["begun"] * 8 + ["finished"] * 4 + ["artefact"] * 4 + ["commit"] * 4
    seeded.shuffle(moments)
    kept: dict[int, str] = {}
    for moment in moments:
        dead = stored(folder, "RUNNING").keys()
        process = start_search(folder, "--trials", "1000")
        if moment == "begun":
            wait_for(lambda dead=dead: bool(stored(folder, "RUNNING").keys() - dead))
        else:  # something is finished that could be lost
            wait_for(lambda kept=kept: len(stored(folder, "COMPLETE")) > len(kept))
        time.sleep(seeded.uniform(0, 2))
        if moment == "artefact":
            at_once_when(lambda: writes_an_artefact(study), process)
        if moment == "commit":
            at_once_when(lambda: commits(study), process)
        kill(process)
        now = stored(folder, "COMPLETE")
        assert kept.items() <= now.items() and (now != kept or moment == "begun"), moment
        kept = now
        check_files(folder)

    before = complete(rows(folder))
    wanted = len(before) + 2
    assert start_search(folder, "--trials", str(wanted)).wait(timeout=100) == 0
    trials = rows(folder)
    done = complete(trials)
    assert len(done) == wanted and figures(before) <= figures(done)
    assert len({row["architecture"] for row in done}) == wanted
    failed = [row for row in trials if row["state"] == "failed"]
    assert len(failed) <= 2 * len(moments), "a kill costs at most what runs"
    for row in done:
        assert Path(row["artifact"]).stat().st_size == row["file_bytes"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root (to mount a small disk)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves 64 KB of the disk."""
    free_bytes = shutil.disk_usage(disk).free
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(free_bytes - 64 * 1024))
    return ballast


def search(disk: Path, trials: int) -> tuple[int, list[str]]:
    """Exit code, and what was said but for the progress."""
    log = disk.parent / "log"
    log.unlink(missing_ok=True)
    process = start_search(disk, "--trials", str(trials), log=log)
    try:
        code = process.wait(timeout=150)
    finally:
        kill(process)
    said = log.read_text().splitlines()
    return code, [line for line in said if not line.startswith("trial ") and " done" not in line]


def test_a_full_and_a_read_only_disk_end_in_one_sentence_and_the_study_opens_again(
    tones: Path, disk: Path
):
    working_folder(disk, tones, QUICK_STUDY)
    assert search(disk, 1)[0] == 0
    before = stored(disk, "COMPLETE")
    ballast = fill(disk)
    code, said = search(disk, 1000)
    assert code == 2 and len(said) == 1, said
    assert said[0].startswith("nas: ") and ("full" in said[0] or "space" in said[0])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    code, said = search(disk, 1000)
    assert code == 2 and len(said) == 1 and "read" in said[0], said
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    ballast.unlink()
    wanted = len(complete(rows(disk))) + 1
    code, said = search(disk, wanted)
    assert code == 0, said
    assert before.items() <= stored(disk, "COMPLETE").items()
    assert len(complete(rows(disk))) == wanted
