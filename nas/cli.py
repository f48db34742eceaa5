"""The commands. Heavy imports happen inside the functions that need them, so that help is quick.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 2 the user must change
something, 1 our fault, 130 interrupted (nothing lost).
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import __version__
from nas.errors import UserError
from nas.printing import (
    ledger_in_words,
    names_of,
    print_exported,
    print_json,
    print_layers,
    print_pairs,
    print_problems,
    print_shares,
)

if TYPE_CHECKING:
    from nas.record import StudyRecord


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command `nas`; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"nas: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nas: interrupted; every finished trial is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nas",
        description="Finds the best audio classifier for a device and a size budget.",
    )
    parser.add_argument("--version", action="version", version=f"nas {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_search, _add_front, _add_report, _add_export, _add_evaluate):
        add(commands)
    for add in (_add_show, _add_measure, _add_calibrate, _add_data, _add_list):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_search(commands: Any) -> None:
    parser = _command(commands, "search", _search, "search; the same command again continues")
    parser.add_argument("study", nargs="?", help="a built-in study or a TOML file; flags override")
    parser.add_argument("--name", help="name of the study (default: from the data and the space)")
    parser.add_argument("--data", help="folder of recordings, CSV manifest or built-in data set")
    parser.add_argument(
        "--space",
        help="built-in search space or a TOML file (default: short or small, by the clips' length)",
    )
    parser.add_argument("--target", help="built-in target or a TOML file")
    _remote_flag(parser)
    parser.add_argument("--budget-kb", type=float, help="size limit, of the kind the target names")
    parser.add_argument("--max-latency-ms", type=float, help="limit on the time of one inference")
    parser.add_argument("--max-ram-kb", type=float, help="limit on the peak of the feature maps")
    parser.add_argument("--max-mmacs", type=float, help="limit on million MACs of one inference")
    parser.add_argument("--trials", type=int, help="finished trials in the study, in all")
    parser.add_argument("--minutes", type=float, help="time for this run")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--seed", type=int, help="seed of sampling and training")
    parser.add_argument("--storage", help="database URL, for several machines (default: a file)")
    parser.add_argument(
        "--artifacts", help="folder or s3://BUCKET that all machines reach (default: studies/NAME)"
    )
    parser.add_argument(
        "--from", dest="from_study", metavar="STUDY", help="begin with this study's front as well"
    )
    parser.add_argument(
        "--tolerate-bad-files",
        action="store_true",
        default=None,
        help="go on although more than 10 %% of the files cannot be used",
    )


def _search(options: argparse.Namespace) -> None:
    from nas import api, report
    from nas.pareto import front, recommended
    from nas.settings import load_settings

    _end_as_by_ctrl_c()
    flags = {k: v for k, v in vars(options).items() if k not in ("run", "study")}
    record = api.search(options.study, silent=False, **flags)
    page = _write_page([record.name], load_settings(options.study, flags).storage)
    print(report.front_table(record))
    print(f"\nPage: {page}")
    if points := front(record.trials, record.inputs.size_kind, record.inputs.budget):
        where = f" --storage {shlex.quote(record.storage)}" if record.storage else ""
        print(f"Next: nas export {record.name} --trial {recommended(points).trial}{where}")


def _end_as_by_ctrl_c() -> None:
    """Slurm and Kubernetes end a job with SIGTERM: as after Ctrl-C, what it had begun is recorded
    or cleared away, even where a script's `&` had SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _add_front(commands: Any) -> None:
    parser = _command(commands, "front", _front, "the Pareto front of a study as a table")
    _name_and_storage(parser)
    parser.add_argument("--all", action="store_true", help="every trial (with --json or --csv)")
    parser.add_argument("--csv", action="store_true", help="comma-separated values")
    _json_flag(parser)


def _front(options: argparse.Namespace) -> None:
    from nas import report

    record = _load(options.name, options.storage)
    if options.json:
        print_json(report.front_rows(record, options.all))
    elif options.csv or options.all:
        print(report.front_csv(record, options.all), end="")
    else:
        print(report.front_table(record))


