"""Report page: navigation to front

Pages of studies that tests/made_study.py makes, opened from disk in Chromium, five times each in
an empty profile; medians of milliseconds since the navigation. "Front answers": the front is on
screen and a click in its table has opened another card. "Plotly answers": plotly.js has drawn the
front, with hover and zoom. "All drawn": the lower charts too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from nas.report import write_html
from tests.made_study import study

Row = dict[str, object]
RUNS = 5
# Runs in the page before anything of it: notes when each part is there and painted.
WATCH = """
window.seen = {};
const painted = (then) => requestAnimationFrame(() => setTimeout(then));
const note = (name) => painted(() => (seen[name] ??= performance.now()));
const parts = {
  "Plotly answers": "html[data-ready]",
  "all drawn": "#parallel .main-svg",
};
new MutationObserver((_, observer) => {
  if (!seen.clicked && document.querySelector("#chart svg")) {
    seen.clicked = true;
    painted(() => {
      document.querySelector("#front-table button.trial").click();
      note("front answers");
    });
  }
  for (const name in parts) if (document.querySelector(parts[name])) note(name);
}).observe(document, { subtree: true, childList: true, attributes: true });
"""


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """One row for each size of study."""
    for trials in (300, 10_000):
        yield f"{trials:,} trials", partial(opened, trials)


def opened(trials: int) -> Row:
    """The page's size, and the medians over RUNS openings."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        write_html([study(trials)], page)
        program = shutil.which("chromium")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=program, args=flags)
        runs = [times(browser, page) for _ in range(RUNS)]
        return {"page, MB": round(page.stat().st_size / 1e6, 1)} | {
            f"{name}, ms": round(median(run[name] for run in runs)) for name in runs[0]
        }


def times(browser: Browser, page: Path) -> dict[str, Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = context.new_page()
    visit.add_init_script(WATCH)
    visit.goto(page.as_uri())
    visit.wait_for_function("seen['all drawn']")
    names = ("front answers", "Plotly answers", "all drawn")
    seen = visit.evaluate("seen")
    context.close()
    return {name: seen[name] for name in names}
