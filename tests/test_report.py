"""What a study says for people and machines: the table, the CSV, the page's data, the picture."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nas.errors import UserError
from nas.figure import AXES, front_figure
from nas.record import KB, StudyRecord, TrialResult
from nas.report import (
    Extras,
    Reference,
    front_csv,
    front_rows,
    front_table,
    write_html,
    write_png,
)
from tests.made_study import complete, inputs, layer_table, study


def data_of(page: Path) -> dict[str, Any]:
    """The data that a page carries, as its script reads it."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return dict(json.loads(found[1]))


def page_of(records: list[StudyRecord], tmp_path: Path, **options: Any) -> dict[str, Any]:
    write_html(records, tmp_path / "report.html", **options)
    return data_of(tmp_path / "report.html")


# --- the terminal


@pytest.mark.parametrize("trials", [0, 1, 12, 400])
def test_the_table_fits_80_columns(trials: int) -> None:
    table = front_table(study(trials, note="Synthetic: " + "made by a generator, " * 8))
    assert max(len(line) for line in table.splitlines()) <= 80


def test_the_table_fits_80_columns_whatever_the_figures() -> None:
    stages = "/".join(f"kind{i}_n1_c{i}" for i in range(12))
    big = complete(123456, 0.5, 900 * KB, latency_ms=123456.0, name=f"logmel/{stages}/gap/int8_a_b")
    record = StudyRecord("s" * 70, inputs(1024), [big])
    assert max(len(line) for line in front_table(record).splitlines()) <= 80


def test_the_answer_is_the_first_thing_in_the_table() -> None:
    assert front_table(study(100)).startswith("Ship trial ")
    assert front_table(study(0)).startswith("Nothing to ship yet")


def test_the_table_marks_the_trial_that_the_answer_names() -> None:
    table = front_table(study(200))
    named = re.search(r"Ship trial (\d+)", table)
    marked = re.search(r"^> +(\d+) ", table, re.M)
    assert named and marked and named[1] == marked[1]


def test_the_table_says_that_data_are_synthetic() -> None:
    assert "synthetic" in front_table(study(20, note="These recordings are synthetic."))


def test_the_table_has_a_line_for_every_network_of_the_front() -> None:
    record = study(300)
    found = re.findall(r"^[> ] +(\d+) +\d+\.\d  ", front_table(record), re.M)
    assert [int(trial) for trial in found] == [row["trial"] for row in front_rows(record)]


@pytest.mark.parametrize("all_trials", [False, True])
def test_csv_says_what_the_rows_say(all_trials: bool) -> None:
    record = study(120)
    read = list(csv.DictReader(io.StringIO(front_csv(record, all_trials))))
    rows = front_rows(record, all_trials)
    assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def test_csv_of_an_empty_study_is_its_header() -> None:
    lines = front_csv(study(0)).splitlines()
    assert len(lines) == 1 and "accuracy_low" in lines[0]