def _add_report(commands: Any) -> None:
    parser = _command(commands, "report", _report, "one HTML page of a study, or of several")
    parser.add_argument("names", nargs="+", metavar="name", help="study; several are compared")
    parser.add_argument("--storage", help="database URL (default: studies/NAME/study.db)")
    parser.add_argument("--png", metavar="FILE", help="also draw the front as a picture")
    parser.add_argument("--live", action="store_true", help="rewrite it until interrupted")
    _battery_flag(parser)


def _report(options: argparse.Namespace) -> None:
    from nas import report

    first = _load(options.names[0], options.storage)
    battery_mwh = _battery_mwh(options, first.inputs.profile)
    page = _write_page(options.names, options.storage, options.live, battery_mwh)
    print(page, flush=True)
    if options.png:
        report.write_png(first, Path(options.png), references=_references([first]))
        print(options.png)
    while options.live:
        time.sleep(report.REFRESH_S)
        _write_page(options.names, options.storage, True, battery_mwh)


def _write_page(
    names: Sequence[str], storage: str | None, live: bool = False, battery_mwh: float = 0.0
) -> Path:
    from nas import api, report
    from nas.arch import parse
    from nas.cost import layers
    from nas.pareto import front
    from nas.study import importance

    records = [_load(name, storage) for name in names]
    extras = {}
    for record in records:
        inputs = record.inputs
        points = front(record.trials, inputs.size_kind, inputs.budget)
        tables = {r.trial: layers(parse(r.architecture), len(inputs.classes)) for r in points}
        extras[record.name] = report.Extras(
            importance(record.name, storage), tables, api.tested(record.name), battery_mwh
        )
    page = Path("studies") / names[0] / "report.html"
    report.write_html(records, page, extras=extras, references=_references(records), live=live)
    return page


def _references(records: Sequence[StudyRecord]) -> list[Any]:
    """Marks for the published networks that `nas evaluate` trained on the same recordings."""
    from nas import api, report
    from nas.pareto import row

    keys = ("accuracy", "size_kb", "latency_ms", "macs", "peak_ram_bytes")
    marks = []
    for made in api.evaluated(records[0]):
        if "/" not in made.name and made.result.score:
            figures = row(made.result, records[0].inputs.size_kind)
            source = f"Trained here for {made.epochs} epochs by nas evaluate."
            known = {key: figures[key] for key in keys}
            marks.append(report.Reference(made.name, source=source, **known))
    return marks


def _load(name: str, storage: str | None) -> StudyRecord:
    from nas.study import load_study

    return load_study(name, storage)


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", _export, "retrain one network and write it, to deploy")
    _name_and_storage(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--trial", type=int, help="this trial")
    choice.add_argument("--max-kb", type=float, help="the most accurate that fits into so much")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: NAME-trialN)")
    parser.add_argument("--epochs", type=int, help="epochs of the full training")
    parser.add_argument("--no-retrain", action="store_true", help="ship the trial's own artefact")
    parser.add_argument(
        "--cross-validate", action="store_true", help="also train it anew for every fold"
    )
    parser.add_argument(
        "--distill",
        action="store_true",
        help="also train it on the answers of the study's larger networks; the better ships",
    )
    parser.add_argument("--data", help="where the recordings are now, if they have moved")
    _json_flag(parser)


def _export(options: argparse.Namespace) -> None:
    import msgspec

    from nas import api

    _end_as_by_ctrl_c()
    exported = api.export(
        options.name,
        trial=options.trial,
        max_kb=options.max_kb,
        out=options.out,
        epochs=options.epochs,
        retrain=not options.no_retrain,
        cross_validate=options.cross_validate,
        distill=options.distill,
        data=options.data,
        storage=options.storage,
    )
    if options.json:
        print_json(msgspec.to_builtins(exported))
    else:
        print_exported(exported)


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands, "evaluate", _evaluate, "train, quantise and measure one architecture"
    )
    parser.add_argument("architecture", help="canonical string or published name")
    parser.add_argument("--data", default="synthetic-scenes", help="recordings")
    parser.add_argument("--target", default="host", help="built-in target or a TOML file")
    _remote_flag(parser)
    parser.add_argument("--epochs", type=int, help="epochs of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerate-bad-files", action="store_true")
    _variant_flags(parser)
    _json_flag(parser)


