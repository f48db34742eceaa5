"""The model card of a bundle: README.md in words and tables, and the confusion matrix as SVG."""

from __future__ import annotations

import html
import importlib.metadata
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import msgspec

from nas import __version__
from nas.arch import Architecture
from nas.compliance import in_rows, sheet
from nas.dataset import Dataset
from nas.firmware import Board, Firmware
from nas.folds import CrossValidation
from nas.pareto import kb_text, percent
from nas.record import Cost, Latency, Proxy, Score, StudyRecord, in_full
from nas.shipped import names
from nas.splits import SPLITS, shared_groups

TEMPLATE = Path(__file__).parent / "assets" / "bundle" / "README.template.md"


@dataclass(frozen=True)
class Agreement:
    """classifier.onnx beside features and model.onnx on `windows` of validation audio."""

    windows: int
    same_label: float
    largest_difference: float


@dataclass(frozen=True)
class Network:
    """The network that ships and all that was measured of it. `promised` is what the trial scored
    on validation; `end_to_end` is the latency from the waveform on; `teachers` are the trials
    that it was to learn from, `distilled` whether it did better so."""

    architecture: Architecture
    trial: int
    seed: int
    recipe: Proxy
    retrained: bool
    artifact: bytes
    fine_tuned: bool
    teachers: list[int]
    distilled: bool
    classifier: bytes
    cost: Cost
    latency: Latency | None
    end_to_end: Latency | None
    promised: Score
    validation: Score
    test: Score
    agreement: Agreement
    folds: CrossValidation | None = None
    firmware: Firmware | None = None


