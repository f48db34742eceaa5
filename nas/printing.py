"""How the commands say their results on stdout. Heavy imports happen inside the functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.record import Layer

MOST_SHOWN = 12  # of a list; all of it is in --json


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2))


def print_pairs(figures: dict[str, Any]) -> None:
    """A key and its value a line, for people."""
    for key, value in figures.items():
        print(f"{key + ':':20} {_readable(value)}")


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        some = ", ".join(_readable(v) for v in value[:MOST_SHOWN])
        return f"{len(value)}: {some}, ..." if len(value) > MOST_SHOWN else some or "none"
    return str(value) if value not in (None, "") else "none"


def print_exported(exported: Any) -> None:
    """What an export made and how good it is."""
    from nas.record import KB

    print(f"{exported.out}: {', '.join(exported.files)}")
    ms = "no latency" if exported.latency_ms is None else f"{exported.latency_ms:.2f} ms"
    how = ", estimated" if exported.latency_kind == "estimated" else ""
    print(f"{exported.file_bytes / KB:.1f} KB, {ms}{how}")
    print(f"accuracy on validation {exported.validation_accuracy:.1%}", end="")
    low, high = exported.test_accuracy_low, exported.test_accuracy_high
    print(f", on test {exported.test_accuracy:.1%} ({low:.1%} to {high:.1%})")
    if exported.distilled:
        print("it learned from larger networks of the study and is better for it on validation")
    if exported.folds_accuracy is not None:
        low, high = exported.folds_accuracy_low, exported.folds_accuracy_high
        print(f"accuracy over all folds {exported.folds_accuracy:.1%} ({low:.1%} to {high:.1%})")
    for board in exported.boards:
        if not board.right:
            print(f"c/ is wrong on a simulated Cortex-{board.core.upper()}: see README.md")


def print_shares(kind: str, accuracies: dict[str, float]) -> None:
    """A table, the worst first, of the accuracies of each class (or group, ...)."""
    from nas.pareto import percent

    worst = sorted(accuracies.items(), key=lambda item: item[1])[:MOST_SHOWN]
    if worst:
        more = f", the {MOST_SHOWN} worst of {len(accuracies)}" * (len(accuracies) > len(worst))
        print(f"\naccuracy by {kind}{more}")
        width = max(len(name) for name, _ in worst)
        for name, accuracy in worst:
            print(f"  {name:{width}}  {percent(accuracy):>5} %")


def print_layers(table: list[Layer]) -> None:
    """The layer table, a line each; memory and what each layer takes of the file in bytes."""
    print(
        f"{'layer':44} {'output':>13} {'params':>8} {'MACs':>11} {'live RAM':>9} "
        f"{'weights':>8} {'scales':>7} {'graph':>6}"
    )
    for layer in table:
        shape = "x".join(map(str, layer.output_shape))
        print(
            f"{layer.name:44} {shape:>13} {layer.parameters:>8,} {layer.macs:>11,} "
            f"{layer.live_bytes:>9,} {layer.weight_bytes:>8,} {layer.scale_bytes:>7,} "
            f"{layer.graph_bytes:>6,}"
        )


def ledger_in_words(ledger: dict[str, int], total: int) -> str:
    """ "22,016 weights + 4,749 scales and biases + ... = 28,921" """
    words = ("weights", "scales and biases", "graph", "container")
    parts = (f"{size:,} {word}" for size, word in zip(ledger.values(), words, strict=True))
    return f"{' + '.join(parts)} = {total:,}"


def print_problems(problems: list[dict[str, str]], clips: int) -> None:
    """The files that are left out, in full: they are for the user to mend."""
    from nas.dataset import BAD_SHARE

    if not problems:
        return
    total = clips + len(problems)
    print(f"left out: {len(problems)} of {total:,} recordings", end="")
    many = len(problems) > BAD_SHARE * total
    print(f", more than {BAD_SHARE:.0%}: a search needs --tolerate-bad-files" if many else "")
    for problem in problems:
        print(f"  {problem['file']}: {problem['reason']}")


def names_of(kind: str) -> dict[str, str]:
    """What there is of a kind, and a few words on each."""
    if kind == "architectures":
        from nas.published import published

        return {name: network.paper for name, network in published().items()}
    if kind == "datasets":
        from nas.dataset import BUILT_IN
        from nas.scenes import NOTE

        return dict.fromkeys(BUILT_IN, NOTE)
    from nas import shipped

    if kind == "spaces":
        return {name: _space_in_words(name) for name in shipped.names("spaces")}
    if kind == "targets":
        return {name: shipped.load_target(name).description for name in shipped.names("targets")}
    built_in = dict.fromkeys(shipped.names("studies"), "built in")
    own = sorted(path.parent.name for path in Path("studies").glob("*/study.db"))
    return built_in | {name: "searched here" for name in own if name not in built_in}


def _space_in_words(name: str) -> str:
    from nas.space import load_space

    space = load_space(name)
    return f"{space.description} ({space.count():.2g} architectures)"