def _evaluate(options: argparse.Namespace) -> None:
    import msgspec

    from nas import api
    from nas.pareto import row
    from nas.shipped import load_target

    result = api.evaluate(
        options.architecture,
        data=options.data,
        target=options.target,
        remote=options.remote,
        epochs=options.epochs,
        seed=options.seed,
        quantization=options.quantization,
        clip_s=options.clip_s,
        tolerate_bad_files=options.tolerate_bad_files,
    )
    figures = row(result, load_target(options.target).size_kind)
    scores = msgspec.to_builtins(result.score) if result.score else {}
    if options.json:
        print_json(figures | scores)
    else:
        print_pairs(figures)
        for kind in ("class", "group", "device", "city"):
            print_shares(kind, scores.get(f"{kind}_accuracy", {}))


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", _show, "the layer table of an architecture")
    parser.add_argument("architecture", help="canonical string or published name")
    parser.add_argument("--classes", type=int, help="number of classes (default: the paper's, 10)")
    parser.add_argument("--target", help="also what it costs there, and the rules it passes")
    _battery_flag(parser)
    _variant_flags(parser)
    _json_flag(parser)


def _show(options: argparse.Namespace) -> None:
    import msgspec

    from nas.compliance import in_lines, sheet
    from nas.cost import estimate, layers
    from nas.estimates import in_words
    from nas.published import architecture_named
    from nas.shipped import load_target

    architecture, classes = architecture_named(
        options.architecture, options.quantization, options.clip_s
    )
    classes = options.classes or classes or 10
    target = load_target(options.target or "host")
    cost, table = estimate(architecture, classes, target), layers(architecture, classes)
    clip_s, checks = architecture.front_end.clip_s, sheet(architecture, cost, target)
    words = in_words(cost, target, clip_s, _battery_mwh(options, target))
    if options.json:
        rows = [msgspec.to_builtins(layer) for layer in table]
        figures = msgspec.to_builtins(cost)
        rules = [msgspec.to_builtins(check) for check in checks]
        more = {"target": target.name, "estimates": words, "compliance": rules}
        print_json({"architecture": str(architecture), **figures, **more, "layers": rows})
        return
    print(architecture)
    print_layers(table)
    figures = msgspec.to_builtins(cost)
    print(f"predicted file in bytes: {ledger_in_words(figures.pop('ledger'), cost.file_bytes)}")
    print_pairs({"classes": classes, **figures})
    for line in [*words, *in_lines(checks)]:
        print(line)


def _add_measure(commands: Any) -> None:
    parser = _command(commands, "measure", _measure, "size and latency of an ONNX file")
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("--target", default="host", help="built-in target or a TOML file")
    _remote_flag(parser)
    _json_flag(parser)


def _measure(options: argparse.Namespace) -> None:
    import msgspec

    from nas.measure import check, latency
    from nas.shipped import load_target

    try:
        model = Path(options.model).read_bytes()
    except OSError as error:
        raise UserError(f"{options.model}: {error.strerror}; give an ONNX file") from None
    target = load_target(options.target).reached_at(options.remote)
    check(model, options.model)
    times = msgspec.to_builtins(latency(model, target))
    figures = {"file_bytes": len(model), **times, "target": target.name}
    if options.json:
        print_json(figures)
    else:
        print_pairs(figures)


