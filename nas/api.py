"""The documented functions: the command line calls them, and so does a notebook user.

All raise UserError for what the user must change.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from nas.arch import Architecture, parse
from nas.cache import write_whole
from nas.dataset import Dataset, load
from nas.engine import Limits, run_search
from nas.errors import UserError
from nas.measure import QUICK, latencies
from nas.pareto import front as pareto_front
from nas.pipeline import Job, evaluate_architecture
from nas.progress import Progress, progress
from nas.published import architecture_named
from nas.record import (
    KB,
    Budget,
    Evaluated,
    Proxy,
    StudyInputs,
    StudyRecord,
    TrialResult,
    in_full,
)
from nas.settings import (
    DEFAULT_TRIALS,
    Settings,
    budget_of,
    default_name,
    default_space,
    load_settings,
    refuse_no_number,
    refuse_no_seed,
)
from nas.shipped import load_target
from nas.space import SearchSpace, load_space
from nas.storage import study_folder, told
from nas.study import load_study
from nas.target import TargetProfile
from nas.warm import literature

EVALUATED = Path("studies") / "evaluated"


def search(study: str | None = None, *, silent: bool = True, **settings: Any) -> StudyRecord:
    """Runs or continues a search and returns all that its study holds.

    `study` names a built-in study or a TOML file; keyword arguments (the fields of
    `nas.settings.Settings`) override it. Everything is kept in the folder studies/<name>.
    """
    asked = load_settings(study, settings)
    target = load_target(asked.target).reached_at(asked.remote)
    dataset = load(asked.data, tolerate_bad_files=asked.tolerate_bad_files)
    space = load_space(asked.space or default_space(dataset.clip_s))
    inputs = StudyInputs(
        data=_where(asked.data),
        data_fingerprint=dataset.fingerprint,
        data_note=dataset.note,
        classes=list(dataset.classes),
        space_name=space.name,
        space=msgspec.json.encode(space).decode(),
        target=target.name,
        profile=target,
        size_kind=target.size_kind,
        budget=budget_of(asked, target),
        proxy=asked.proxy,
        seed=asked.seed,
    )
    name = asked.name or default_name(dataset.name, space.name)
    _visit(target, inputs.budget)
    with progress(silent) as shown:
        _tell_problems(dataset, shown)
        return run_search(
            name,
            inputs,
            Job(dataset, target, asked.proxy, inputs.budget.latency_ms),
            _limits(asked),
            asked.workers or len(os.sched_getaffinity(0)),
            shown,
            asked.storage,
            asked.artifacts,
            [*literature(), *_front_of(asked, space)],
        )


def _front_of(asked: Settings, space: SearchSpace) -> list[Architecture]:
    """The networks of the study that the search starts from."""
    if asked.from_study is None:
        return []
    found = [parse(r.architecture) for r in front(asked.from_study, storage=asked.storage)]
    if not any(map(space.contains, found)):
        raise UserError(
            f"--from {asked.from_study}: none of the {len(found)} networks of its front lies in "
            f"the search space '{space.name}'; give its own --space, or one that holds them"
        )
    return found


def front(name: str, *, storage: str | None = None) -> list[TrialResult]:
    """The non-dominated trials of a study within its budget, smallest first."""
    record = load_study(name, storage)
    return pareto_front(record.trials, record.inputs.size_kind, record.inputs.budget)


def evaluate(
    architecture: str,
    *,
    data: str = "synthetic-scenes",
    target: str = "host",
    remote: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    quantization: str | None = None,
    clip_s: float | None = None,
    tolerate_bad_files: bool = False,
) -> TrialResult:
    """One architecture (canonical string or published name) through the whole pipeline, in another
    number format or for clips of another length if asked for.

    The artefact and its figures go to studies/evaluated/; reports of studies on the same
    recordings and target show them as marks.
    """
    refuse_no_seed(seed)
    if clip_s is not None:
        refuse_no_number("clip_s", clip_s)
    found, _ = architecture_named(architecture, quantization, clip_s)
    proxy = in_full(Proxy(), Proxy().epochs if epochs is None else _at_least_one(epochs))
    profile = load_target(target).reached_at(remote)
    job = Job(load(data, tolerate_bad_files=tolerate_bad_files), profile, proxy)
    key = f"{found} {job.dataset.fingerprint} {target} {remote or ''} {proxy} {seed}"
    stem = EVALUATED / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    with told("evaluated"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        result = evaluate_architecture(found, job, seed, os.fspath(stem), in_full=True)
        made = Evaluated(
            architecture, job.dataset.fingerprint, job.target.name, proxy.epochs, result
        )
        write_whole(stem.with_suffix(".json"), msgspec.json.encode(made))
    return result


def evaluated(record: StudyRecord) -> list[Evaluated]:
    """What `evaluate` has measured on the study's recordings and target."""
    found = [
        msgspec.json.decode(path.read_bytes(), type=Evaluated)
        for path in sorted(EVALUATED.glob("*.json"))
    ]
    inputs = record.inputs
    return [
        made
        for made in found
        if (made.data_fingerprint, made.target) == (inputs.data_fingerprint, inputs.target)
    ]


