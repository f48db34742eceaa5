"""Studies in Optuna's storage, the only record of a search.

A study is a folder `studies/<name>` (or a row in the database of `--storage`). Its inputs are
frozen when it is created; each trial carries its whole result.
"""

from __future__ import annotations

import math
import os
import socket
import time
import warnings
from pathlib import Path

import msgspec
import optuna
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState
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
]

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

FEWEST_FOR_IMPORTANCE = 10
_RESULT, _INPUTS, _STARTED = "result", "inputs", "started"


class Started(msgspec.Struct, frozen=True):
    """What is known of a trial while it runs: enough to record it as failed if it never ends."""

    architecture: str
    host: str
    pid: int


def study_folder(name: str) -> Path:
    return Path("studies") / name


def open_study(name: str, storage: str | None, inputs: StudyInputs) -> Study:
    """The study of this name, created if need be.

    Raises UserError if it exists with other inputs or if the storage cannot be opened.
    """
    database = _storage(name, storage)
    known = name in optuna.get_all_study_names(database)
    study = optuna.create_study(
        storage=database,
        study_name=name,
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    if known:
        _refuse_other_inputs(name, _inputs(study), inputs)
    else:
        study.set_user_attr(_INPUTS, msgspec.json.encode(inputs).decode())
    _bury_the_dead(study)
    seed = inputs.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def load_study(name: str, storage: str | None = None) -> StudyRecord:
    """The study as recorded so far; a search may be running."""
    if storage is None and not (study_folder(name) / "study.db").is_file():
        known = [path.parent.name for path in Path("studies").glob("*/study.db")]
        raise UserError(f"no study '{name}' in the folder 'studies': {nearest(name, known)}")
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
    started = Started(architecture, socket.gethostname(), os.getpid())
    trial.set_user_attr(_STARTED, msgspec.json.encode(started).decode())


def record(study: Study, trial: Trial, result: TrialResult, inputs: StudyInputs) -> TrialResult:
    """Stores the result and tells the sampler; returns it with its number and time."""
    finished_at = result.finished_at or time.time()
    result = msgspec.structs.replace(result, trial=trial.number, finished_at=finished_at)
    trial.set_user_attr(_RESULT, msgspec.json.encode(result).decode())
    if result.state in ("complete", "repeated"):
        study.tell(trial, _values(result, inputs))
    else:
        failed = result.state == "failed"
        study.tell(trial, state=TrialState.FAIL if failed else TrialState.PRUNED)
    return result


def results(study: Study) -> list[TrialResult]:
    """Every trial that has ended, in order."""
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
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
    url = storage or f"sqlite:///{study_folder(name) / 'study.db'}"
    try:
        if storage is None:
            study_folder(name).mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(url)
    except (OSError, SQLAlchemyError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"study '{name}': cannot open {url} ({first}); check the folder or --storage"
        ) from None


def _inputs(study: Study) -> StudyInputs:
    return msgspec.json.decode(study.user_attrs[_INPUTS], type=StudyInputs)


def _refuse_other_inputs(name: str, old: StudyInputs, new: StudyInputs) -> None:
    """The data may have moved, but must be the same; so must everything else."""
    differences = [
        f"{field} was {_short(getattr(old, field))}, now {_short(getattr(new, field))}"
        for field in old.__struct_fields__
        if field != "data" and getattr(old, field) != getattr(new, field)
    ]
    if differences:
        raise UserError(
            f"study '{name}' exists with other inputs ({'; '.join(differences)}); "
            "give the same ones to continue it, or another --name"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _bury_the_dead(study: Study) -> None:
    """Trials that a killed search of this machine left running are told to have failed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        text = trial.user_attrs.get(_STARTED)
        started = msgspec.json.decode(text, type=Started) if text else None
        if started is None or (started.host == socket.gethostname() and not _alive(started.pid)):
            study.tell(trial.number, state=TrialState.FAIL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
