"""What a study found, for people and for machines: table, rows, CSV, one HTML page, a picture.

The page is nas/assets/report.html with its style, its script, plotly.js and the study's data
written into it. The only file that imports plotly.
"""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from nas.cache import write_whole
from nas.errors import UserError
from nas.figure import AXES, Reference, front_figure
from nas.page import Extras, study_facts
from nas.pareto import (
    answer,
    front,
    front_rows,
    kb_text,
    known_latency_ms,
    limits_text,
    percent,
    quantization,
    recommended,
    row,
    score_of,
    three_figures,
)
from nas.record import KB, SizeKind, StudyRecord, TrialResult, size_bytes

__all__ = [
    "Extras",
    "Reference",
    "front_csv",
    "front_rows",
    "front_table",
    "write_html",
    "write_png",
]
REFRESH_S = 10
_COLUMNS = " trial   acc %   95 % range      KB      ms   MMACs  RAM KB  format  blocks"
_EMPTY = TrialResult(architecture="", state="failed")


# --- the terminal and machines ---------------------------------------------------------------


def front_table(record: StudyRecord) -> str:
    """The front as text of at most 80 columns, the answer first; `>` marks the recommended."""
    inputs = record.inputs
    points = front(record.trials, inputs.size_kind, inputs.budget)
    lines = textwrap.wrap(answer(record.trials, inputs), 80)
    if inputs.data_note:
        lines += textwrap.wrap(f"Data: {inputs.data_note}", 80)
    if points:
        ship = recommended(points)
        lines += ["", _COLUMNS, *(_line(r, inputs.size_kind, r is ship) for r in points)]
    return "\n".join([*lines, "", *textwrap.wrap(_footnote(record), 80)])


def _line(result: TrialResult, kind: SizeKind, ship: bool) -> str:
    score, cost, ms = score_of(result), result.cost, known_latency_ms(result)
    interval = f"{percent(score.accuracy_low)}-{percent(score.accuracy_high)}"
    line = (
        f"{'>' if ship else ' '}{result.trial:5}  {percent(score.accuracy):>6}  {interval:>11}"
        f"  {kb_text(size_bytes(result, kind)):>6}"
        f"  {'-' if ms is None else three_figures(ms):>6}"
        f"  {'-' if cost is None else three_figures(cost.macs / 1e6):>6}"
        f"  {'-' if cost is None else kb_text(cost.peak_ram_bytes):>6}"
        f"  {quantization(result).split('_')[0]:7} {_blocks(result)}"
    )
    return line if len(line) <= 80 else line[:77] + "..."


def _footnote(record: StudyRecord) -> str:
    kind = record.inputs.size_kind
    counts = Counter(r.state for r in record.trials)
    states = ", ".join(f"{n} {state}" for state, n in counts.most_common()) or "none yet"
    how = "measured" if kind == "file_bytes" else "estimated"
    profile = record.inputs.profile
    there = f" ms and RAM: estimated for {profile.description}." if profile.mcu else ""
    return (
        f"Trials: {states}. KB: {kind}, {how}.{there} Budget: {limits_text(record.inputs.budget)}. "
        f"Accuracy: mean over classes on validation recordings. nas export {record.name} --trial N"
    )


def _blocks(result: TrialResult) -> str:
    """The kinds of a network's stages, runs of one kind collapsed: "conv ds*3 ir"."""
    runs: list[tuple[str, int]] = []
    for part in result.architecture.split("/")[1:-2]:
        kind = part.split("_")[0]
        same = bool(runs) and runs[-1][0] == kind
        runs[-1:] = [(kind, runs[-1][1] + 1)] if same else [*runs[-1:], (kind, 1)]
    return " ".join(kind if n == 1 else f"{kind}*{n}" for kind, n in runs)


