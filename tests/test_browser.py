"""The report page in a real browser: Chromium driven by Playwright, both skipped when missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas import report
from nas.figure import Reference, front_figure
from nas.record import StudyRecord
from nas.report import Extras, front_rows, write_html
from tests.made_study import inputs, layer_table, study

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
WIDTHS, SCHEMES = (400, 768, 1280), ("light", "dark")
FILLED = ("front", "other trials")
MARKS = [Reference("BC-ResNet-1", 0.865, 36.6, source="Kim et al., 2021")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


class Visit:
    """An open page and what it has asked for and complained about."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)
        self.ready()

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def ready(self) -> None:
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector("#hypervolume .main-svg", state="attached")

    def front_point(self, place: int) -> tuple[float, float]:
        """Where on the screen a point of the front is."""
        box: list[float] = self.page.evaluate(
            """place => {
              const chart = document.getElementById("chart");
              const number = chart.data.findIndex((t) => t.error_y);
              const trace = chart.calcdata[number][0].node3.node();
              const box = trace.querySelectorAll(".point")[place].getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }""",
            place,
        )
        return box[0], box[1]

    def card(self) -> str:
        return str(self.page.inner_text("#card"))


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return study(300, note="These recordings are synthetic.")


@pytest.fixture(scope="module")
def path(record: StudyRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trials = [row["trial"] for row in front_rows(record)]
    extras = Extras(
        importance={"accuracy": {"width": 0.7, "blocks": 0.2}},
        layers={trial: layer_table() for trial in trials},
        test={trials[-1]: (0.8, 0.75, 0.84)},
    )
    made = tmp_path_factory.mktemp("page") / "report.html"
    write_html([record], made, extras={record.name: extras}, references=MARKS)
    return made


@pytest.fixture(scope="module")
def opened(browser: Any, path: Path) -> Visit:
    return Visit(browser, path)


@pytest.fixture
def visit(opened: Visit) -> Visit:
    """The page of a study of 300 trials as it is at first, whatever a test before did to it."""
    opened.page.mouse.move(5, 5)
    opened.page.evaluate("history.replaceState(null, '', '#'); shown = null; recall()")
    return opened


def test_the_page_opens_without_an_error_or_a_request(visit: Visit) -> None:
    assert visit.errors == []
    assert visit.requests == [visit.address]
    assert visit.page.inner_text("h1").startswith("Ship trial ")
    assert "synthetic" in visit.page.inner_text("#notes")


def test_no_button_sends_the_data_anywhere(visit: Visit) -> None:
    titles = visit.page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    )
    assert "Pan" in titles
    moves = {"Zoom", "Pan", "Zoom in", "Zoom out", "Autoscale", "Reset axes"}
    assert set(titles) <= moves


def test_pointing_at_a_network_shows_its_architecture(visit: Visit, record: StudyRecord) -> None:
    row = front_rows(record)[3]
    visit.page.mouse.move(*visit.front_point(3))
    visit.page.wait_for_selector("#tip:not([hidden])")
    said = visit.page.inner_text("#tip")
    assert row["architecture"] in said.replace("\n", "")
    assert f"Trial {row['trial']} " in said and "lowest: " in said and "RAM" in said
    visit.page.mouse.move(5, 5)
    visit.page.wait_for_selector("#tip", state="hidden")


def test_a_click_opens_the_card_of_that_network(visit: Visit, record: StudyRecord) -> None:
    row = front_rows(record)[2]
    visit.page.mouse.click(*visit.front_point(2))
    visit.page.wait_for_function(
        f"document.getElementById('card-title').textContent === 'Trial {row['trial']}'"
    )
    said = visit.card()
    for part in ("Ship it", "Architecture", "Accuracy while training", "Confusion", "Layers"):
        assert part in said
    assert f"{row['file_bytes']:,} B" in said


