"""Studies in Optuna's storage, the only record of a search.

A study is a folder `studies/<name>` (or a row in the database of `--storage`). Its inputs are
frozen when it is created; each trial carries its whole result.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import optuna
from optuna import Study, Trial
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from nas.errors import UserError, nearest
from nas.record import KB, StudyInputs, StudyRecord, TrialResult, size_bytes

__all__ = [
    "Study",
    "Trial",
    "importance",
    "load_study",
    "open_study",
    "record",
    "results",
    "start",
    "study_folder",
    "told",
]

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

FEWEST_FOR_IMPORTANCE = 10
_RESULT, _INPUTS, _STARTED = "result", "inputs", "started"


class Started(msgspec.Struct, frozen=True):
    """What is known of a trial while it runs: enough to record it as failed if it never ends.

    `born` is the process's start time as the kernel counts it: process numbers come again.
    """

    architecture: str
    host: str
    pid: int
    born: str


def study_folder(name: str) -> Path:
    """Where the study keeps its database (unless it has another storage), artefacts and page."""
    return Path("studies") / name


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """A database or disk that fails is the user's to mend: one sentence, not a traceback."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(
            f"study '{name}': its database or folder cannot be used ({first}); check disk space, "
            "permissions or --storage; the same command then goes on"
        ) from None


def open_study(name: str, storage: str | None, inputs: StudyInputs) -> Study:
    """The study of this name, created if need be.

    Raises UserError if it exists with other inputs or if the storage cannot be opened.
    """
    study = optuna.create_study(
        storage=_storage(name, storage),
        study_name=name,
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    if _INPUTS not in study.user_attrs:
        study.set_user_attr(_INPUTS, msgspec.json.encode(inputs).decode())
    _refuse_other_inputs(name, _inputs(study), inputs)
    _bury_the_dead(study, inputs)
    seed = inputs.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def load_study(name: str, storage: str | None = None) -> StudyRecord:
    """The study as recorded so far; a search may be running."""
    if storage is None and not (study_folder(name) / "study.db").is_file():
        known = [path.parent.name for path in Path("studies").glob("*/study.db")]
        raise UserError(f"no study '{name}' in the folder 'studies': {nearest(name, known)}")
    with told(name):
        database = _storage(name, storage)
        known = optuna.get_all_study_names(database)
        if name not in known:
            raise UserError(f"no study '{name}' in {storage or 'its file'}: {nearest(name, known)}")
        study = optuna.load_study(study_name=name, storage=database)
        starts = [t.datetime_start for t in study.get_trials(deepcopy=False) if t.datetime_start]
        started_at = min(starts).timestamp() if starts else 0.0
        return StudyRecord(name, _inputs(study), results(study), started_at)


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


def start(trial: Trial, architecture: str) -> None:
    """Notes who is about to evaluate the trial."""
    started = Started(architecture, socket.gethostname(), os.getpid(), _born(os.getpid()))
    trial.set_user_attr(_STARTED, msgspec.json.encode(started).decode())


def record(study: Study, trial: Trial, result: TrialResult, inputs: StudyInputs) -> TrialResult:
    """Stores the result and tells the sampler; returns it with its number and time."""
    finished_at = result.finished_at or time.time()
    result = msgspec.structs.replace(result, trial=trial.number, finished_at=finished_at)
    over = _over_latency(result, inputs)
    if over is not None:
        trial.set_constraint("latency_ms", over)
    trial.set_user_attr(_RESULT, msgspec.json.encode(result).decode())
    _tell(study, trial.number, result, inputs)
    return result


def _tell(study: Study, number: int, result: TrialResult, inputs: StudyInputs) -> None:
    if result.state in ("complete", "repeated") and result.score is not None:
        study.tell(number, _values(result, inputs), skip_if_finished=True)
    else:
        failed = result.state == "failed"
        state = TrialState.FAIL if failed else TrialState.PRUNED
        study.tell(number, state=state, skip_if_finished=True)


def _over_latency(result: TrialResult, inputs: StudyInputs) -> float | None:
    """How far over the limit, as a share of it (below 0: within), if there is one."""
    limit = inputs.budget.latency_ms
    return result.latency.latency_ms / limit - 1 if limit and result.latency else None


def results(study: Study) -> list[TrialResult]:
    """Every trial that has ended, in order. One whose result is stored has ended, told or not."""
    trials = study.get_trials(deepcopy=False)
    ended = [t for t in trials if t.state.is_finished() or _RESULT in t.user_attrs]
    return [result for trial in ended if (result := _result(trial))]


def _result(trial: FrozenTrial) -> TrialResult | None:
    if _RESULT in trial.user_attrs:
        return msgspec.json.decode(trial.user_attrs[_RESULT], type=TrialResult)
    if _STARTED not in trial.user_attrs:
        return None
    started = msgspec.json.decode(trial.user_attrs[_STARTED], type=Started)
    reason = f"the search on {started.host} ended while this trial ran"
    return TrialResult(started.architecture, "failed", reason, trial=trial.number)


def _values(result: TrialResult, inputs: StudyInputs) -> tuple[float, float]:
    """The two objectives: accuracy and the logarithm of the size that the budget means."""
    if result.score is None:
        raise ValueError(f"trial {result.trial} is {result.state} but has no score")
    return result.score.accuracy, math.log2(size_bytes(result, inputs.size_kind) / KB)


def _storage(name: str, storage: str | None) -> optuna.storages.RDBStorage:
    if storage is None:
        study_folder(name).mkdir(parents=True, exist_ok=True)
        file = URL.create("sqlite", database=str(study_folder(name) / "study.db"))
        return optuna.storages.RDBStorage(file.render_as_string(hide_password=False))
    try:
        return optuna.storages.RDBStorage(storage)
    except ImportError:
        raise UserError(
            f"--storage {storage}: its driver is not installed; for PostgreSQL: "
            "pip install 'tinyaudio-nas[postgres]'"
        ) from None


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


def _bury_the_dead(study: Study, inputs: StudyInputs) -> None:
    """Trials that a killed search of this machine left running are told to have failed; one that
    was killed between storing its result and telling it is told its result."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        text = trial.user_attrs.get(_STARTED)
        result = _result(trial)
        if result is None or text is None:  # just asked for, perhaps by another process
            continue
        started = msgspec.json.decode(text, type=Started)
        if started.host == socket.gethostname() and _born(started.pid) != started.born:
            _tell(study, trial.number, result, inputs)


def _born(pid: int) -> str:
    """Start time of a running process in clock ticks; "" if there is none of that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
