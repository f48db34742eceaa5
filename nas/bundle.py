"""From a trial to a folder that a colleague can deploy: retrain, measure, test once, write.

The folder appears whole or not at all, and replaces nothing but an earlier, untouched export.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from nas.arch import Architecture, FrontEnd, parse
from nas.artifacts import fetch
from nas.cache import whole_folder
from nas.card import Agreement, Network, card, confusion_svg
from nas.classifier import classifier
from nas.cost import estimate
from nas.dataset import Dataset
from nas.errors import UserError
from nas.features import FLOOR, compute, waveforms, windows
from nas.firmware import Board, Firmware, firmware, refuse_without_c, tried
from nas.folds import cross_validated, refuse_unfolded
from nas.measure import latencies_if_there, logits
from nas.pipeline import Artifact, Job, retrained, score_of
from nas.record import KB, LatencyKind, Score, SizeKind, StudyRecord, TrialResult, in_full
from nas.score import softmax

SUMS = "SHA256SUMS"
MARKS = {"architecture.txt", "classifier.onnx", "frontend.json", "model.onnx", "predict.py"}
PREDICT = Path(__file__).parent / "assets" / "bundle" / "predict.py"
RUNTIME = ("numpy", "onnxruntime", "soundfile")
COMPARED_CLIPS, GOLDEN_CLIPS = 200, 8
LEAST_EPOCHS, TIMES_PROXY = 60, 4
TEACHERS = 3


class Exported(msgspec.Struct, frozen=True):
    """What `export` made. `promised_accuracy` is the trial's validation accuracy; the latency is
    None if the device was away, and the figures over all folds are unless they were asked for.
    `distilled` is whether a network that learned from larger ones ships; `boards` are what ran the
    C of a microcontroller's bundle."""

    out: str
    files: list[str]
    trial: int
    architecture: str
    promised_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    test_accuracy_low: float
    test_accuracy_high: float
    file_bytes: int
    latency_ms: float | None
    latency_kind: LatencyKind
    distilled: bool = False
    folds_accuracy: float | None = None
    folds_accuracy_low: float | None = None
    folds_accuracy_high: float | None = None
    boards: list[Board] = []


def export(
    record: StudyRecord,
    result: TrialResult,
    job: Job,
    out: Path,
    *,
    epochs: int | None = None,
    retrain: bool = True,
    cross_validate: bool = False,
    distill: bool = False,
    most_kb: float | None = None,
) -> Exported:
    """Retrains the trial's network in full, tests it once and writes the bundle to `out`.

    `epochs` of the full training: by default four times the proxy's, at least 60. Without
    `retrain` the trial's own artefact ships. With `cross_validate` the network is also trained
    anew for every fold and scored over all of them; with `distill` it is also trained with
    `teachers_of` it. Raises UserError if `out` holds anything but an earlier export, if it cannot
    be written, if the network outgrew `most_kb` (default: the study's budget), if there are no
    folds to validate across or no teachers, or if a microcontroller is the target and there is no
    C.
    """
    out = _writable(out)
    _refuse_foreign(out)
    if cross_validate:
        refuse_unfolded(job.dataset)
    if job.target.mcu:
        refuse_without_c(parse(result.architecture))
    epochs = epochs or max(LEAST_EPOCHS, TIMES_PROXY * job.proxy.epochs)
    job = replace(job, proxy=in_full(job.proxy, epochs)) if retrain else job
    teachers = teachers_of(result, record) if distill else []
    most_bytes = record.inputs.budget.size_bytes if most_kb is None else round(most_kb * KB)
    network = _network(record, result, job, retrain, teachers, most_bytes)
    if cross_validate:
        found = cross_validated(network.architecture, job, network.seed)
        network = replace(network, folds=found)
    files = _files(network, record, job)
    _write(out, files)
    return _exported(network, out, files)


def _exported(network: Network, out: Path, files: Iterable[str]) -> Exported:
    test, folds = network.test, network.folds.pooled if network.folds else None
    return Exported(
        out=str(out),
        files=sorted([*files, SUMS]),
        trial=network.trial,
        architecture=str(network.architecture),
        promised_accuracy=network.promised.accuracy,
        validation_accuracy=network.validation.accuracy,
        test_accuracy=test.accuracy,
        test_accuracy_low=test.accuracy_low,
        test_accuracy_high=test.accuracy_high,
        file_bytes=len(network.artifact),
        latency_ms=network.latency.latency_ms if network.latency else None,
        latency_kind=network.latency.latency_kind if network.latency else "none",
        distilled=network.distilled,
        folds_accuracy=folds.accuracy if folds else None,
        folds_accuracy_low=folds.accuracy_low if folds else None,
        folds_accuracy_high=folds.accuracy_high if folds else None,
        boards=network.firmware.boards if network.firmware else [],
    )