def test_the_card_of_the_recommended_network_is_open_at_first(visit: Visit) -> None:
    named = visit.page.inner_text("h1").split(":")[0].removeprefix("Ship trial ")
    assert visit.card().startswith(f"Trial {named}\n")
    assert "recommended" in visit.card()


def test_the_copy_button_copies_the_export_command(visit: Visit, record: StudyRecord) -> None:
    visit.page.click("button[aria-label='Copy the export command']")
    visit.page.wait_for_selector("button:has-text('Copied')")
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    named = visit.page.inner_text("h1").split(":")[0].removeprefix("Ship trial ")
    assert copied == f"nas export {record.name} --trial {named}"


def test_the_axis_switch_moves_the_points_and_names_the_axis(visit: Visit) -> None:
    before = visit.front_point(0)
    assert "File size" in visit.page.text_content("#chart .xtitle")
    visit.page.get_by_label("Latency").check(force=True)
    assert "Latency" in visit.page.text_content("#chart .xtitle")
    assert visit.front_point(0) != before
    for name in ("MACs", "RAM", "KB"):
        visit.page.get_by_label(name, exact=True).check(force=True)
    assert visit.front_point(0) == pytest.approx(before)
    assert visit.errors == []


def test_the_page_works_from_the_keyboard(visit: Visit, record: StudyRecord) -> None:
    rows = front_rows(record)
    visit.page.focus("#chart")
    for _ in rows:
        visit.page.keyboard.press("ArrowLeft")
    assert visit.card().startswith(f"Trial {rows[0]['trial']}\n")
    visit.page.keyboard.press("ArrowRight")
    assert visit.card().startswith(f"Trial {rows[1]['trial']}\n")
    visit.page.locator("#front-table button.trial").last.press("Enter")
    assert visit.card().startswith(f"Trial {rows[-1]['trial']}\n")
    visit.page.get_by_label("KB", exact=True).focus()
    visit.page.keyboard.press("ArrowRight")
    assert "Latency" in visit.page.text_content("#chart .xtitle")


