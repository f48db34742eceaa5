"""Several processes in one study: a real PostgreSQL, killed workers and machines, shared files."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from postgres import Server, postgres
from searching import (
    NAS,
    QUICK,
    children,
    complete,
    rows,
    start_search,
    wait_for,
    working_folder,
)
from tones import write_tones

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with postgres() as running:
        yield running


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("recordings") / "tones")


def elsewhere(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command as on another machine: here its process numbers mean nothing."""
    if os.geteuid() != 0:
        pytest.skip("needs root (for a process name space)")
    return ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command)


def text(folder: Path) -> str:
    return (folder / "log").read_text()


def test_four_workers_a_killed_one_and_a_restarted_database_lose_nothing(
    server: Server, tones: Path, tmp_path: Path
):
    shutil.copytree(tones, tmp_path / "copy")  # the data may lie elsewhere on each machine
    first = working_folder(tmp_path / "first", tones)
    second = working_folder(tmp_path / "second", tmp_path / "copy")
    shared = tmp_path / "shared"
    flags = ["--storage", server.url, "--artifacts", str(shared), "--trials", "12"]
    searches = [
        start_search(first, *flags),
        start_search(second, *flags, command=elsewhere(NAS)),
    ]
    wait_for(lambda: text(first).count("trial ") >= 2)
    os.kill(children(searches[0].pid)[0], signal.SIGKILL)
    wait_for(lambda: text(first).count("trial ") >= 4)
    server.stop()
    time.sleep(2)
    server.start()
    assert [search.wait(timeout=200) for search in searches] == [0, 0], text(first) + text(second)
    assert "database is away" in text(first) and "database is back" in text(first)

    trials = rows(first, "--storage", server.url)
    assert trials == rows(second, "--storage", server.url)
    done = complete(trials)
    assert len(done) == 12
    assert len({row["architecture"] for row in done}) == 12
    failed = [row["reason"] for row in trials if row["state"] == "failed"]
    assert len(failed) == 1 and "killed" in failed[0]
    kept = {str(path): path.stat().st_size for path in (shared / "tones").glob("*.onnx")}
    assert {row["artifact"]: row["file_bytes"] for row in done}.items() <= kept.items()
    assert kept.keys() <= {row["artifact"] for row in done} | {
        f"{shared}/tones/{row['trial']:05d}.onnx" for row in trials if row["state"] == "failed"
    }


def test_the_trials_of_a_dead_machine_are_freed_and_its_share_is_done_by_others(
    server: Server, tones: Path, tmp_path: Path
):
    first = working_folder(tmp_path / "first", tones)
    second = working_folder(tmp_path / "second", tones)
    flags = ["--storage", server.url, "--name", "orphans", "--trials", "10"]
    surviving = start_search(first, *flags, command=QUICK)
    dying = start_search(second, *flags, command=elsewhere(QUICK))
    wait_for(lambda: text(second).count("trial ") >= 1)
    dying.kill()
    dying.wait()
    assert surviving.wait(timeout=100) == 0, text(first)
    trials = rows(first, "--storage", server.url, name="orphans")
    assert len(complete(trials)) == 10
    reasons = [row["reason"] for row in trials if row["state"] == "failed"]
    assert reasons and all("ended while this trial ran" in reason for reason in reasons)