# --- the page's data


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_html([study(30)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    head, tail = text.split("<style>")[0], text[-300:]
    assert not re.search(r'(src|href)="(https?:)?//', head + tail)
    assert text.count("<script") == 4 and "@import" not in text.split("</style>")[0]


def test_a_page_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    page_of([study(5)], tmp_path / "new")
    page_of([study(30)], tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>{{plotly}}$ink"
    record = StudyRecord(name, inputs(note=name), [complete(0, 0.5, KB)])
    data = page_of([record], tmp_path)
    assert data["studies"][0]["name"] == name
    assert data["studies"][0]["note"] == name
    assert "<title>&lt;/script&gt;" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_export_command_quotes_the_name(tmp_path: Path) -> None:
    record = StudyRecord("my study", inputs(), [complete(0, 0.5, KB)])
    assert page_of([record], tmp_path)["studies"][0]["export"] == "nas export 'my study' --trial "


def test_the_page_and_the_rows_name_the_same_front(tmp_path: Path) -> None:
    record = study(300)
    facts = page_of([record], tmp_path)["studies"][0]
    trials = facts["columns"]["trial"]
    assert [trials[i] for i in facts["front"]] == [row["trial"] for row in front_rows(record)]
    assert f"Ship trial {trials[facts['ship']]}:" in facts["answer"]


def test_the_margins_are_the_best_of_each_size_up_to_the_budget(tmp_path: Path) -> None:
    record = study(300)
    facts = page_of([record], tmp_path)["studies"][0]
    assert [kb for kb, _ in facts["margins"]] == [8, 16, 32, 64]
    done = [r for r in record.trials if r.score and (r.file_bytes or 0) <= 64 * KB]
    for kb, index in facts["margins"]:
        best = max(r.score.accuracy for r in done if r.score and (r.file_bytes or 0) <= kb * KB)
        assert facts["columns"]["accuracy"][index] == pytest.approx(best, abs=1e-5)


def test_a_budget_between_the_usual_sizes_gets_its_own_line(tmp_path: Path) -> None:
    record = StudyRecord("s", inputs(20), [complete(0, 0.5, 10 * KB)])
    margins = page_of([record], tmp_path)["studies"][0]["margins"]
    assert margins == [[8, None], [16, 0], [20, 0]]


def test_reasons_that_differ_in_numbers_alone_are_one_line(tmp_path: Path) -> None:
    record = study(500)
    facts = page_of([record], tmp_path)["studies"][0]
    assert len(facts["reasons"]) == 4
    assert sum(n for _, n, _ in facts["reasons"]) + facts["states"]["complete"] == 500


def test_the_hypervolume_never_falls_and_ends_at_the_last_trial(tmp_path: Path) -> None:
    record = study(300)
    shuffled = msgspec.structs.replace(record, trials=record.trials[::-1])
    facts = page_of([record], tmp_path)["studies"][0]
    track = facts["hypervolume"]
    values = [value for _, value, _ in track]
    assert values == sorted(values) and values[0] == 0 and 0.3 < values[-1] < 1
    assert track[-1][2] == 300
    assert page_of([shuffled], tmp_path)["studies"][0]["hypervolume"] == track


def test_compared_studies_take_hypervolumes_up_to_the_same_size(tmp_path: Path) -> None:
    trials = [complete(0, 0.8, 8 * KB)]
    one, two = StudyRecord("a", inputs(16), trials), StudyRecord("b", inputs(64), trials)
    data = page_of([one, two], tmp_path)
    assert data["hypervolume_kb"] == 64
    ends = [s["hypervolume"][-1][1] for s in data["studies"]]
    assert ends == pytest.approx([0.8 / 2, 0.8 / 2])
    assert page_of([one], tmp_path)["studies"][0]["hypervolume"][-1][1] == pytest.approx(0.8 / 4)


def test_studies_of_different_sizes_are_refused(tmp_path: Path) -> None:
    other = msgspec.structs.replace(inputs(), size_kind="flash_bytes")
    with pytest.raises(UserError, match="'a' counts file_bytes.*'b' counts flash_bytes"):
        page_of([StudyRecord("a", inputs(), []), StudyRecord("b", other, [])], tmp_path)


def test_studies_of_different_recordings_carry_a_warning(tmp_path: Path) -> None:
    here, there = StudyRecord("a", inputs(), []), StudyRecord("b", inputs(name="words"), [])
    assert "do not compare" in page_of([here, there], tmp_path)["warning"]
    assert page_of([here, here], tmp_path)["warning"] == ""


def test_cards_carry_what_the_caller_knows(tmp_path: Path) -> None:
    record = StudyRecord("s", inputs(), [complete(5, 0.9, 8 * KB), complete(6, 0.8, 9 * KB)])
    extras = Extras(
        importance={"accuracy": {"width": 0.7}},
        layers={5: layer_table()},
        test={5: (0.83, 0.8, 0.86)},
    )
    facts = page_of([record], tmp_path, extras={"s": extras})["studies"][0]
    assert [row["name"] for row in facts["details"]["0"]["layers"]][0] == "stem"
    assert facts["details"]["0"]["test"][0] == 0.83
    assert facts["importance"] == {"accuracy": {"width": 0.7}}
    assert "On the test split trial 5 scored 83.0 %" in facts["caveat"]


def test_only_a_live_page_opens_itself_again(tmp_path: Path) -> None:
    assert page_of([study(5)], tmp_path)["refresh_s"] == 0
    assert page_of([study(5)], tmp_path, live=True)["refresh_s"] > 0


# --- the figure


@pytest.mark.parametrize("axis", list(AXES))
def test_every_axis_shows_a_front_that_rises(axis: str) -> None:
    record = study(300)
    (front,) = (t for t in front_figure([record], axis=axis)["data"] if t["name"] == "front")
    assert len(front["x"]) > 3
    assert front["x"] == sorted(front["x"]) and front["y"] == sorted(front["y"])


def test_every_point_of_the_figure_knows_its_trial() -> None:
    record = study(300)
    for trace in front_figure([record])["data"]:
        for x, y, index in zip(trace["x"], trace["y"], trace["customdata"], strict=True):
            result = record.trials[index]
            size = result.file_bytes or (result.cost.file_bytes if result.cost else 0)
            accuracy = result.score.accuracy if result.score else result.rungs[-1][1]
            assert (x, y) == pytest.approx((size / KB, 100 * accuracy), rel=1e-3)


def test_the_whole_front_with_its_intervals_is_in_view() -> None:
    figure = front_figure([study(300)])
    (front,) = (t for t in figure["data"] if t["name"] == "front")
    low, high = figure["layout"]["yaxis"]["range"]
    bars = front["error_y"]
    assert low < min(y - e for y, e in zip(front["y"], bars["arrayminus"], strict=True))
    assert high > max(y + e for y, e in zip(front["y"], bars["array"], strict=True))


def test_the_budget_is_a_line_on_the_axis_that_it_limits() -> None:
    record = StudyRecord("s", inputs(32, latency_ms=4), [complete(0, 0.5, KB)])
    lines = {a: front_figure([record], axis=a)["layout"]["shapes"] for a in AXES}
    assert [line["x0"] for line in lines["size_kb"]] == [32]
    assert [line["x0"] for line in lines["latency_ms"]] == [4]
    assert lines["macs"] == []


def test_a_network_over_any_limit_is_not_shown_as_one_that_fits() -> None:
    trials = [complete(0, 0.5, 9 * KB, 3.0), complete(1, 0.9, 9 * KB, 5.0)]
    figure = front_figure([StudyRecord("s", inputs(32, latency_ms=4), trials)])
    shown = {t["name"]: t["customdata"] for t in figure["data"]}
    assert shown["over a limit"] == [1]
    assert shown["other trials"] == shown["front"] == shown["recommended"] == [0]


def test_a_published_network_stands_only_where_its_figures_are_known() -> None:
    marks = [Reference("BC-ResNet-1", 0.966, size_kb=36.1, source="Kim et al., 2021")]
    by_size = front_figure([study(30)], marks)["data"][-1]
    assert (by_size["text"], by_size["x"], by_size["y"]) == (["BC-ResNet-1"], [36.1], [96.6])
    assert "published" not in {t["name"] for t in front_figure([study(30)], marks, "macs")["data"]}


def test_a_study_without_a_latency_has_no_latency_axis() -> None:
    unknown = msgspec.structs.replace(complete(0, 0.9, 10 * KB), latency=None)
    figure = front_figure([StudyRecord("s", inputs(), [unknown])], axis="latency_ms")
    assert figure["data"] == []


# --- the picture


def test_the_picture_is_a_light_png_of_its_stated_size(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("needs Chromium")
    write_png(study(60), tmp_path / "front.png")
    content = (tmp_path / "front.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    assert (width, height, depth) == (1600, 1000, 8)
    pixels = zlib.decompress(_idat(content))
    # The first pixel after the filter byte: the white of the page.
    assert pixels[1:4] == b"\xff\xff\xff"
    assert colour in (2, 6) and len(set(pixels)) > 50


def _idat(content: bytes) -> bytes:
    """The image data of a PNG: its IDAT chunks joined."""
    place, data = 8, b""
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        if content[place + 4 : place + 8] == b"IDAT":
            data += content[place + 8 : place + 8 + length]
        place += 12 + length
    return data


def test_without_a_working_browser_the_picture_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    with pytest.raises(UserError, match="install"):
        write_png(study(5), tmp_path / "front.png")
    assert not (tmp_path / "front.png").exists()


def test_without_kaleido_the_picture_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(UserError, match="pip install"):
        write_png(study(5), tmp_path / "front.png")


def test_a_failed_trial_without_a_cost_does_not_stop_the_page(tmp_path: Path) -> None:
    broken = TrialResult(architecture="a/b/c/int8_x_y", state="failed", reason="no", trial=0)
    facts = page_of([StudyRecord("s", inputs(), [broken])], tmp_path)["studies"][0]
    assert facts["front"] == [] and facts["ship"] is None
    assert facts["states"] == {"failed": 1}