def teachers_of(result: TrialResult, record: StudyRecord) -> list[TrialResult]:
    """The study's TEACHERS most accurate networks of more parameters than that of `result` that
    hear clips of the same length, each once. Raises UserError if there are none."""
    complete = [r for r in record.trials if r.state == "complete"]
    clip_s, least = parse(result.architecture).front_end.clip_s, _parameters(result)
    found: dict[str, TrialResult] = {}
    for r in sorted(complete, key=lambda r: -(r.float_accuracy or 0.0)):
        architecture = parse(r.architecture)
        if architecture.front_end.clip_s == clip_s and _parameters(r) > least:
            blocks = "/".join(map(str, (*architecture.stages, architecture.head)))
            found.setdefault(blocks, r)
    if not found:
        raise UserError(
            f"--distill: study '{record.name}' has no network larger than that of trial "
            f"{result.trial} to learn from; leave it out, or search on"
        )
    return list(found.values())[:TEACHERS]


def _parameters(result: TrialResult) -> int:
    return result.cost.parameters if result.cost else 0


def _network(
    record: StudyRecord,
    result: TrialResult,
    job: Job,
    retrain: bool,
    teachers: Sequence[TrialResult],
    most_bytes: int,
) -> Network:
    if result.score is None:
        raise UserError(f"trial {result.trial} is {result.state}, only a complete one can ship")
    architecture, dataset = parse(result.architecture), job.dataset
    seed = record.inputs.seed_of(result.trained_by)
    features = compute(dataset, architecture.front_end)
    larger = [parse(teacher.architecture) for teacher in teachers]
    made = retrained(architecture, job, features, seed, larger) if retrain else _own(result)
    _refuse_outgrown(made.content, result, record.inputs.size_kind, most_bytes)
    artifact = made.content
    scale = features.mean, features.std
    validation = features.split("validation")
    outputs = logits(artifact, validation.features)
    single = classifier(artifact, architecture, *scale, dataset.classes, batch=1)
    (latency, end_to_end), _ = latencies_if_there(
        [artifact, single], job.target, parent=made.parent
    )
    return Network(
        architecture=architecture,
        trial=result.trial,
        seed=seed,
        recipe=job.proxy,
        retrained=retrain,
        artifact=artifact,
        fine_tuned=made.fine_tuned,
        teachers=[teacher.trial for teacher in teachers],
        distilled=made.distilled,
        classifier=classifier(artifact, architecture, *scale, dataset.classes),
        cost=estimate(architecture, len(dataset.classes), job.target),
        latency=latency,
        end_to_end=end_to_end,
        promised=result.score,
        validation=score_of(outputs, validation, dataset),
        test=_tested(artifact, architecture, job),
        agreement=_agreement(single, architecture, job, outputs),
        firmware=_firmware(artifact, architecture, job, *scale) if job.target.mcu else None,
    )


def _firmware(
    artifact: bytes,
    architecture: Architecture,
    job: Job,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
) -> Firmware:
    """C of the network, with golden vectors of some validation recordings."""
    _, audio = _some_audio(job.dataset, architecture.front_end, GOLDEN_CLIPS)
    return tried(firmware(artifact, architecture, mean, std, job.dataset.classes, audio))


def _own(result: TrialResult) -> Artifact:
    try:
        return Artifact(fetch(result.artifact or ""), None, result.fine_tuned)
    except OSError as error:
        raise UserError(
            f"the artefact of trial {result.trial} cannot be read ({result.artifact}: "
            f"{error.strerror or error}); export without --no-retrain to train it again"
        ) from None


def _refuse_outgrown(artifact: bytes, result: TrialResult, kind: SizeKind, most: int) -> None:
    """Equal structure in other weights may differ by a few bytes, which may be too many."""
    fitted = result.file_bytes is not None and result.file_bytes <= most
    if kind == "file_bytes" and fitted and len(artifact) > most:
        raise UserError(
            f"trial {result.trial} retrained has {len(artifact):,} bytes, over the limit of "
            f"{most / KB:g} KB that it just met: export a smaller trial, or give --no-retrain"
        )


def _tested(artifact: bytes, architecture: Architecture, job: Job) -> Score:
    """The one look at the test recordings."""
    test = compute(job.dataset, architecture.front_end, splits=("test",)).split("test")
    return score_of(logits(artifact, test.features), test, job.dataset)