def test_everything_to_press_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """[...document.querySelectorAll("body button, body input, body [tabindex='0']")]
          .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.[0]?.textContent))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window(browser: Any, path: Path, tmp_path: Path, width: int) -> None:
    visit = Visit(browser, path, width)
    for scheme in SCHEMES:
        visit.page.emulate_media(color_scheme=scheme)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        picture = tmp_path / f"{width}_{scheme}.png"
        visit.page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 50_000
    assert visit.errors == []
    visit.page.context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_marks_stand_out_from_their_ground(visit: Visit, scheme: str) -> None:
    """WCAG 2.2: a contrast of 4.5 for text, of 3 for the marks that carry meaning."""
    visit.page.emulate_media(color_scheme=scheme)
    names = ["page", "surface", "ink", "muted", "budget", *(f"study{i}" for i in range(4))]
    colours = {name: visit.page.evaluate("name => css(name)", name) for name in names}
    visit.page.emulate_media(color_scheme="light")
    for ground in ("page", "surface"):
        for text in ("ink", "muted", "budget", "study0"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for mark in ("study1", "study2", "study3"):
            assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two "#rrggbb" colours (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_plots_follow_the_colour_scheme_and_print_light(visit: Visit) -> None:
    ground = "document.getElementById('chart').layout.paper_bgcolor"
    assert visit.page.evaluate(ground) == "#ffffff"
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function(f"{ground} !== '#ffffff'")
    visit.page.emulate_media(color_scheme="dark", media="print")
    visit.page.wait_for_function(f"{ground} === '#ffffff'")
    assert len(visit.page.pdf()) > 20_000
    visit.page.emulate_media(color_scheme="light", media="screen")
    visit.page.wait_for_function("!document.getElementById('chart').layout.width")


def test_ten_thousand_trials_open(browser: Any, tmp_path: Path) -> None:
    record = study(10_000)
    write_html([record], tmp_path / "report.html")
    visit = Visit(browser, tmp_path / "report.html")
    visit.page.wait_for_function("document.getElementById('chart').data.some(crowded)")
    points = visit.page.evaluate("document.getElementById('chart').data.map((t) => t.x.length)")
    scored = sum(r.score is not None or bool(r.rungs) for r in record.trials)
    on_front = len(front_rows(record))
    assert sum(points) == scored + on_front + 2  # and the recommended and the selected mark
    assert visit.errors == [] and visit.requests == [visit.address]
    visit.page.mouse.click(*visit.front_point(on_front // 2))
    trial = front_rows(record)[on_front // 2]["trial"]
    visit.page.wait_for_function(
        f"document.getElementById('card-title').textContent === 'Trial {trial}'"
    )
    visit.page.context.close()


def test_a_large_front_answers_before_plotly_has_run(browser: Any, tmp_path: Path) -> None:
    record = study(10_000)
    write_html([record], tmp_path / "report.html")
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.add_init_script("requestAnimationFrame = () => 0")  # what plotly.js waits for
    page.goto((tmp_path / "report.html").as_uri())
    drawn = "() => [...document.querySelectorAll('.sketch g path')].map((p) => p.outerHTML).join()"
    by_size = page.evaluate(drawn)
    marks = front_figure([record])["data"]
    assert by_size.count("h0") == sum(len(t["x"]) for t in marks if t["name"] in FILLED) + 1
    page.get_by_label("Latency").check(force=True)
    assert page.evaluate(drawn) != by_size
    assert "Latency" in page.text_content(".sketch")
    rows = front_rows(record)
    page.locator("#front-table button.trial").last.click()
    assert page.inner_text("#card-title") == f"Trial {rows[-1]['trial']}"
    page.focus("#chart")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#card-title") != f"Trial {rows[-1]['trial']}"
    assert page.evaluate("typeof Plotly") == "undefined"
    page.context.close()


def test_compared_studies_share_the_axes(browser: Any, tmp_path: Path) -> None:
    one, other = study(200, "first", 1), study(150, "second", 2)
    write_html([one, other], tmp_path / "report.html")
    visit = Visit(browser, tmp_path / "report.html")
    fronts = visit.page.evaluate(
        "document.getElementById('chart').data.filter((t) => t.error_y).map((t) => t.name)"
    )
    assert fronts == ["first", "second"]
    said = visit.page.inner_text("header")
    assert said.count("Ship trial") == 2 and said.count("Hypervolume") == 2
    last = len(front_rows(other)) - 1
    visit.page.locator("#front-table button.trial").last.click()
    assert visit.card().startswith(f"second, trial {front_rows(other)[last]['trial']}\n")
    assert visit.errors == []
    visit.page.context.close()


@pytest.mark.parametrize("trials", [0, 1])
def test_a_search_that_has_hardly_begun_has_a_page(
    browser: Any, tmp_path: Path, trials: int
) -> None:
    write_html([StudyRecord("young", inputs(), study(trials).trials)], tmp_path / "report.html")
    visit = Visit(browser, tmp_path / "report.html")
    assert visit.errors == []
    assert visit.page.inner_text("h1")
    visit.page.context.close()


def test_a_live_page_shows_the_new_trials_and_keeps_its_place(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "REFRESH_S", 3)
    path = tmp_path / "report.html"
    write_html([study(40)], path, live=True)
    visit = Visit(browser, path)
    visit.page.get_by_label("MACs").check(force=True)
    write_html([study(80)], path, live=True)
    visit.page.wait_for_function("STUDIES[0].columns.trial.length === 80", timeout=30_000)
    visit.ready()
    assert visit.page.get_by_label("MACs").is_checked()
    # Nobody had opened a card, so it is the new recommended network's.
    named = visit.page.inner_text("h1").split(":")[0].removeprefix("Ship trial ")
    assert visit.card().startswith(f"Trial {named}\n")
    assert {url.split("#")[0] for url in visit.requests} == {visit.address}
    visit.page.context.close()