def card(network: Network, record: StudyRecord, dataset: Dataset) -> str:
    """README.md of the bundle."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    front_end = network.architecture.front_end
    return template.substitute(
        title=dataset.name,
        count=len(dataset.classes),
        classes=", ".join(dataset.classes),
        synthetic=f"\n\n**{dataset.note}**" if dataset.note else "",
        data=_data(dataset, record),
        window=f"{front_end.clip_s:g} s",
        rate_hz=f"{front_end.sample_rate_hz:,}",
        rate=front_end.sample_rate_hz,
        samples=front_end.samples,
        accuracy=_accuracy(network, dataset),
        per_class=_per_class(network),
        groups=_groups(network),
        cost=_cost(network, record),
        agreement=_agreement(network.agreement),
        firmware=_firmware(network.firmware) if network.firmware else "",
        c_files="\n| c/ | the classifier in C99, as above |" if network.firmware else "",
        limits=_limits(network, dataset),
        rebuild=_rebuild(network, record, dataset),
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in lines
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{percent(share)} %"


def _interval(score: Score) -> str:
    return f"{percent(score.accuracy_low)} to {percent(score.accuracy_high)} %"


def _data(dataset: Dataset, record: StudyRecord) -> str:
    counts = ", ".join(f"{len(dataset.split(split))} in {split}" for split in SPLITS)
    groups = {clip.group for clip in dataset.clips if clip.group}
    shared = len(shared_groups(dataset.clips))
    leak = f"{shared} of them in more than one split, so that all accuracies are too high"
    told = f" from {len(groups)} groups, {leak if shared else 'none of them in two splits'}"
    told *= bool(groups)
    papers = [p.name for p in sorted(dataset.root.iterdir()) if _is_licence(p.name)]
    licence = f"see {', '.join(papers)} in the data set" if papers else "not stated in the data set"
    return (
        f"`{dataset.name}`, {len(dataset.clips)} recordings{told}: {counts}. "
        f"Licence of the recordings: {licence}. "
        f"Fingerprint of the recordings and splits: `{record.inputs.data_fingerprint}`."
    )


def _is_licence(name: str) -> bool:
    return name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))


def _accuracy(network: Network, dataset: Dataset) -> str:
    folds = network.folds
    shown = [
        ("validation, after the short training of the search", network.promised),
        ("validation, as shipped", network.validation),
        ("**test, as shipped**", network.test),
        ("all folds, each by a network trained on others", folds.pooled if folds else None),
    ]
    rows = [[name, _percent(s.accuracy), _interval(s)] for name, s in shown if s]
    told = (_folds(network, folds, dataset) if folds else "") + _distillation(network)
    return _table(["recordings", "accuracy", "95 % interval"], rows) + told


def _distillation(network: Network) -> str:
    """What came of the teachers, if there were any."""
    if not network.teachers:
        return ""
    trials = ", ".join(map(str, network.teachers))
    came = "is better and ships" if network.distilled else "is no better, so the other one ships"
    return (
        f"\n\nThe network was trained with and without the answers of larger ones (trials "
        f"{trials}, trained in full): on validation the one that learned from them {came}."
    )


def _folds(network: Network, folds: CrossValidation, dataset: Dataset) -> str:
    each = ", ".join(f"{name} {_percent(accuracy)}" for name, accuracy in folds.folds.items())
    chosen = {clip.fold for clip in dataset.split("validation")}
    return (
        f"\n\nBy fold: {each}. The search chose the architecture with fold "
        f"{', '.join(sorted(f or '' for f in chosen))} for validation, so that fold has been seen "
        "by the choice." + " These networks had no teachers." * bool(network.teachers)
    )


def _per_class(network: Network) -> str:
    validation = network.validation.class_accuracy
    test = network.test.class_accuracy
    names = {**validation, **test}
    rows = [[name, _percent(validation.get(name)), _percent(test.get(name))] for name in names]
    return _table(["class", "validation", "test"], rows)


def _groups(network: Network) -> str:
    """Accuracy of each group, the worst first, if there are groups to tell apart."""
    groups = network.test.group_accuracy
    if len(groups) < 2:
        return ""
    worst = sorted(groups.items(), key=lambda item: item[1])[:10]
    heading = "Groups" if len(groups) <= 10 else f"The 10 worst of {len(groups)} groups"
    listed = ", ".join(f"{name} {_percent(accuracy)}" for name, accuracy in worst)
    return f"\n{heading}: {listed}.\n"


def _cost(network: Network, record: StudyRecord) -> str:
    cost, latency = network.cost, network.latency
    tuned = ", fine-tuned under int8's rounding" if network.fine_tuned else ""
    in_float = [latency.float_latency_ms] if latency and latency.float_latency_ms else []
    rows = [
        ["model.onnx (features to logits)", f"{kb_text(len(network.artifact))} KB, measured"],
        ["classifier.onnx (waveform to probabilities)", f"{kb_text(len(network.classifier))} KB"],
        ["parameters", f"{cost.parameters:,} ({kb_text(cost.parameter_bytes)} KB as stored)"],
        ["multiply-accumulates per clip", f"{cost.macs:,}"],
        ["peak memory of the feature maps", f"{kb_text(cost.peak_ram_bytes)} KB, estimated"],
        ["latency of model.onnx", _ms(latency)],
        *[["the same network in float32", f"{ms:.3g} ms, timed beside it"] for ms in in_float],
        ["latency of classifier.onnx", _ms(network.end_to_end)],
        ["energy of one inference", _energy(cost)],
        ["number format", f"{network.architecture.quantization}{tuned}"],
        ["budget of the search", f"{kb_text(record.inputs.budget.size_bytes)} KB"],
    ]
    return (
        f"Device: {_device(network)}. One clip at a time.\n\n"
        + _table(["figure", "value"], rows)
        + _compliance(network, record)
    )


def _energy(cost: Cost) -> str:
    return "not known" if cost.energy_mj is None else f"{cost.energy_mj:.3g} mJ, estimated"


def _compliance(network: Network, record: StudyRecord) -> str:
    """The target's rules, if it has any, held against what was measured where it was."""
    target, time_ms = record.inputs.profile, network.latency and network.latency.latency_ms
    cost = msgspec.structs.replace(
        network.cost,
        file_bytes=len(network.artifact),
        latency_ms=network.cost.latency_ms if time_ms is None else time_ms,
    )
    rows = in_rows(sheet(network.architecture, cost, target, network.test.accuracy))
    title = f"\n\nHeld against {target.description} ({target.source}):\n\n"
    return title + _table(["rule", "figure", "verdict"], rows) if rows else ""


def _device(network: Network) -> str:
    return network.latency.device if network.latency else "none was at hand"


def _ms(latency: Latency | None) -> str:
    return f"{latency.latency_ms:.3g} ms, {latency.latency_kind}" if latency else "not measured"


def _agreement(agreement: Agreement) -> str:
    return (
        f"On {agreement.windows} windows of validation audio classifier.onnx gave the same label "
        f"as features and model.onnx in {100 * agreement.same_label:.1f} % of them; the largest "
        f"difference of a probability was {agreement.largest_difference:.1e}."
    )


def _firmware(firmware: Firmware) -> str:
    """The section about c/, if there is one."""
    figures = (
        _board_table(firmware.boards) if firmware.boards else f"Not run: {firmware.unmeasured}."
    )
    return (
        "\n## On a microcontroller\n\n"
        "`c/` is the classifier in C99: no heap, no doubles, static memory. Add `network.c`, "
        "`kernels.c` and `frontend.c` to a program, include `classifier.h`, call `classify`, and "
        "compile with `-ffp-contract=off`. `make -C c` checks it against golden vectors, "
        "`make -C c m4` on a simulated Cortex-M4.\n\n" + figures + "\n"
    )