def _add_calibrate(commands: Any) -> None:
    parser = _command(commands, "calibrate", _calibrate, "refit a microcontroller's profile")
    parser.add_argument("target", help="built-in target or a TOML file")
    parser.add_argument(
        "measurements",
        metavar="MEASUREMENTS.csv",
        help="columns architecture (a name, a canonical string or the path of an int8 ONNX file) "
        "and latency_ms, and if you have them ram_bytes, flash_bytes and classes",
    )
    parser.add_argument("--out", metavar="FILE", help="the new profile (TARGET-calibrated.toml)")
    _json_flag(parser)


def _calibrate(options: argparse.Namespace) -> None:
    import msgspec

    from nas.cache import write_whole
    from nas.calibrate import calibrate, read_measurements, to_toml
    from nas.shipped import load_target

    target = load_target(options.target)
    out = Path(options.out or f"{target.name}-calibrated.toml")
    if out.suffix != ".toml" or out.exists():
        reason = "exists already" if out.exists() else "does not end in .toml"
        raise UserError(f"--out {out} {reason}: name a new .toml file")
    origin = Path(options.measurements)
    found = calibrate(target, read_measurements(origin), origin.name)
    new = msgspec.structs.replace(found.target, name=out.stem)
    try:
        write_whole(out, to_toml(new, f"{target.name}, refitted by nas calibrate.").encode())
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    if options.json:
        spreads = {"before": found.before, "after": found.after}
        print_json({"out": str(out), **msgspec.to_builtins(spreads)})
        return
    print(f"latency as {target.name} estimated it: {found.before}")
    print(f"latency refitted, each network left out in turn: {found.after}")
    print(f"wrote {out}; use it with --target {out}")


def _add_data(commands: Any) -> None:
    parser = _command(commands, "data", _data, "what a folder of recordings holds")
    parser.add_argument("path", nargs="?", help="folder, CSV manifest or built-in data set")
    parser.add_argument("--clear-cache", action="store_true", help="delete all cached features")
    _json_flag(parser)


def _data(options: argparse.Namespace) -> None:
    import msgspec

    from nas.cache import clear_cache
    from nas.dataset import describe, load

    if options.clear_cache:
        print(f"freed {clear_cache() / 2**20:.0f} MB", file=sys.stderr)
    if options.path:
        report = msgspec.to_builtins(describe(load(options.path, tolerate_bad_files=True)))
        if options.json:
            print_json(report)
        else:
            problems = report.pop("problems")
            print_pairs(report)
            print_problems(problems, report["clips"])
    elif not options.clear_cache:
        raise UserError("nas data needs a PATH (or --clear-cache)")


def _add_list(commands: Any) -> None:
    parser = _command(commands, "list", _list, "what comes with nas, and your studies")
    kinds = ("spaces", "targets", "architectures", "studies", "datasets")
    parser.add_argument("kind", choices=kinds)


def _list(options: argparse.Namespace) -> None:
    listed = names_of(options.kind)
    width = max((len(name) for name in listed), default=0)
    for name, about in listed.items():
        print(f"{name:{width}}  {about}".rstrip())


def _name_and_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the study")
    parser.add_argument("--storage", help="database URL (default: studies/NAME/study.db)")


def _remote_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--remote", metavar="USER@HOST[:PORT]", help="measure there, over ssh")


def _battery_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--battery-mwh", type=float, help="battery of the device, to say its days")


def _battery_mwh(options: argparse.Namespace, target: Any) -> float:
    """Milliwatt hours, 0 if there is no battery."""
    if options.battery_mwh is None:
        return 0.0
    if not 0 < options.battery_mwh < 1e12:
        raise UserError(f"--battery-mwh is {options.battery_mwh:g}; it must be above 0 and finite")
    if target.mcu is None:
        raise UserError(
            f"--battery-mwh needs a microcontroller, target '{target.name}' is none: see "
            "nas list targets"
        )
    return float(options.battery_mwh)


def _variant_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quantization", help="instead of its own, such as int8_channel_none")
    parser.add_argument("--clip-s", type=float, help="seconds of a clip, instead of its own")


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