def _agreement(
    single: bytes,
    architecture: Architecture,
    job: Job,
    outputs: NDArray[np.float32],
) -> Agreement:
    """The waveform classifier beside features and artefact, on some of the validation windows."""
    chosen, audio = _some_audio(job.dataset, architecture.front_end, COMPARED_CLIPS)
    ours, theirs = logits(single, audio), softmax(outputs)[chosen]
    same = ours.argmax(1) == theirs.argmax(1)
    return Agreement(len(ours), float(same.mean()), float(np.abs(ours - theirs).max()))


def _some_audio(
    dataset: Dataset, settings: FrontEnd, most: int
) -> tuple[list[int], NDArray[np.float32]]:
    """At most so many of the validation windows, equally spaced: their numbers and their audio."""
    cut = windows(dataset.split("validation"), settings.clip_s)
    chosen = list(range(0, len(cut), -(-len(cut) // most)))
    part = [cut[i] for i in chosen]
    return chosen, waveforms(dataset, part, settings.sample_rate_hz, settings.clip_s)


def _files(network: Network, record: StudyRecord, job: Job) -> dict[str, bytes]:
    dataset, settings = job.dataset, network.architecture.front_end
    features = compute(dataset, settings, splits=())
    front_end = {
        **asdict(settings),
        "samples": settings.samples,
        "shape": settings.shape,
        "spectrum": "power, periodic Hann window in the middle of the FFT, zeros beyond the ends",
        "mel_scale": "HTK, 0 Hz to half the sample rate, no filter normalisation",
        "floor": FLOOR,
        "logarithm": "natural; with level 1 less that of the mean power of all bands and frames",
        "mean": features.mean.tolist(),
        "std": features.std.tolist(),
    }
    return {
        "model.onnx": network.artifact,
        "classifier.onnx": network.classifier,
        "labels.json": _json(list(dataset.classes)),
        "frontend.json": _json(front_end),
        "architecture.txt": f"{network.architecture}\n".encode(),
        "requirements.txt": "".join(
            f"{name}>={importlib.metadata.version(name)}\n" for name in RUNTIME
        ).encode(),
        "predict.py": PREDICT.read_bytes(),
        "confusion.svg": confusion_svg(network.test.confusion, dataset.classes).encode(),
        "README.md": card(network, record, dataset).encode(),
        **{
            f"c/{name}": text
            for name, text in (network.firmware.files if network.firmware else {}).items()
        },
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def _writable(out: Path) -> Path:
    """The whole path, in a folder that takes new folders: told before the training."""
    try:
        out = out.expanduser().resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=out.parent):
            out.exists()  # raises for a name that is too long
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user in ~user
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(_UNWRITABLE.format(out, reason)) from None
    return out


_UNWRITABLE = "cannot write the bundle {}: {}; give another folder with --out"


def _write(out: Path, files: dict[str, bytes]) -> None:
    """The bundle in one step; an earlier one makes room once the new one is safe on the disk."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    listing = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=out.parent) as aside:
            made, old = Path(aside) / "made", Path(aside) / "old"
            with whole_folder(made) as folder:
                for name, content in {**files, SUMS: listing}.items():
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_bytes(content)
            _refuse_foreign(out)
            with _restored(old, out):
                if out.exists():
                    out.rename(old)
                made.rename(out)
    except OSError as error:
        raise UserError(_UNWRITABLE.format(out, error.strerror)) from None


@contextlib.contextmanager
def _restored(old: Path, out: Path) -> Iterator[None]:
    """Brings `old` back to `out` if nothing new came there."""
    try:
        yield
    finally:
        if old.exists() and not out.exists():
            old.rename(out)


def _refuse_foreign(out: Path) -> None:
    """Raises UserError if `out` holds anything that an export did not put there as it is."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the bundle with --out")
    known = _listed(out / SUMS)
    folders = {str(Path(name).parent) for name in known}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        ours = known.get(name) == _digest(path) if path.is_file() else name in folders
        if not ours:
            raise UserError(
                f"{out} holds '{name}', which no export wrote or which was changed since; "
                "give another folder with --out"
            )


def _listed(sums: Path) -> dict[str, str]:
    """Checksum of each file of an export, by name; {} if `sums` is missing or not of an export."""
    if not sums.is_file():
        return {}
    lines = (line.split("  ", 1) for line in sums.read_text(errors="replace").splitlines())
    known = {parts[1]: parts[0] for parts in lines if len(parts) == 2}
    return {**known, SUMS: _digest(sums)} if known.keys() >= MARKS else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