def _board_table(boards: Sequence[Board]) -> str:
    columns = [
        [
            f"{board.equal_labels} of {board.clips}",
            f"{board.equal_logits} of {board.clips}",
            f"{board.equal_features} of {board.clips}",
            f"{board.equal_waveform_labels} of {board.clips}",
            f"{board.network_instructions:,}",
            f"{board.front_end_instructions:,}",
            f"{board.flash_bytes:,} B",
            f"{board.ram_bytes:,} B",
        ]
        for board in boards
    ]
    names = [
        "labels equal to ONNX Runtime's",
        "logits equal, but for the order of float sums",
        "features within 0.001",
        "labels equal from the waveform on",
        "instructions of the network",
        "instructions of the front end",
        "flash of the linked image",
        "RAM of the linked image, without stack",
    ]
    rows = [list(row) for row in zip(names, *columns, strict=True)]
    header = ["simulated by QEMU", *(f"Cortex-{board.core.upper()}" for board in boards)]
    return _table(header, rows) + "\n\nInstructions are not cycles: a board was not at hand."


def _limits(network: Network, dataset: Dataset) -> str:
    said = [
        f"It always answers with one of the {len(dataset.classes)} classes, also for silence, "
        "noise and sounds that it was never shown.",
        "The probabilities are the network's softmax; they are not calibrated.",
        "Other microphones, rooms and distances than those of the training recordings may cost "
        "accuracy that no figure here shows.",
        "The validation recordings chose this network among many, so their figure is optimistic.",
        f"Times hold for this device: {_device(network)}.",
    ]
    groups = network.test.group_accuracy
    if len(groups) >= 2:
        said.append(
            "With fewer than ten groups (speakers, places, sources) the interval covers new "
            "recordings of the same groups, not new groups."
            if len(groups) < 10
            else "The interval covers new groups (speakers, places, sources) of the same kind."
        )
    if dataset.note:
        said.append("The recordings are synthetic: nothing is known of real ones.")
    return "\n".join(f"- {sentence}" for sentence in said)


def _rebuild(network: Network, record: StudyRecord, dataset: Dataset) -> str:
    recipe, epochs = network.recipe, f"--epochs {network.recipe.epochs}"
    how = epochs if network.retrained else "--no-retrain"
    how += " --cross-validate" * bool(network.folds) + " --distill" * bool(network.teachers)
    how += f" --storage {shlex.quote(record.storage)}" if record.storage else ""
    lines = [
        "With the study at hand:",
        "",
        f"    nas export {shlex.quote(record.name)} --trial {network.trial} {how}",
        "",
    ]
    alone = network.retrained and not network.distilled
    if alone and recipe == in_full(Proxy(), recipe.epochs):
        data = shlex.quote(dataset.name if dataset.note else f"PATH/TO/{dataset.name}")
        lines += [
            "Without it, from the recordings:",
            "",
            f"    nas evaluate {network.architecture} --data {data} "
            f"--target {_target(record.inputs.target)} {epochs} --seed {network.seed}"
            + " --tolerate-bad-files"
            * bool(dataset.problems),
            "",
        ]
    return "\n".join(
        [
            *lines,
            f"Seed {network.seed}; nas {__version__}, "
            f"onnxruntime {importlib.metadata.version('onnxruntime')}; "
            f"recipe of the training: `{json.dumps(msgspec.to_builtins(recipe))}`.",
        ]
    )


def _target(name: str) -> str:
    """As a command line takes it: a profile of the user's own is a file."""
    return name if name in names("targets") else f"PATH/TO/{shlex.quote(name)}.toml"


def confusion_svg(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The confusion matrix as a picture: rows are the truth, columns the answer, shades the share
    of the row."""
    cell, margin = 34, 12 + 7 * max(map(len, classes))
    size = margin + cell * len(classes) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{size}" height="{size}" fill="#ffffff"/>',
    ]
    for place, name in enumerate(classes):
        at, text = margin + cell * place + cell // 2, html.escape(name)
        parts.append(f'<text x="{margin - 6}" y="{at + 4}" text-anchor="end">{text}</text>')
        parts.append(
            f'<text transform="translate({at + 4} {margin - 6}) rotate(-90)">{text}</text>'
        )
    for y, row in enumerate(confusion):
        for x, count in enumerate(row):
            parts.append(_cell(margin + cell * x, margin + cell * y, cell, count, sum(row)))
    return "\n".join([*parts, "</svg>\n"])


def _cell(x: int, y: int, size: int, count: int, total: int) -> str:
    share = count / total if total else 0.0
    shade = "#" + "".join(f"{round(255 - share * (255 - dark)):02x}" for dark in (11, 79, 108))
    ink = "#ffffff" if share > 0.5 else "#222222"
    text = f'<text x="{x + size // 2}" y="{y + size // 2 + 4}" fill="{ink}" text-anchor="middle">'
    box = f'<rect x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" fill="{shade}"/>'
    return box + (f"{text}{count}</text>" if count else "")
