"""Studies in Optuna's storage, the only record of a search.

A study is a folder `studies/<name>` (or a row in the database of `--storage`). Its inputs are
frozen when it is created; each trial carries its whole result. Any number of processes on any
number of machines search in one study: each keeps its own trials alive by a heartbeat and frees
those of processes that are dead.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna import Study, Trial
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import OperationalError, PendingRollbackError, SQLAlchemyError

from nas.errors import UserError, nearest
from nas.record import KB, Latency, StudyInputs, StudyRecord, Training, TrialResult, size_bytes

__all__ = [
    "Pulse",
    "Study",
    "Trial",
    "ask",
    "front_times",
    "importance",
    "load_study",
    "look",
    "open_study",
    "record",
    "start",
    "study_folder",
    "time_again",
    "told",
    "withdraw",
]

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

FEWEST_FOR_IMPORTANCE = 10
# A process that has not shown a sign of life for so long is dead; one that is not (a machine that
# slept) loses nothing: its result is added as a trial of its own.
BEAT_S, GRACE_S = 10, 60
# A database that is away is waited for: so long, and asked again after these pauses.
MOST_AWAY_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 600.0, 0.5, 10.0
_SIGNS_OF_ABSENCE = (OperationalError, PendingRollbackError)
# What a running search asks of Optuna's storage: safe to ask twice.
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
_RESULT, _INPUTS, _STARTED = "result", "inputs", "started"
_TIME_OF = "latency of trial "


class Started(msgspec.Struct, frozen=True):
    """What is known of a trial while it runs: enough to record it as failed if it never ends.

    `machine` is where the number `pid` means something, and `born` the process's start time as
    the kernel counts it: process numbers come again.
    """

    architecture: str
    host: str
    pid: int
    born: str
    machine: str = ""
    training: Training = {}


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


def open_study(
    name: str, storage: str | None, inputs: StudyInputs, say: Callable[[str], None]
) -> Study:
    """The study of this name, created if need be; `say` is told when its database is away.

    Raises UserError if it exists with other inputs or if the storage cannot be opened.
    """
    database = _storage(name, storage)
    study = optuna.create_study(
        storage=database,
        study_name=name,
        sampler=optuna.samplers.RandomSampler(inputs.seed),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    if _INPUTS not in study.user_attrs:
        study.set_user_attr(_INPUTS, msgspec.json.encode(inputs).decode())
    _refuse_other_inputs(name, _inputs(study), inputs)
    if storage:
        for call in _ASKED_OF_STORAGE:
            setattr(database, call, partial(_patiently, getattr(database, call), say))
    return study


def _patiently(
    call: Callable[..., Any], say: Callable[[str], None], *given: Any, **named: Any
) -> Any:
    """What the call returns, once the database answers."""
    waited_s, pause_s = 0.0, FIRST_PAUSE_S
    while True:
        try:
            answer = call(*given, **named)
        except StorageInternalError as error:
            if not isinstance(error.__cause__, _SIGNS_OF_ABSENCE) or waited_s >= MOST_AWAY_S:
                raise
            if not waited_s:
                say(f"the database is away ({_first_line(error)}); waiting for it")
        else:
            if waited_s:
                say("the database is back; the search goes on")
            return answer
        time.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, LONGEST_PAUSE_S)


def load_study(name: str, storage: str | None = None) -> StudyRecord:
    """The study as recorded so far; a search may be running."""
    if storage is None and not (study_folder(name) / "study.db").is_file():
        known = [path.parent.name for path in Path("studies").glob("*/study.db")]
        raise UserError(f"no study '{name}' in the folder 'studies': {nearest(name, known)}")
    with told(name):
        database = _storage(name, storage)
        known = optuna.get_all_study_names(database)
        if name not in known:
            where = make_url(storage) if storage else "its file"  # shown without its password
            raise UserError(f"no study '{name}' in {where}: {nearest(name, known)}")
        study = optuna.load_study(study_name=name, storage=database)
        starts = [t.datetime_start for t in study.get_trials(deepcopy=False) if t.datetime_start]
        started_at = min(starts).timestamp() if starts else 0.0
        return StudyRecord(name, _inputs(study), look(study)[0], started_at)


def importance(name: str, storage: str | None = None) -> dict[str, dict[str, float]]:
    """Share of each choice in what made accuracy high and size small (PED-ANOVA, Watanabe et al.
    2023); {} while there are too few complete trials to tell."""
    study = optuna.load_study(study_name=name, storage=_storage(name, storage))
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST_FOR_IMPORTANCE:
        return {}
    targets = {"accuracy": lambda t: -t.values[0], "size": lambda t: t.values[1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of rare choices, whose share is then 0
        return {
            key: optuna.importance.get_param_importances(study, target=target)
            for key, target in targets.items()
        }


def ask(study: Study, seed: int) -> Trial:
    """A new trial, alive from now on. The number of a process's first one seeds its sampler: no
    other process has it, and a search by one process is the same each time."""
    with _quiet():
        trial = study.ask()
    _beat(trial)
    if isinstance(study.sampler, optuna.samplers.RandomSampler):
        study.sampler = optuna.samplers.TPESampler(seed=seed + trial.number, constant_liar=True)
    return trial


def start(trial: Trial, architecture: str, training: Training) -> None:
    """Notes who is about to evaluate the trial."""
    host, pid = socket.gethostname(), os.getpid()
    started = Started(architecture, host, pid, _born(pid), _machine(), training)
    trial.set_user_attr(_STARTED, msgspec.json.encode(started).decode())


def withdraw(study: Study, trial: Trial) -> None:
    """Gives up a trial that was asked for and not started: it leaves no result."""
    _end(study, trial.number, state=TrialState.FAIL)


def record(study: Study, trial: Trial, result: TrialResult, inputs: StudyInputs) -> TrialResult:
    """Stores the result and tells the sampler; returns it with its number and time.

    If the trial was given up for dead meanwhile, its result is stored as a new trial.
    """
    finished_at = result.finished_at or time.time()
    result = msgspec.structs.replace(result, trial=trial.number, finished_at=finished_at)
    over = _over_latency(result, inputs)
    try:
        if over is not None:
            trial.set_constraint("latency_ms", over)
        trial.set_user_attr(_RESULT, msgspec.json.encode(result).decode())
    except UpdateFinishedTrialError:
        if result.state != "failed":
            _add(study, trial, result, inputs)
        return msgspec.structs.replace(
            result, state="failed", reason="given up for dead", score=None
        )
    _tell(study, trial.number, result, inputs)
    return result


def _add(study: Study, trial: Trial, result: TrialResult, inputs: StudyInputs) -> None:
    frozen = optuna.trial.create_trial(
        **_outcome(result, inputs),
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={_RESULT: msgspec.json.encode(result).decode()},
    )
    study.add_trial(frozen)


def _tell(study: Study, number: int, result: TrialResult, inputs: StudyInputs) -> None:
    _end(study, number, **_outcome(result, inputs))


def _outcome(result: TrialResult, inputs: StudyInputs) -> dict[str, Any]:
    """What Optuna knows of a result: `state` and, if the sampler learns from it, `values`."""
    if result.state in ("complete", "repeated") and result.score is not None:
        return {"state": TrialState.COMPLETE, "values": _values(result, inputs)}
    return {"state": TrialState.FAIL if result.state == "failed" else TrialState.PRUNED}


def _end(study: Study, number: int, **outcome: Any) -> None:
    """Another process may end the trial at the same moment: what it told is as good."""
    with contextlib.suppress(UpdateFinishedTrialError):
        study.tell(number, skip_if_finished=True, **outcome)


def _over_latency(result: TrialResult, inputs: StudyInputs) -> float | None:
    """How far over the limit, as a share of it (below 0: within), if there is one."""
    limit = inputs.budget.latency_ms
    return result.latency.latency_ms / limit - 1 if limit and result.latency else None


def look(
    study: Study, known: Collection[int] = ()
) -> tuple[list[TrialResult], dict[int, TrialResult | None]]:
    """The results of all processes whose numbers are not `known`, in order; and by number, for the
    trials that run, what each is if it never ends (None while its architecture is chosen).

    A trial whose result is stored has ended, told or not.
    """
    ended: list[TrialResult] = []
    running: dict[int, TrialResult | None] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.number in known:
            continue
        result = _result(trial)
        if trial.state.is_finished() or _RESULT in trial.user_attrs:
            ended += [result] if result else []
        elif trial.state == TrialState.RUNNING:
            running[trial.number] = result
    again = front_times(study) if ended else {}
    return [_timed(r, again[r.trial]) if r.trial in again else r for r in ended], running


def time_again(study: Study, result: TrialResult, latency: Latency) -> TrialResult:
    """Stores a later latency of a trial, which then counts; returns the result with it. It lies
    beside the trials, as Optuna lets nothing change in one that has ended."""
    text = msgspec.json.encode(latency).decode()
    study.set_user_attr(f"{_TIME_OF}{result.trial}", text)
    return _timed(result, latency)


def front_times(study: Study) -> dict[int, Latency]:
    """Latencies that were measured again after the search, by trial."""
    return {
        int(key.removeprefix(_TIME_OF)): msgspec.json.decode(text, type=Latency)
        for key, text in study.user_attrs.items()
        if key.startswith(_TIME_OF)
    }


def _timed(result: TrialResult, latency: Latency) -> TrialResult:
    """The time of the float parent stays, as it was measured in the trial."""
    before = result.latency.float_latency_ms if result.latency else None
    latency = msgspec.structs.replace(latency, float_latency_ms=before)
    return msgspec.structs.replace(result, latency=latency, reason="")


def _result(trial: FrozenTrial) -> TrialResult | None:
    """The stored result; for a started trial without one, what it is if it never ends."""
    if _RESULT in trial.user_attrs:
        stored = msgspec.json.decode(trial.user_attrs[_RESULT], type=TrialResult)
        return msgspec.structs.replace(stored, trial=trial.number)
    started = _started(trial)
    if started is None:
        return None
    reason = f"the search on {started.host} ended while this trial ran"
    return TrialResult(
        started.architecture, "failed", reason, trial=trial.number, training=started.training
    )


def _started(trial: FrozenTrial) -> Started | None:
    text = trial.user_attrs.get(_STARTED)
    return None if text is None else msgspec.json.decode(text, type=Started)


def _values(result: TrialResult, inputs: StudyInputs) -> tuple[float, float]:
    """The two objectives: accuracy and the logarithm of the size that the budget means."""
    if result.score is None:
        raise ValueError(f"trial {result.trial} is {result.state} but has no score")
    return result.score.accuracy, math.log2(size_bytes(result, inputs.size_kind) / KB)


def _storage(name: str, storage: str | None) -> optuna.storages.RDBStorage:
    if storage is None:
        study_folder(name).mkdir(parents=True, exist_ok=True)
        file = URL.create("sqlite", database=str(study_folder(name) / "study.db"))
        writers = {"connect_args": {"timeout": GRACE_S / 2}}  # wait for their turn
        return _opened(file.render_as_string(hide_password=False), writers)
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
        with _quiet():
            return optuna.storages.RDBStorage(
                url, engine_kwargs=engine, heartbeat_interval=BEAT_S, grace_period=GRACE_S
            )
    except (SQLAlchemyError, StorageInternalError):
        if tries == 1:
            raise
    time.sleep(FIRST_PAUSE_S)
    return _opened(url, engine, tries - 1)


def _inputs(study: Study) -> StudyInputs:
    if _INPUTS not in study.user_attrs:
        raise UserError(
            f"study '{study.study_name}' was cut off while it was made and holds nothing; the same "
            "`nas search` command completes it"
        )
    return msgspec.json.decode(study.user_attrs[_INPUTS], type=StudyInputs)


def _refuse_other_inputs(name: str, old: StudyInputs, new: StudyInputs) -> None:
    """The data may have moved, but must be the same; so must everything else."""
    differences = _differences(old, new, skip=("data", "space"))
    if old.space != new.space:
        differences.append("the choices of the search space are others")
    if differences:
        raise UserError(
            f"study '{name}' exists with other inputs ({'; '.join(differences)}); "
            "give the same ones to continue it, or another --name"
        )


def _differences(
    old: msgspec.Struct, new: msgspec.Struct, skip: tuple[str, ...] = (), prefix: str = ""
) -> list[str]:
    """ "key was X, now Y" for every field that differs, those of nested structs as well."""
    found = []
    for field in old.__struct_fields__:
        before, now = getattr(old, field), getattr(new, field)
        if field in skip or before == now:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(now, msgspec.Struct):
            found += _differences(before, now, prefix=f"{field}.")
        else:
            found.append(f"{prefix}{field} was {_short(before)}, now {_short(now)}")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Pulse:
    """The sign of life of one process's trials; with it go the trials of processes without."""

    def __init__(self, study: Study, inputs: StudyInputs) -> None:
        self.study, self.inputs = study, inputs
        self.unstarted: set[int] = set()
        self.beat_at = -math.inf
        self.judge_at = -math.inf

    def beat(self, mine: Iterable[Trial]) -> None:
        """At most every BEAT_S: keeps `mine` alive and frees the trials of the dead.

        After this process or the database stood still, the others first get GRACE_S to show that
        they are alive.
        """
        now = time.monotonic()
        if now - self.beat_at < BEAT_S:
            return
        numbers = set()
        for trial in mine:
            _beat(trial)
            numbers.add(trial.number)
        if math.isfinite(self.beat_at) and time.monotonic() - self.beat_at > GRACE_S / 2:
            self.judge_at = time.monotonic() + GRACE_S
        self.beat_at = time.monotonic()
        if self.beat_at >= self.judge_at:
            self._free(numbers)

    def _free(self, mine: Collection[int]) -> None:
        """Trials that a killed process left running have failed; one that was killed between
        storing its result and telling it is told its result."""
        unstarted = set()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in mine:
                continue
            result = _result(trial)
            if result is None:
                unstarted.add(trial.number)
            elif _RESULT in trial.user_attrs or _died_here(_started(trial)):
                _tell(self.study, trial.number, result, self.inputs)
        for number in unstarted & self.unstarted:
            _end(self.study, number, state=TrialState.FAIL)
        self.unstarted = unstarted
        with _quiet():
            optuna.storages.fail_stale_trials(self.study)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns that heartbeats are new and for its own loop; here they are sent by hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _beat(trial: Trial) -> None:
    storage: Any = trial.storage
    storage.record_heartbeat(trial._trial_id)


def _died_here(started: Started | None) -> bool:
    """Whether the process ran on this machine and is no more: no need to wait for its silence."""
    if started is None or started.machine != _machine():
        return False
    return _born(started.pid) != started.born


def _machine() -> str:
    """The boot of the kernel and the name space in which process numbers mean something."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> str:
    """Start time of a running process in clock ticks; "" if there is none of that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
