"""A study as several processes see it: who is alive, who came first, what a late result becomes."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from made_study import complete, inputs

from nas import storage
from nas import study as studies
from nas.errors import UserError
from nas.record import TrialResult
from nas.study import Pulse, ask, load_study, look, open_study, record, start, withdraw

STORED = '{"architecture": "a", "state": "failed"}'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(**changes: object):
    given = msgspec.structs.replace(inputs(), **changes)
    return open_study("shared", None, given, lambda said: None), given


def in_another_process(code: str) -> None:
    """Runs `code` with a study and a trial of it; the process dies where the code ends."""
    script = (
        "import os\nfrom made_study import inputs\n"
        "from nas.study import ask, open_study, start\n"
        "study = open_study('shared', None, inputs(), print)\n"
        "trial = ask(study, 0); trial.suggest_int('width', 1, 9)\n"
        f"{code}\nos._exit(9)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 9


def test_a_trial_that_another_process_took_for_dead_is_kept_as_a_new_one(here):
    study, given = opened()
    trial = ask(study, 0)
    trial.suggest_int("width", 1, 9)
    start(trial, "a", {})
    other, _ = opened()
    other.tell(trial.number, state=studies.TrialState.FAIL)
    made = complete(0, 0.8, 9000)
    assert record(study, trial, made, given).state == "failed"
    ended, running = look(study)
    assert [(r.trial, r.state) for r in ended] == [(0, "failed"), (1, "complete")] and not running
    assert ended[1].score == made.score
    assert [t.params for t in study.get_trials()] == [trial.params] * 2


@pytest.mark.parametrize(
    "code, state",
    [
        ("start(trial, 'a', {})", "failed"),
        ('trial.set_user_attr(\'result\', \'{"architecture":"a","state":"failed"}\')', "failed"),
        ("", None),
    ],
    ids=["started", "stored and not told", "not started"],
)
def test_what_a_dead_process_left_running_is_freed(here, monkeypatch, code, state):
    in_another_process(code)
    study, given = opened()
    monkeypatch.setattr(studies, "BEAT_S", 0)
    pulse = Pulse(study, given)
    for _ in range(2):
        pulse.beat([])
    ended, running = look(study)
    assert running == {} and [r.state for r in ended] == ([state] if state else [])
    assert study.get_trials()[0].state.is_finished()


@pytest.mark.slow
def test_a_trial_of_a_live_process_is_left_alone_while_its_heart_beats(here, monkeypatch):
    for module in (storage, studies):
        monkeypatch.setattr(module, "BEAT_S", 1)
        monkeypatch.setattr(module, "GRACE_S", 4)
    study, given = opened()
    trial = ask(study, 0)
    start(trial, "a", {})
    mine, other = Pulse(study, given), Pulse(opened()[0], given)
    for _ in range(6):
        mine.beat([trial])
        other.beat([])
        time.sleep(1.1)
    assert list(look(study)[1]) == [0]
    for _ in range(6):
        other.beat([])
        time.sleep(1.1)
    (result,) = look(study)[0]
    assert result.state == "failed" and "ended while this trial ran" in result.reason


def test_a_trial_that_is_withdrawn_leaves_no_result(here):
    study, _ = opened()
    withdraw(study, ask(study, 0))
    assert look(study) == ([], {})


def test_only_what_was_measured_teaches_the_sampler(here):
    study, given = opened()
    made = complete(0, 0.8, 9000)
    for result, state in [
        (made, "COMPLETE"),
        (msgspec.structs.replace(made, state="failed", score=None), "PRUNED"),
        (TrialResult("a", "infeasible"), "PRUNED"),
        (TrialResult("a", "failed", "the search was ended"), "FAIL"),
        (TrialResult("a", "repeated", "trial 3 is running it"), "FAIL"),
    ]:
        trial = ask(study, 0)
        record(study, trial, result, given)
        assert study.get_trials()[-1].state.name == state


def test_no_two_processes_sample_alike(here):
    (first, _), (second, _) = opened(), opened()
    trials = [ask(study, 0) for study in (first, second)]
    widths = [[t.suggest_int(f"width{i}", 1, 10**6) for i in range(5)] for t in trials]
    assert widths[0] != widths[1]


def test_data_may_lie_elsewhere_but_must_be_the_same(here):
    opened(data="/here")
    opened(data="/there")
    with pytest.raises(UserError, match="data_fingerprint was .*, now other"):
        opened(data="/there", data_fingerprint="other")
    assert load_study("shared").inputs.data == "/here"


def test_ctrl_c_is_heard_while_the_database_is_away(here):
    url = f"sqlite:///{here}/own.db"
    said: list[str] = []
    study = open_study("shared", url, inputs(), said.append)
    rename = "alter table {} rename to {}"
    with sqlite3.connect(here / "own.db") as database:
        database.execute(rename.format("studies", "gone"))
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), storage.uninterrupted():
            study.set_user_attr("a", 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 10, "it was told at once that the database was away"
    assert "the database is away" in said[0]
    with sqlite3.connect(here / "own.db") as database:
        database.execute(rename.format("gone", "studies"))
    study.set_user_attr("a", 2)
    assert study.user_attrs["a"] == 2


def test_what_is_no_database_url_is_one_sentence(here):
    for url in ("nonsense", "postgresql://me:word@host:port/nas"):
        with pytest.raises(UserError, match=r"^--storage is no database URL \(.*postgresql://user"):
            load_study("shared", url)


def test_ctrl_c_at_any_moment_leaves_the_database_unlocked(here, monkeypatch):
    monkeypatch.setattr(storage, "GRACE_S", 4)  # a locked database is waited for half as long
    study, given = opened()
    chance = random.Random(0)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for number in range(60):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.005, 0.06), 0.5)
            with contextlib.suppress(KeyboardInterrupt):
                for i in itertools.count():
                    record(study, ask(study, 0), complete(i, 0.8, 9000), given)
            signal.setitimer(signal.ITIMER_REAL, 0)
            study.set_user_attr("interrupted", number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert opened()[0].user_attrs["interrupted"] == 59
