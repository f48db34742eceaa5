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
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url

from nas.errors import UserError, nearest
from nas.record import KB, Latency, StudyInputs, StudyRecord, Training, TrialResult, size_bytes
from nas.sampler import sampler
from nas.storage import (
    BEAT_S,
    GRACE_S,
    MOST_AWAY_S,
    database_of,
    make_steady,
    quiet,
    study_folder,
    told,
)

__all__ = [
    "GivenUp",
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
    "time_again",
    "withdraw",
]

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

GivenUp = UpdateFinishedTrialError  # another process took the trial for dead
FEWEST_FOR_IMPORTANCE = 10
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


def open_study(
    name: str, storage: str | None, inputs: StudyInputs, say: Callable[[str], None]
) -> Study:
    """The study of this name, created if need be; `say` is told when its database is away.

    Raises UserError if it exists with other inputs or if the storage cannot be opened.
    """
    database = database_of(name, storage)
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
    make_steady(database, say, MOST_AWAY_S if storage else 0.0)
    return study


def load_study(name: str, storage: str | None = None) -> StudyRecord:
    """The study as recorded so far; a search may be running."""
    if storage is None and not (study_folder(name) / "study.db").is_file():
        known = [path.parent.name for path in Path("studies").glob("*/study.db")]
        raise UserError(f"no study '{name}' in the folder 'studies': {nearest(name, known)}")
    with told(name):
        database = database_of(name, storage)
        known = optuna.get_all_study_names(database)
        shown = make_url(storage).render_as_string(hide_password=True) if storage else None
        if name not in known:
            raise UserError(f"no study '{name}' in {shown or 'its file'}: {nearest(name, known)}")
        study = optuna.load_study(study_name=name, storage=database)
        starts = [t.datetime_start for t in study.get_trials(deepcopy=False) if t.datetime_start]
        started_at = min(starts).timestamp() if starts else 0.0
        return StudyRecord(name, _inputs(study), look(study)[0], started_at, shown)


def importance(name: str, storage: str | None = None) -> dict[str, dict[str, float]]:
    """Share of each choice in what made accuracy high and size small (PED-ANOVA, Watanabe et al.
    2023); {} while there are too few complete trials to tell."""
    study = optuna.load_study(study_name=name, storage=database_of(name, storage))
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


def ask(study: Study, seed: int, choices: dict[str, Any] | None = None) -> Trial:
    """A new trial, alive from now on, of these choices if given; the sampler makes the others. The
    number of a process's first trial seeds its sampler: no other process has it, and a search by
    one process is the same each time."""
    if choices:
        study.enqueue_trial(choices)
    with quiet():
        trial = study.ask()
    _beat(trial)
    if isinstance(study.sampler, optuna.samplers.RandomSampler):
        study.sampler = sampler(seed + trial.number)
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
    except GivenUp:
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
    """What Optuna knows of a result: `state` and, if there are any, `values`. The sampler learns
    that a pruned trial was bad, and nothing from one that failed."""
    if result.state in ("complete", "repeated") and result.score is not None:
        return {"state": TrialState.COMPLETE, "values": _values(result, inputs)}
    untold = result.state in ("failed", "repeated") and not result.settled
    return {"state": TrialState.FAIL if untold else TrialState.PRUNED}


def _end(study: Study, number: int, **outcome: Any) -> None:
    """Another process may end the trial at the same moment: what it told is as good."""
    with contextlib.suppress(GivenUp):
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
        with quiet():
            optuna.storages.fail_stale_trials(self.study)


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