def export(
    name: str,
    *,
    trial: int | None = None,
    max_kb: float | None = None,
    out: str | None = None,
    epochs: int | None = None,
    retrain: bool = True,
    cross_validate: bool = False,
    distill: bool = False,
    data: str | None = None,
    storage: str | None = None,
) -> Any:
    """Retrains one trial's network in full, tests it once and writes a folder to deploy.

    `trial` chooses it; else the most accurate within `max_kb` (default: within the budget).
    `cross_validate` also trains it anew for every fold, for the figure that the literature
    reports. `distill` also trains it on the answers of the study's larger networks, and ships
    that if it is better on validation. `data` says where the recordings lie now, if they have
    moved.
    """
    if not retrain:
        asked = {"--cross-validate": cross_validate, "--distill": distill}
        _refuse_training(asked | {"--epochs": epochs is not None})
    if epochs is not None:
        _at_least_one(epochs)
    if max_kb is not None:
        refuse_no_number("max_kb", max_kb)
    record = load_study(name, storage)
    chosen = _chosen(record, trial, max_kb)
    dataset = _same_data(record, data or record.inputs.data)
    job = Job(dataset, record.inputs.profile, record.inputs.recipe_of(chosen))
    folder = Path(out or f"{name}-trial{chosen.trial}")
    from nas.bundle import export as write_bundle

    made = write_bundle(
        record,
        chosen,
        job,
        folder,
        epochs=epochs,
        retrain=retrain,
        cross_validate=cross_validate,
        distill=distill,
        most_kb=max_kb if trial is None else None,
    )
    _note_test(name, made)
    return made


def _refuse_training(flags: dict[str, bool]) -> None:
    for flag, given in flags.items():
        if given:
            raise UserError(
                f"{flag} trains the network anew, which does not go with --no-retrain: leave out "
                "one of them"
            )


def tested(name: str) -> dict[int, tuple[float, float, float]]:
    """By trial, the accuracy on the test split and the ends of its interval, as `export` here last
    found them."""
    path = _tested_path(name)
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[int, tuple[float, float, float]])


def _note_test(name: str, made: Any) -> None:
    """Beside the study, for its report."""
    found = made.test_accuracy, made.test_accuracy_low, made.test_accuracy_high
    with told(name):
        _tested_path(name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_tested_path(name), msgspec.json.encode(tested(name) | {made.trial: found}))


def _tested_path(name: str) -> Path:
    return study_folder(name) / "tested.json"


def _chosen(record: StudyRecord, trial: int | None, max_kb: float | None) -> TrialResult:
    kind, budget_kb = record.inputs.size_kind, record.inputs.budget.size_bytes / KB
    if trial is None:
        kb = budget_kb if max_kb is None else max_kb
        limits = msgspec.structs.replace(record.inputs.budget, size_bytes=round(kb * KB))
        points = pareto_front(record.trials, kind, limits)
        if not points:
            raise UserError(
                f"study '{record.name}' has no network within {kb:g} KB ({kind}) and its other "
                "limits; search on, or name one with --trial"
            )
        return points[-1]
    complete = {r.trial: r for r in record.trials if r.state == "complete"}
    if trial not in complete:
        raise UserError(
            f"--trial is {trial}, but study '{record.name}' has no complete trial of that number; "
            f"see `nas front {record.name} --all`"
        )
    return complete[trial]


def _same_data(record: StudyRecord, data: str) -> Dataset:
    dataset = load(data, tolerate_bad_files=True)
    if dataset.fingerprint != record.inputs.data_fingerprint:
        raise UserError(
            f"{data}: not the recordings that study '{record.name}' was searched on (their "
            "content or splits differ); give the original ones with --data"
        )
    return dataset


def _visit(target: TargetProfile, budget: Budget) -> None:
    """What cannot be measured on is told before the search, not trial by trial."""
    if (target.remote and target.remote.ssh) or target.provider != "CPUExecutionProvider":
        latencies([], target, QUICK)
    elif target.remote and budget.latency_ms:
        raise UserError(
            f"--max-latency-ms is {budget.latency_ms:g}, but no device of target '{target.name}' "
            "is at hand to measure on: say how to reach it with --remote user@host"
        )


def _at_least_one(epochs: int) -> int:
    if epochs < 1:
        raise UserError(f"--epochs is {epochs}; it must be 1 or more")
    return epochs


def _tell_problems(dataset: Dataset, shown: Progress) -> None:
    """Says which files are left out; all of them are in `nas data`."""
    if dataset.problems:
        first = ", ".join(f"{p.file} ({p.reason})" for p in dataset.problems[:5])
        more = ", ..." if len(dataset.problems) > 5 else ""
        shown.event(f"{len(dataset.problems)} files left out: {first}{more}")


def _where(data: str) -> str:
    return os.path.abspath(data) if Path(data).exists() else data


def _limits(asked: Settings) -> Limits:
    trials = asked.trials if asked.trials or asked.minutes else DEFAULT_TRIALS
    return Limits(trials, asked.minutes)
