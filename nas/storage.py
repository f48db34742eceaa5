"""The database of a study: opened for many processes, waited for while it is away."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from nas.errors import UserError

# A process that has not shown a sign of life for so long is dead; one that is not (a machine that
# slept) loses nothing: its result is added as a trial of its own.
BEAT_S, GRACE_S = 10, 60
# A database that is away is waited for: so long, and asked again after these pauses.
MOST_AWAY_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 600.0, 0.5, 10.0
_SIGNS_OF_ABSENCE = (OperationalError, PendingRollbackError)
# What a running search asks of Optuna's storage: safe to ask twice, not to be broken off.
_ASKED_OF_STORAGE = (
    "_create_new_trial",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "record_heartbeat",
    "set_study_user_attr",
    "set_trial_state_values",
    "set_trial_system_attr",
    "set_trial_user_attr",
)


def study_folder(name: str) -> Path:
    """Where the study keeps its database (unless it has another storage), artefacts and page."""
    return Path("studies") / name


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """A database or disk that fails is the user's to mend: one sentence, not a traceback."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise UserError(
            f"study '{name}': its database or folder cannot be used ({_first_line(error)}); check "
            "disk space, permissions, --storage or --artifacts; the same command then goes on"
        ) from None


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def database_of(name: str, storage: str | None) -> optuna.storages.RDBStorage:
    """The study's own file, or what the URL `storage` names. UserError if its driver is missing."""
    if storage is None:
        study_folder(name).mkdir(parents=True, exist_ok=True)
        file = URL.create("sqlite", database=str(study_folder(name) / "study.db"))
        writers = {"connect_args": {"timeout": GRACE_S / 2}}  # wait for their turn
        return _opened(file.render_as_string(hide_password=False), writers)
    try:
        make_url(storage)
    except (ArgumentError, ValueError) as error:
        raise UserError(
            f"--storage is no database URL ({error}); it is like postgresql://user@host/database"
        ) from None
    try:
        return _opened(storage, {"pool_pre_ping": True})
    except ImportError:
        raise UserError(
            f"--storage {make_url(storage)}: its driver is not installed; for PostgreSQL: "
            "pip install 'tinyaudio-nas[postgres]'"
        ) from None


def _opened(url: str, engine: dict[str, Any], tries: int = 3) -> optuna.storages.RDBStorage:
    """Of processes that start together and create the tables, all but one fail the first time."""
    try:
        with quiet():
            return optuna.storages.RDBStorage(
                url, engine_kwargs=engine, heartbeat_interval=BEAT_S, grace_period=GRACE_S
            )
    except (SQLAlchemyError, StorageInternalError):
        if tries == 1:
            raise
    time.sleep(FIRST_PAUSE_S)
    return _opened(url, engine, tries - 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna warns that heartbeats are new and for its own loop; here they are sent by hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_steady(
    database: optuna.storages.RDBStorage, say: Callable[[str], None], most_away_s: float
) -> None:
    """What a search asks of it is not broken off by Ctrl-C, which could leave it locked, and waits
    while it is away, up to `most_away_s`; `say` is told once."""
    for call in _ASKED_OF_STORAGE:
        setattr(database, call, partial(_steadily, getattr(database, call), say, most_away_s))


def _steadily(
    call: Callable[..., Any],
    say: Callable[[str], None],
    most_away_s: float,
    *given: Any,
    **named: Any,
) -> Any:
    """What the call returns, once the database answers."""
    waited_s, pause_s = 0.0, FIRST_PAUSE_S
    while True:
        try:
            with uninterrupted():
                answer = call(*given, **named)
        except StorageInternalError as error:
            if not isinstance(error.__cause__, _SIGNS_OF_ABSENCE) or waited_s >= most_away_s:
                raise
            if not waited_s:
                say(f"the database is away ({_first_line(error)}); waiting for it")
        else:
            if waited_s:
                say("the database is back; the search goes on")
            return answer
        _pause(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, LONGEST_PAUSE_S)


def _pause(seconds: float) -> None:
    """Sleeps; Ctrl-C ends it, even where all else is uninterrupted."""
    deferral = signal.getsignal(signal.SIGINT)
    if not isinstance(deferral, _Deferral):
        time.sleep(seconds)
        return
    with deferral.lifted():
        _pause(seconds)


class _Deferral:
    """Stands for the handler of Ctrl-C `before` and keeps what comes until that is back."""

    def __init__(self) -> None:
        self.before = signal.getsignal(signal.SIGINT)
        self.pending = False

    def __call__(self, *_: object) -> None:
        self.pending = True

    def end(self) -> None:
        signal.signal(signal.SIGINT, self.before)
        pending, self.pending = self.pending, False
        if pending:
            signal.raise_signal(signal.SIGINT)  # heard by whoever is uninterrupted around this

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        self.end()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the work at hand is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted at all
        return
    deferral = _Deferral()
    signal.signal(signal.SIGINT, deferral)
    try:
        yield
    finally:
        deferral.end()