def front_csv(record: StudyRecord, all_trials: bool = False) -> str:
    """`front_rows` as CSV text with a header line; unknown figures are empty."""
    text = io.StringIO()
    fields = row(_EMPTY, record.inputs.size_kind).keys()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(front_rows(record, all_trials))
    return text.getvalue()


def write_html(
    records: Sequence[StudyRecord],
    path: Path,
    *,
    extras: Mapping[str, Extras] | None = None,
    references: Sequence[Reference] = (),
    live: bool = False,
) -> None:
    """One self-contained page about one study, or several compared on one set of axes.

    `extras` are by study name. A `live` page opens itself again every REFRESH_S seconds; the
    caller writes the file anew, which is replaced in one step. Raises UserError for studies
    whose sizes mean different things.
    """
    from plotly.offline import get_plotlyjs

    _check_comparable(records)
    common = max((r.inputs.budget for r in records), key=lambda budget: budget.size_bytes)
    data = {
        "studies": [study_facts(r, (extras or {}).get(r.name, Extras()), common) for r in records],
        "figures": {axis: front_figure(records, references, axis) for axis in AXES},
        "warning": _warning(records),
        "hypervolume_kb": common.size_bytes / KB,
        "refresh_s": REFRESH_S if live else 0,
    }
    parts = {
        "title": html.escape(", ".join(r.name for r in records)),
        "style": _asset("report.css"),
        "plotly": get_plotlyjs(),
        "script": _asset("plots.js") + _asset("report.js"),
        # A "</script" or "<!--" in a name would end or open something in the page.
        "data": msgspec.json.encode(data).decode().replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))
    _replace(path, page.encode())


def _check_comparable(records: Sequence[StudyRecord]) -> None:
    kinds = {r.inputs.size_kind: r.name for r in records}
    if len(kinds) > 1:
        found = ", ".join(f"'{name}' counts {kind}" for kind, name in kinds.items())
        raise UserError(f"{found}: report only studies together whose targets count one of them")


def _warning(records: Sequence[StudyRecord]) -> str:
    data = {r.inputs.data_fingerprint: r.inputs.data for r in records}
    if len(data) < 2:
        return ""
    return f"Different recordings ({', '.join(data.values())}): accuracies do not compare."


def _asset(name: str) -> str:
    return resources.files("nas").joinpath("assets", name).read_text(encoding="utf-8")


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole; raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def write_png(
    record: StudyRecord, path: Path, *, references: Sequence[Reference] = (), axis: str = "size_kb"
) -> None:
    """The front as a light picture of 1600 x 1000 pixels, for a paper or a README.

    Raises UserError that says what to install when kaleido or a Chromium is missing.
    """
    try:
        import kaleido
        from choreographer import errors as browser
    except ImportError:
        raise UserError("--png needs kaleido: pip install 'tinyaudio-nas[png]'") from None
    # Its default for MathJax is a request to a CDN.
    quiet = {"mathjax": False}
    try:
        content = kaleido.calc_fig_sync(_painted(record, references, axis), _PNG, kopts=quiet)
    except (browser.ChromeNotFoundError, browser.BrowserFailedError, browser.BrowserClosedError):
        raise UserError(
            "--png draws with Chromium, which was not found or did not start: install it, for "
            "example with 'apt-get install chromium', or name the program in BROWSER_PATH"
        ) from None
    _replace(path, content)


_PNG = {"format": "png", "width": 800, "height": 500, "scale": 2}


def _painted(record: StudyRecord, references: Sequence[Reference], axis: str) -> dict[str, Any]:
    """The front figure in the light colours of the page's style sheet."""
    light = _asset("report.css").split("}")[0]
    colours = dict(re.findall(r"--(\w+): (#\w+);", light))
    figure = msgspec.json.encode(front_figure([record], references, axis)).decode()
    painted: dict[str, Any] = msgspec.json.decode(
        re.sub(r"\$(\w+)", lambda match: colours.get(match[1], match[0]), figure)
    )
    return painted
